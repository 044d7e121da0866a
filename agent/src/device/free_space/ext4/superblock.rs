//! The superblock: checks it, and reads the fields that matter for free space.

use std::ops::Range;

use super::{SUPERBLOCK_BYTES, crc, u16_at, u32_at};
use crate::device::free_space::Doubt;

const MAGIC: u16 = 0xEF53;
/// `s_state`: unmounted cleanly (with a journal it is always set); errors were found.
const VALID: u16 = 1;
const ERRORS: u16 = 2;
const CRC32C: u8 = 1;

/// Known features that do not matter for free space: file types, extents, 64 bits, flexible groups, large extended
/// attributes, a checksum seed, large directories, inline data, encryption, case folding.
const KNOWN: u32 = 0x2 | 0x40 | 0x80 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000;
const RECOVER: u32 = 0x4;
const WIDE: u32 = 0x80;
const SEED: u32 = 0x2000;
/// Clusters of several blocks; metadata checksums.
const RO_BIGALLOC: u32 = 0x200;
const RO_CHECKSUMS: u32 = 0x400;
/// Known read-only-compatible features that do not matter for free space: copies of the superblock in few groups, large
/// files, huge files, descriptors with checksums, many links, extra inode fields, quotas, read-only, projects, shared
/// blocks, verity, orphans.
const RO_KNOWN: u32 =
    RO_CHECKSUMS | 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x1000 | 0x2000 | 0x4000 | 0x8000 | 0x1_0000;
/// `lazy_bg`: an old feature that gives uninitialised groups another meaning.
const COMPAT_LAZY: u32 = 0x40;

/// The number of groups of 128 TiB in blocks of 4 KiB: no volume is larger.
const GROUPS_MAX: u64 = 1 << 20;

/// The fields of the superblock that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) block: u64,
    pub(super) blocks: u64,
    pub(super) first: u64,
    pub(super) per_group: u64,
    pub(super) groups: u64,
    pub(super) descriptor: usize,
    /// Blocks of a group's table of inodes.
    pub(super) inodes: u64,
    /// Blocks that a copy of the superblock takes at the beginning of a group that has one.
    pub(super) copy: u64,
    pub(super) seed: u32,
}

impl Geometry {
    /// Checks a superblock.
    pub(super) fn of(sb: &[u8; SUPERBLOCK_BYTES], volume: u64) -> Result<Self, Doubt> {
        if u16_at(sb, 0x38) != MAGIC {
            return Err(Doubt::Unknown);
        }
        let (incompat, ro) = (u32_at(sb, 0x60), u32_at(sb, 0x64));
        let state = u16_at(sb, 0x3A);
        if ro & RO_CHECKSUMS != 0 && crc(!0, &sb[..0x3FC]) != u32_at(sb, 0x3FC) {
            return Err(Doubt::Damaged("the superblock's checksum is wrong".into()));
        }
        if incompat & RECOVER != 0 || state & VALID == 0 || state & ERRORS != 0 {
            return Err(Doubt::Unclean);
        }
        if ro & RO_BIGALLOC != 0 {
            return Err(Doubt::Feature("allocates clusters of several blocks".into()));
        }
        if ro & RO_CHECKSUMS == 0 || sb[0x175] != CRC32C {
            return Err(Doubt::Feature("has no checksums of its metadata".into()));
        }
        let unknown = (u32_at(sb, 0x5C) & COMPAT_LAZY, incompat & !KNOWN, ro & !RO_KNOWN);
        if unknown != (0, 0, 0) {
            let (compat, incompat, ro) = unknown;
            let what = format!(
                "has features that are not known here (compatible {compat:#x}, incompatible {incompat:#x}, read-only {ro:#x})"
            );
            return Err(Doubt::Feature(what));
        }
        let seed = if incompat & SEED != 0 { u32_at(sb, 0x270) } else { crc(!0, &sb[0x68..0x78]) };
        let wide = incompat & WIDE != 0;
        let descriptor = if wide { usize::from(u16_at(sb, 0xFE)) } else { 32 };
        let high = if wide { u64::from(u32_at(sb, 0x150)) << 32 } else { 0 };
        let (log, per_group) = (u32_at(sb, 0x18), u64::from(u32_at(sb, 0x20)));
        let nonsense = Doubt::Damaged("the superblock makes no sense".into());
        if log > 6 || !(32..=1024).contains(&descriptor) || !descriptor.is_power_of_two() || (wide && descriptor < 64) {
            return Err(nonsense);
        }
        let block = 1024 << log;
        let blocks = high | u64::from(u32_at(sb, 4));
        let first = u64::from(u32_at(sb, 0x14));
        let fits = blocks.checked_mul(block).is_some_and(|bytes| bytes <= volume);
        if !fits || first != u64::from(block == 1024) || blocks <= first {
            return Err(nonsense);
        }
        if !(256..=block * 8).contains(&per_group) || !per_group.is_multiple_of(8) {
            return Err(nonsense);
        }
        let groups = (blocks - first).div_ceil(per_group);
        if groups > GROUPS_MAX {
            return Err(nonsense);
        }
        let inode_bytes = u64::from(u32_at(sb, 0x28)) * u64::from(u16_at(sb, 0x58));
        let table = (groups * descriptor as u64).div_ceil(block);
        let copy = 1 + table + u64::from(u16_at(sb, 0xCE));
        Ok(Self {
            block,
            blocks,
            first,
            per_group,
            groups,
            descriptor,
            inodes: inode_bytes.div_ceil(block),
            copy,
            seed,
        })
    }

    /// The blocks of a group.
    pub(super) fn group(&self, number: u64) -> Range<u64> {
        let start = self.first + number * self.per_group;
        start..(start + self.per_group).min(self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_superblock_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), SUPERBLOCK_BYTES), valid in any::<bool>()) {
            let mut sb: [u8; SUPERBLOCK_BYTES] = bytes.try_into().unwrap();
            if valid {
                sb[0x38..0x3A].copy_from_slice(&MAGIC.to_le_bytes());
                sb[0x3A..0x3C].copy_from_slice(&VALID.to_le_bytes());
                sb[0x5C..0x68].copy_from_slice(&[0, 0, 0, 0, 0xC2, 0, 0, 0, 0, 4, 0, 0]);
                // Blocks of 4 KiB from the first one on, in groups of 32768; some of the random rest makes sense then.
                sb[0x14..0x24].copy_from_slice(&[0, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 0, 0x80, 0, 0]);
                sb[7] = 0;
                sb[0xFE..0x100].copy_from_slice(&[64, 0]);
                sb[0x150..0x154].fill(0);
                sb[0x175] = CRC32C;
                let sum = crc(!0, &sb[..0x3FC]);
                sb[0x3FC..].copy_from_slice(&sum.to_le_bytes());
            }
            let read = Geometry::of(&sb, 1 << 40);
            prop_assert!(!valid || read.is_ok() || u32_at(&sb, 4) == 0, "{:?}", read);
        }
    }
}
