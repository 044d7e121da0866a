//! The block bitmaps of ext4. Sources: Documentation/filesystems/ext4 of the Linux kernel ("Super Block", "Block Group
//! Descriptors", "Block and inode Bitmaps", "Checksums"), and `ext4_init_block_bitmap` for groups that have no bitmap
//! yet.
//!
//! A file system is used only if it has metadata checksums, as each one has that was made since e2fsprogs 1.44 (2018).
//! The checksums of the superblock, of each group descriptor and of each bitmap are checked, so that a torn copy does
//! not pass for a clean one.

use std::ops::Range;

use milkrun_repository::chunk::PAGE;

use super::{Doubt, FreeSpace};
use crate::buffer::{Buffer, BufferPool};
use crate::device::{Piece, Source};

/// Where the superblock lies, and how long it is.
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
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

/// `bg_flags`: the group has no bitmap yet.
const BLOCK_UNINIT: u16 = 2;
/// Bitmaps that are read at once.
const BITMAPS: usize = 64;
/// Bytes of descriptors that are read at once.
const DESCRIPTORS: usize = 1 << 20;
/// The number of groups of 128 TiB in blocks of 4 KiB: no volume is larger.
const GROUPS_MAX: u64 = 1 << 20;

/// The kernel's `crc32c`, which inverts neither the seed nor the result.
fn crc(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// The fields of the superblock that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Geometry {
    block: u64,
    blocks: u64,
    first: u64,
    per_group: u64,
    groups: u64,
    descriptor: usize,
    /// Blocks of a group's table of inodes.
    inodes: u64,
    /// Blocks that a copy of the superblock takes at the beginning of a group that has one.
    copy: u64,
    seed: u32,
}

impl Geometry {
    /// Checks a superblock.
    fn of(sb: &[u8; SUPERBLOCK_BYTES], volume: u64) -> Result<Self, Doubt> {
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
    fn group(&self, number: u64) -> Range<u64> {
        let start = self.first + number * self.per_group;
        start..(start + self.per_group).min(self.blocks)
    }
}

/// A group's descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    bitmap: u64,
    inode_bitmap: u64,
    inode_table: u64,
    /// It has no bitmap yet: only the file system's own metadata lies in the group.
    fresh: bool,
    /// Free blocks.
    free: u32,
    checksum: u32,
    /// Whether the descriptor has the whole checksum, or only its lower half.
    whole_checksum: bool,
}

impl Group {
    /// Checks a descriptor.
    fn of(d: &[u8], number: u64, g: &Geometry) -> Result<Self, Doubt> {
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
    fn has(&self, bitmap: &[u8], g: &Geometry) -> bool {
        let bytes = usize::try_from(g.per_group / 8).unwrap_or(usize::MAX);
        let sum = crc(g.seed, &bitmap[..bytes]);
        if self.whole_checksum { sum == self.checksum } else { sum & 0xFFFF == self.checksum }
    }
}

/// Reads the whole pages around some bytes. Returns the buffer, and where the bytes begin in it.
fn read(source: &dyn Source, pool: &BufferPool, at: u64, len: usize) -> Result<(Buffer, usize), Doubt> {
    let page = PAGE as u64;
    let start = at - at % page;
    let end = (at + len as u64).next_multiple_of(page).min(source.len());
    let mut buffer = pool.take(usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX));
    let within = usize::try_from(at - start).unwrap_or(usize::MAX);
    if buffer.len() < within + len {
        return Err(Doubt::Damaged("it is longer than the volume".into()));
    }
    source.read_at(&mut buffer, start).map_err(|source| Doubt::Read { at: start, source })?;
    Ok((buffer, within))
}

/// The superblock, if it can be read.
pub(super) fn superblock(source: &dyn Source) -> Option<Vec<u8>> {
    let pool = BufferPool::new(2 * PAGE);
    let (buffer, at) = read(source, &pool, SUPERBLOCK, SUPERBLOCK_BYTES).ok()?;
    Some(buffer[at..at + SUPERBLOCK_BYTES].to_vec())
}

/// Finds the free space of a volume.
///
/// # Errors
/// [`Doubt`].
pub(super) fn free_space(source: &dyn Source) -> Result<FreeSpace, Doubt> {
    if source.len() < SUPERBLOCK + SUPERBLOCK_BYTES as u64 {
        return Err(Doubt::Unknown);
    }
    let pool = BufferPool::new(DESCRIPTORS + 2 * PAGE);
    let (buffer, at) = read(source, &pool, SUPERBLOCK, SUPERBLOCK_BYTES)?;
    let sb = buffer[at..at + SUPERBLOCK_BYTES].try_into().map_err(|_| Doubt::Unknown)?;
    let g = Geometry::of(sb, source.len())?;
    let superblock = sb.to_vec();
    drop(buffer);
    let groups = groups(source, &pool, &g)?;
    drop(pool);
    let own = if groups.iter().any(|group| group.fresh) { own_blocks(&groups, &g) } else { Vec::new() };
    let bitmap = usize::try_from(g.block).unwrap_or(usize::MAX).max(PAGE);
    let pool = BufferPool::new(BITMAPS * bitmap);
    let mut free = FreeSpace { superblock, ..FreeSpace::default() };
    for (batch, first) in groups.chunks(BITMAPS).zip((0..).step_by(BITMAPS)) {
        let mut buffer = pool.take(BITMAPS * bitmap);
        let mut pieces: Vec<Piece<'_>> = Vec::with_capacity(batch.len());
        for (group, piece) in batch.iter().zip(buffer.chunks_mut(bitmap)).filter(|(group, _)| !group.fresh) {
            let at = group.bitmap * g.block;
            let at = at - at % PAGE as u64;
            let len = usize::try_from(source.len() - at).unwrap_or(usize::MAX).min(piece.len());
            pieces.push((at, &mut piece[..len]));
        }
        source.read_pieces(pieces).map_err(|(at, source)| Doubt::Read { at, source })?;
        for ((group, piece), number) in batch.iter().zip(buffer.chunks(bitmap)).zip(first..) {
            let blocks = g.group(number);
            if group.fresh {
                if free_of_fresh(blocks, &own, &g, &mut free) > u64::from(group.free) {
                    return Err(miscounted(number));
                }
                continue;
            }
            let within = usize::try_from(group.bitmap * g.block % PAGE as u64).unwrap_or(0);
            let bits = &piece[within..within + usize::try_from(g.block).unwrap_or(usize::MAX)];
            if !group.has(bits, &g) {
                return Err(Doubt::Damaged(format!("the checksum of group {number}'s bitmap is wrong")));
            }
            // The descriptor's number of free blocks must be the one that was found in the bitmap.
            if free_of_bitmap(bits, blocks, g.block, &mut free) != u64::from(group.free) {
                return Err(miscounted(number));
            }
        }
    }
    Ok(free.done())
}

fn miscounted(group: u64) -> Doubt {
    Doubt::Damaged(format!("group {group} has another number of free blocks than it says"))
}

/// Reads and checks all descriptors.
fn groups(source: &dyn Source, pool: &BufferPool, g: &Geometry) -> Result<Vec<Group>, Doubt> {
    let table = (g.first + 1) * g.block;
    let mut groups = Vec::with_capacity(usize::try_from(g.groups).unwrap_or(0));
    let each = DESCRIPTORS / g.descriptor;
    while (groups.len() as u64) < g.groups {
        let count = usize::try_from(g.groups - groups.len() as u64).unwrap_or(usize::MAX).min(each);
        let at = table + (groups.len() * g.descriptor) as u64;
        let (buffer, within) = read(source, pool, at, count * g.descriptor)?;
        for descriptor in buffer[within..within + count * g.descriptor].chunks(g.descriptor) {
            groups.push(Group::of(descriptor, groups.len() as u64, g)?);
        }
    }
    Ok(groups)
}

/// The blocks of bitmaps and inode tables of all groups: with flexible groups they may lie in other groups. In order,
/// not touching each other.
fn own_blocks(groups: &[Group], g: &Geometry) -> Vec<Range<u64>> {
    let of = |group: &Group| {
        let single = |at: u64| at..at + 1;
        [single(group.bitmap), single(group.inode_bitmap), group.inode_table..group.inode_table + g.inodes]
    };
    let mut own: Vec<Range<u64>> = groups.iter().flat_map(of).collect();
    own.sort_unstable_by_key(|r| r.start);
    own.dedup_by(|next, last| {
        let joins = next.start <= last.end;
        if joins {
            last.end = last.end.max(next.end);
        }
        joins
    });
    own
}

/// Adds the free blocks of a group without a bitmap: all but the file system's own. Whether the group has a copy of the
/// superblock depends on features that are not read here, so the blocks for one always count as taken. Returns how many
/// blocks are free.
fn free_of_fresh(blocks: Range<u64>, own: &[Range<u64>], g: &Geometry, free: &mut FreeSpace) -> u64 {
    let mut at = (blocks.start + g.copy).min(blocks.end);
    let mut found = 0;
    let mut add = |from: u64, to: u64| {
        if from < to {
            found += to - from;
            free.add(from * g.block..to * g.block);
        }
    };
    for taken in &own[own.partition_point(|r| r.end <= at)..] {
        if taken.start >= blocks.end {
            break;
        }
        add(at, taken.start);
        at = at.max(taken.end).min(blocks.end);
    }
    add(at, blocks.end);
    found
}

/// Adds the free blocks of a bitmap. Returns how many blocks are free.
fn free_of_bitmap(bits: &[u8], blocks: Range<u64>, block: u64, free: &mut FreeSpace) -> u64 {
    let count = usize::try_from(blocks.end - blocks.start).unwrap_or(0);
    let taken = |n: usize| bits[n / 8] >> (n % 8) & 1 == 1;
    let (mut n, mut found) = (0, 0);
    while n < count {
        // Whole bytes at once: nearly all are either empty or full.
        match bits[n / 8] {
            0xFF if n.is_multiple_of(8) => n += 8,
            _ if taken(n) => n += 1,
            _ => {
                let start = n;
                while n < count && !taken(n) {
                    n += if n.is_multiple_of(8) && bits[n / 8] == 0 { 8 } else { 1 };
                }
                let at = |n: usize| (blocks.start + n.min(count) as u64) * block;
                free.add(at(start)..at(n));
                found += (n.min(count) - start) as u64;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bitmap_gives_the_blocks_whose_bit_is_not_set(
            runs in proptest::collection::vec((any::<bool>(), 1..700_usize), 1..40),
        ) {
            let mut taken: Vec<bool> = runs.iter().flat_map(|&(t, n)| vec![t; n]).collect();
            let count = taken.len();
            taken.resize(count.next_multiple_of(8), true);
            let bits: Vec<u8> = taken.chunks(8).map(|c| c.iter().rev().fold(0, |b, &t| b << 1 | u8::from(t))).collect();
            let mut free = FreeSpace { shortest: 0, ..FreeSpace::default() };
            let found = free_of_bitmap(&bits, 10..10 + count as u64, PAGE as u64, &mut free);
            prop_assert_eq!(found, taken[..count].iter().filter(|&&t| !t).count() as u64);
            let free = free.done();
            for (n, &t) in taken.iter().enumerate().take(count) {
                let at = (10 + n as u64) * PAGE as u64;
                prop_assert_eq!(free.ranges.iter().any(|r| r.contains(&at)), !t, "block {}", n);
            }
            prop_assert_eq!(free.bytes(), taken[..count].iter().filter(|&&t| !t).count() as u64 * PAGE as u64);
        }

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
