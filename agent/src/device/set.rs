//! Members of a set: devices that make up a file system or a volume only together with others. They are recognised by
//! the metadata at their beginning, or near their end: btrfs (its on-disk format, `struct btrfs_super_block`), LVM2
//! (`lib/format_text/layout.h`), Linux RAID (md(4), version-1 superblock).

use super::superblock::Ends;

/// Sectors of all these formats.
const SECTOR: usize = 512;

/// A member of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// The kind of the set, and its id.
    pub(super) set: String,
    /// How many devices it has.
    pub(super) devices: u64,
}

/// The set that a device or image is a member of, if the set has more than one device.
pub(super) fn member_of(ends: &Ends) -> Option<Member> {
    find(&ends.head, &ends.tail).filter(|m| m.devices > 1)
}

fn find(head: &[u8], tail: &[u8]) -> Option<Member> {
    let raid = || [at(head, 0), at(head, 4096), Some(tail)].into_iter().flatten().find_map(raid);
    raid().or_else(|| btrfs(head)).or_else(|| lvm(head))
}

fn at(bytes: &[u8], from: usize) -> Option<&[u8]> {
    bytes.get(from..)
}

fn number<const N: usize>(bytes: &[u8], from: usize) -> Option<u64> {
    let mut out = [0; 8];
    out[..N].copy_from_slice(bytes.get(from..from.checked_add(N)?)?);
    Some(u64::from_le_bytes(out))
}

fn uuid(bytes: &[u8], from: usize) -> Option<String> {
    let hex: String = bytes.get(from..from + 16)?.iter().map(|b| format!("{b:02x}")).collect();
    Some(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

/// `struct mdp_superblock_1`: magic, version, features, padding, then the set's UUID (16), its name (32), …,
/// `raid_disks` at 92.
fn raid(superblock: &[u8]) -> Option<Member> {
    const MAGIC: u64 = 0xa92b_4efc;
    let sound = number::<4>(superblock, 0)? == MAGIC && number::<4>(superblock, 4)? == 1;
    let devices = number::<4>(superblock, 92)?;
    sound.then_some(())?;
    Some(Member { set: format!("RAID (md) {}", uuid(superblock, 16)?), devices })
}

/// The primary super block lies at 64 KiB: `fsid` at 32, magic at 64, `num_devices` at 136.
fn btrfs(head: &[u8]) -> Option<Member> {
    let block = at(head, 64 << 10)?;
    if block.get(64..72)? != b"_BHRfS_M" {
        return None;
    }
    Some(Member { set: format!("btrfs {}", uuid(block, 32)?), devices: number::<8>(block, 136)? })
}

/// A label in one of the first four sectors points to the header of the physical volume, the header to the metadata
/// areas, and these to the volume group as text.
fn lvm(head: &[u8]) -> Option<Member> {
    let label = (0..4).filter_map(|n| at(head, n * SECTOR)).find(|s| s.starts_with(b"LABELONE"))?;
    let header = at(label, usize::try_from(number::<4>(label, 20)?).ok()?)?;
    // UUID (32), size (8); then the list of data areas, and the list of metadata areas. Each list ends with zeros.
    let mut place = 40;
    while number::<8>(header, place)? != 0 {
        place += 16;
    }
    let area = at(head, usize::try_from(number::<8>(header, place + 16)?).ok()?)?;
    if area.get(4..20)? != b" LVM2 x[5A%r0N*>" {
        return None;
    }
    let (from, len) = (number::<8>(area, 40)?, number::<8>(area, 48)?);
    let (from, len) = (usize::try_from(from).ok()?, usize::try_from(len).ok()?);
    let text = String::from_utf8_lossy(area.get(from..from.checked_add(len)?)?);
    let mut lines = text.lines().map(str::trim);
    let name = lines.next()?.strip_suffix(" {")?;
    let id = lines.next()?.strip_prefix("id = ")?.trim_matches('"');
    let volume =
        |l: &&str| l.strip_prefix("pv").and_then(|l| l.strip_suffix(" {")).is_some_and(|n| n.parse::<u32>().is_ok());
    let devices = lines.filter(volume).count() as u64;
    let shown = |s: &str| s.chars().filter(|c| c.is_ascii_graphic()).take(128).collect::<String>();
    Some(Member { set: format!("LVM volume group {} {}", shown(name), shown(id)), devices })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The superblock is made after md(4) and the kernel's `md_p.h`: there is no RAID driver here to make one.
    #[test]
    fn a_member_of_a_raid_is_known_wherever_its_superblock_lies() {
        let mut superblock = vec![0; 256];
        superblock[..4].copy_from_slice(&0xa92b_4efc_u32.to_le_bytes());
        superblock[4] = 1;
        superblock[16..32].copy_from_slice(&[0xab; 16]);
        superblock[92] = 3;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let len: u64 = 1 << 20;
        for at in [0, 4096, len - 8192] {
            let mut image = vec![0; 1 << 20];
            let from = usize::try_from(at).unwrap();
            image[from..from + 256].copy_from_slice(&superblock);
            std::fs::write(&path, image).unwrap();
            let member = member_of(&Ends::read(&path, len).unwrap()).unwrap();
            assert_eq!(member.set, "RAID (md) abababab-abab-abab-abab-abababababab");
            assert_eq!(member.devices, 3);
        }
    }

    proptest! {
        /// Random bytes do not make it panic, also if they begin with the magic of one of the formats.
        #[test]
        fn no_content_makes_it_panic(mut head in proptest::collection::vec(any::<u8>(), 0..8192), kind in 0..3) {
            let begin: &[u8] = match kind { 0 => b"LABELONE", 1 => &[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0], _ => b"" };
            if head.len() > begin.len() {
                head[..begin.len()].copy_from_slice(begin);
            }
            let _ = find(&head, &head);
        }
    }
}
