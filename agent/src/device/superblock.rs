//! Which file system a device or an image holds, and its label: by its superblock, for people who look for a volume at 3 a.m.
//!
//! Known are ext2, ext3 and ext4 (`struct ext2_super_block`, kernel documentation "ext4 Data Structures"), XFS (`xfs_dsb`), btrfs
//! (`struct btrfs_super_block`), FAT and exFAT, NTFS, swap, LUKS, LVM2 and Linux RAID members.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use milkrun_repository::point::root::FileSystem;

/// What is looked at of a device's beginning: more than all superblocks need.
const HEAD: u64 = 1 << 20;
/// Where a RAID's superblock of version 1.0 lies: so much before the end, rounded down to 4 KiB.
const TAIL: u64 = 8 << 10;

/// The ends of a device, where superblocks lie.
pub(super) struct Ends {
    /// The first MiB, or all.
    pub(super) head: Vec<u8>,
    /// 256 bytes at 8 KiB before the end; zeros where the device is too short.
    pub(super) tail: Vec<u8>,
}

impl Ends {
    /// Reads them of a device or a file of `len` bytes.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn read(path: &Path, len: u64) -> io::Result<Self> {
        let file = File::open(path)?;
        let mut head = vec![0; usize::try_from(len.min(HEAD)).unwrap_or(0)];
        file.read_exact_at(&mut head, 0)?;
        let mut tail = vec![0; 256];
        let at = len.saturating_sub(TAIL) / 4096 * 4096;
        if at + 256 <= len {
            file.read_exact_at(&mut tail, at)?;
        }
        Ok(Self { head, tail })
    }

    /// The file system; empty where none is known.
    pub(super) fn file_system(&self) -> FileSystem {
        let head = &self.head[..];
        let found =
            ext(head).or_else(|| xfs(head)).or_else(|| btrfs(head)).or_else(|| others(head)).or_else(|| fat(head));
        found.unwrap_or_default()
    }
}

fn named(kind: &str, label: &[u8]) -> FileSystem {
    let end = label.iter().position(|&b| b == 0).unwrap_or(label.len());
    let label = String::from_utf8_lossy(&label[..end]);
    let label = label.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    FileSystem { kind: kind.to_owned(), label }
}

fn is(head: &[u8], at: usize, magic: &[u8]) -> bool {
    head.get(at..at + magic.len()) == Some(magic)
}

fn u32_at(head: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?))
}

/// The superblock lies at 1024: magic at 56, compatible, incompatible and read-only features at 92, 96 and 100, label at 120.
fn ext(head: &[u8]) -> Option<FileSystem> {
    const HAS_JOURNAL: u32 = 0x4;
    // Extents, 64 bit, flexible block groups and the like; huge files, checksums of groups and the like.
    const EXT4_INCOMPATIBLE: u32 = 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x1000 | 0x2000;
    const EXT4_READ_ONLY: u32 = 0x8 | 0x10 | 0x20 | 0x40 | 0x400;
    let block = head.get(1024..2048)?;
    if !is(block, 56, &[0x53, 0xef]) {
        return None;
    }
    let (compatible, incompatible, read_only) = (u32_at(block, 92)?, u32_at(block, 96)?, u32_at(block, 100)?);
    let kind = match () {
        () if incompatible & EXT4_INCOMPATIBLE != 0 || read_only & EXT4_READ_ONLY != 0 => "ext4",
        () if compatible & HAS_JOURNAL != 0 => "ext3",
        () => "ext2",
    };
    Some(named(kind, &block[120..136]))
}

fn xfs(head: &[u8]) -> Option<FileSystem> {
    is(head, 0, b"XFSB").then(|| head.get(108..120).map(|label| named("xfs", label)))?
}

fn btrfs(head: &[u8]) -> Option<FileSystem> {
    let block = head.get(64 << 10..(64 << 10) + 4096)?;
    is(block, 64, b"_BHRfS_M").then(|| named("btrfs", &block[0x12b..0x12b + 256]))
}

/// Formats without a label that is worth more than the effort, and members of sets.
fn others(head: &[u8]) -> Option<FileSystem> {
    let lvm = (0..4).any(|sector| is(head, sector * 512, b"LABELONE"));
    let raid = [0, 4096].into_iter().any(|at| is(head, at, &0xa92b_4efc_u32.to_le_bytes()));
    let kind = match () {
        () if is(head, 0, b"LUKS\xba\xbe") => "crypto_LUKS",
        () if lvm => "LVM2_member",
        () if raid => "linux_raid_member",
        () if is(head, 3, b"NTFS    ") => "ntfs",
        () if is(head, 3, b"EXFAT   ") => "exfat",
        () if is(head, 4086, b"SWAPSPACE2") => return Some(named("swap", head.get(1024 + 28..1024 + 44)?)),
        () => return None,
    };
    Some(named(kind, b""))
}

/// The type's name lies at 54 (FAT12, FAT16) or 82 (FAT32), the label 11 bytes before it.
fn fat(head: &[u8]) -> Option<FileSystem> {
    if !is(head, 510, &[0x55, 0xaa]) {
        return None;
    }
    let at = [54, 82].into_iter().find(|&at| is(head, at, b"FAT"))?;
    let label = head.get(at - 11..at)?;
    Some(named("vfat", if label == b"NO NAME    " { b"" } else { label }))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn made(size: u64, program: &str, args: &[&str]) -> Option<FileSystem> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        File::create(&path).unwrap().set_len(size).unwrap();
        let done = Command::new(program).args(args).arg(&path).output().ok()?;
        assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
        Some(Ends::read(&path, size).unwrap().file_system())
    }

    #[test]
    fn ext_is_told_with_its_label() {
        for kind in ["ext2", "ext3", "ext4"] {
            let program = format!("mkfs.{kind}");
            let Some(found) = made(16 << 20, &program, &["-q", "-L", "shop data"]) else {
                println!("skipped: {program} is not installed");
                continue;
            };
            assert_eq!(found, FileSystem { kind: kind.into(), label: "shop data".into() });
        }
        let empty = Ends { head: vec![0; 1 << 20], tail: Vec::new() };
        assert_eq!(empty.file_system(), FileSystem::default());
    }

    #[test]
    fn others_are_told_where_their_programs_are() {
        let cases: [(&str, u64, &[&str], &str, &str); 4] = [
            ("mkfs.xfs", 512 << 20, &["-q", "-L", "orders"], "xfs", "orders"),
            ("mkfs.btrfs", 256 << 20, &["-q", "-L", "orders"], "btrfs", "orders"),
            ("mkfs.vfat", 16 << 20, &["-n", "ORDERS"], "vfat", "ORDERS"),
            ("mkswap", 16 << 20, &["-L", "orders"], "swap", "orders"),
        ];
        for (program, size, args, kind, label) in cases {
            match made(size, program, args) {
                Some(found) => assert_eq!(found, FileSystem { kind: kind.into(), label: label.into() }, "{program}"),
                None => println!("skipped: {program} is not installed"),
            }
        }
    }

    proptest! {
        /// Whatever lies there, nothing panics.
        #[test]
        fn anything_may_lie_there(head in proptest::collection::vec(any::<u8>(), 0..8192), at in 0..5_usize) {
            let mut head = head;
            let magics: [(usize, &[u8]); 5] = [(1080, &[0x53, 0xef]), (0, b"XFSB"), (510, &[0x55, 0xaa]), (4086, b"SWAPSPACE2"), (3, b"NTFS    ")];
            let (from, magic) = magics[at];
            if head.len() >= from + magic.len() {
                head[from..from + magic.len()].copy_from_slice(magic);
            }
            let label = Ends { head, tail: Vec::new() }.file_system().label;
            prop_assert!(!label.chars().any(char::is_control));
        }
    }
}
