//! The descriptor of a block group: checks it, and says where the group's bitmap lies.

use super::superblock::Geometry;
use super::{crc, u16_at, u32_at};
use crate::device::free_space::Doubt;

/// `bg_flags`: the group has no bitmap yet.
const BLOCK_UNINIT: u16 = 2;

/// A group's descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) bitmap: u64,
    pub(super) inode_bitmap: u64,
    pub(super) inode_table: u64,
    /// It has no bitmap yet: only the file system's own metadata lies in the group.
    pub(super) fresh: bool,
    /// Free blocks.
    pub(super) free: u32,
    checksum: u32,
    /// Whether the descriptor has the whole checksum, or only its lower half.
    whole_checksum: bool,
}

impl Group {
    /// Checks a descriptor.
    pub(super) fn of(d: &[u8], number: u64, g: &Geometry) -> Result<Self, Doubt> {
        let low = u32::try_from(number).unwrap_or(u32::MAX);
        let mut sum = crc(crc(g.seed, &low.to_le_bytes()), &d[..0x1E]);
        sum = crc(sum, &[0, 0]);
        sum = crc(sum, &d[0x20..]);
        if sum & 0xFFFF != u32::from(u16_at(d, 0x1E)) {
            return Err(Doubt::Damaged(format!("the checksum of group {number}'s descriptor is wrong")));
        }
        let wide = d.len() >= 64;
        let block = |low: usize, high: usize| {
            u64::from(u32_at(d, low)) | if wide { u64::from(u32_at(d, high)) << 32 } else { 0 }
        };
        let high = if wide { u32::from(u16_at(d, 0x38)) << 16 } else { 0 };
        let group = Self {
            bitmap: block(0, 0x20),
            inode_bitmap: block(4, 0x24),
            inode_table: block(8, 0x28),
            fresh: u16_at(d, 0x12) & BLOCK_UNINIT != 0,
            free: u32::from(u16_at(d, 0x0C)) | if wide { u32::from(u16_at(d, 0x2C)) << 16 } else { 0 },
            checksum: u32::from(u16_at(d, 0x18)) | high,
            whole_checksum: wide,
        };
        let within = |start: u64, len: u64| start > 0 && start.checked_add(len).is_some_and(|end| end <= g.blocks);
        if !within(group.bitmap, 1) || !within(group.inode_bitmap, 1) || !within(group.inode_table, g.inodes) {
            return Err(Doubt::Damaged(format!("group {number}'s descriptor points nowhere")));
        }
        if group.fresh && number == 0 {
            return Err(Doubt::Damaged("its first group has no bitmap".into()));
        }
        Ok(group)
    }

    /// Whether the checksum of this bitmap is right.
    pub(super) fn has(&self, bitmap: &[u8], g: &Geometry) -> bool {
        let bytes = usize::try_from(g.per_group / 8).unwrap_or(usize::MAX);
        let sum = crc(g.seed, &bitmap[..bytes]);
        if self.whole_checksum { sum == self.checksum } else { sum & 0xFFFF == self.checksum }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_descriptor_makes_it_panic_or_points_behind_the_end(bytes in proptest::collection::vec(any::<u8>(), 64), wide in any::<bool>()) {
            let g = Geometry {
                block: 4096, blocks: 1 << 20, first: 0, per_group: 1 << 15, groups: 32, descriptor: 64, inodes: 512, copy: 3, seed: 7,
            };
            let mut d = bytes[..if wide { 64 } else { 32 }].to_vec();
            if wide {
                // Otherwise hardly any would be accepted.
                d[0x20..0x2C].fill(0);
            }
            for high in [2, 6, 10] {
                d[high] &= 15;
                d[high + 1] = 0;
            }
            d[0x1E..0x20].fill(0);
            let sum = crc(crc(g.seed, &5_u32.to_le_bytes()), &d);
            d[0x1E..0x20].copy_from_slice(&(sum as u16).to_le_bytes());
            match Group::of(&d, 5, &g) {
                Ok(group) => prop_assert!(group.inode_table + g.inodes <= g.blocks),
                Err(Doubt::Damaged(what)) => prop_assert!(what.contains("points nowhere"), "{}", what),
                Err(e) => prop_assert!(false, "{}", e),
            }
            d[3] ^= 1;
            prop_assert!(matches!(Group::of(&d, 5, &g), Err(Doubt::Damaged(what)) if what.contains("checksum of group 5")));
        }
    }
}
