//! The block bitmaps of ext4. Sources: Documentation/filesystems/ext4 of the Linux kernel ("Super Block", "Block Group
//! Descriptors", "Block and inode Bitmaps", "Checksums"), and `ext4_init_block_bitmap` for groups that have no bitmap
//! yet.
//!
//! A file system is used only if it has metadata checksums, as each one has that was made since e2fsprogs 1.44 (2018).
//! The checksums of the superblock, of each group descriptor and of each bitmap are checked, so that a torn copy does
//! not pass for a clean one.

mod group;
mod superblock;

use std::ops::Range;

use milkrun_repository::chunk::PAGE;

use super::{Doubt, FreeSpace};
use crate::buffer::{Buffer, BufferPool};
use crate::device::{Piece, Source};
use crate::ranges;
use group::Group;
use superblock::Geometry;

/// Where the superblock lies, and how long it is.
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;

/// Bitmaps that are read at once.
const BITMAPS: usize = 64;
/// Bytes of descriptors that are read at once.
const DESCRIPTORS: usize = 1 << 20;

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
    ranges::merge(&mut own);
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
    }
}
