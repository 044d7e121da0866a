//! A small ext4 file system, damaged, with checksums that are then made right again: without that, nearly all damage
//! would fail the first check.

use std::io;

use milkrun_agent::device::free_space::FreeSpace;
use milkrun_agent::device::{Source, SourceError};

/// Two groups of 8 MiB, in blocks of 1 KiB.
const VOLUME: u64 = 16 << 20;
const BLOCK: usize = 1024;
/// Blocks of a seed behind its first byte: superblock, descriptors, the bitmaps of both groups. In the volume they
/// begin at the second block.
const BLOCKS: usize = 4;
const PER_GROUP: u32 = 8192;

/// The parts whose checksums or counts are made right: bits of the first byte.
const SUPERBLOCK: u8 = 1;
const DESCRIPTORS: u8 = 2;
const BITMAPS: u8 = 4;
const COUNTS: u8 = 8;

/// A volume that has these bytes at its beginning, and zeros behind.
struct Volume(Vec<u8>);

impl Source for Volume {
    fn len(&self) -> u64 {
        VOLUME
    }

    fn sector_bytes(&self) -> u32 {
        512
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset + buf.len() as u64 > VOLUME {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buf.fill(0);
        let known = self.0.get(usize::try_from(offset).map_err(io::Error::other)?..).unwrap_or(&[]);
        let n = known.len().min(buf.len());
        buf[..n].copy_from_slice(&known[..n]);
        Ok(())
    }

    fn finish(&self) -> Result<Vec<String>, SourceError> {
        Ok(Vec::new())
    }
}

/// The kernel's `crc32c`, which inverts neither the seed nor the result.
fn crc(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

fn put(b: &mut [u8], at: usize, bytes: &[u8]) {
    b[at..at + bytes.len()].copy_from_slice(bytes);
}

/// One seed whose second group has no bitmap yet, and one whose second group has one.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    [true, false].map(seed).into()
}

fn seed(fresh: bool) -> Vec<u8> {
    let mut out = vec![0; 1 + BLOCKS * BLOCK];
    let (flags, blocks) = out.split_at_mut(1);
    flags[0] = SUPERBLOCK | DESCRIPTORS | BITMAPS | COUNTS;
    let (sb, rest) = blocks.split_at_mut(BLOCK);
    let (descriptors, bitmaps) = rest.split_at_mut(BLOCK);
    put(sb, 0x04, &(2 * PER_GROUP).to_le_bytes());
    put(sb, 0x14, &1_u32.to_le_bytes());
    put(sb, 0x20, &PER_GROUP.to_le_bytes());
    put(sb, 0x28, &64_u32.to_le_bytes());
    put(sb, 0x38, &0xEF53_u16.to_le_bytes());
    put(sb, 0x3A, &1_u16.to_le_bytes());
    put(sb, 0x58, &256_u16.to_le_bytes());
    // Extents, 64 bits, flexible groups; metadata checksums.
    put(sb, 0x60, &0x2C0_u32.to_le_bytes());
    put(sb, 0x64, &0x400_u32.to_le_bytes());
    put(sb, 0xFE, &64_u16.to_le_bytes());
    sb[0x175] = 1;
    for (d, number) in descriptors.chunks_mut(64).take(2).zip(0_u32..) {
        put(d, 0, &(3 + number).to_le_bytes());
        put(d, 4, &(5 + number).to_le_bytes());
        put(d, 8, &(7 + 16 * number).to_le_bytes());
        if number == 1 && fresh {
            put(d, 0x12, &2_u16.to_le_bytes());
        }
    }
    bitmaps[..64].fill(0xFF);
    if !fresh {
        bitmaps[BLOCK + 8..BLOCK + 20].fill(0xA5);
    }
    // The last block of the second group lies behind the end.
    bitmaps[2 * BLOCK - 1] = 0x80;
    out
}

/// Makes the checksums and counts of a damaged file system right.
fn fix_checksums(flags: u8, blocks: &mut [u8]) {
    let (sb, rest) = blocks.split_at_mut(BLOCK);
    let (descriptors, bitmaps) = rest.split_at_mut(BLOCK);
    let seed = crc(!0, &sb[0x68..0x78]);
    for ((d, bits), number) in descriptors.chunks_mut(64).zip(bitmaps.chunks(BLOCK)).zip(0_u32..) {
        if flags & BITMAPS != 0 {
            let [a, b, c, e] = crc(seed, bits).to_le_bytes();
            put(d, 0x18, &[a, b]);
            put(d, 0x38, &[c, e]);
        }
        if flags & COUNTS != 0 {
            let free = bits.iter().map(|b| b.count_zeros()).sum::<u32>();
            put(d, 0x0C, &u16::try_from(free).unwrap_or(0).to_le_bytes());
        }
        if flags & DESCRIPTORS != 0 {
            let sum = crc(crc(crc(crc(seed, &number.to_le_bytes()), &d[..0x1E]), &[0, 0]), &d[0x20..]);
            put(d, 0x1E, &u16::try_from(sum & 0xFFFF).unwrap_or(0).to_le_bytes());
        }
    }
    if flags & SUPERBLOCK != 0 {
        let sum = crc(!0, &sb[..0x3FC]);
        put(sb, 0x3FC, &sum.to_le_bytes());
    }
}

/// The number of free bytes, if the file system is accepted.
pub(crate) fn free_bytes(input: &[u8]) -> Option<u64> {
    let (flags, blocks) = input.split_first()?;
    let mut volume = vec![0; (1 + BLOCKS) * BLOCK];
    let n = blocks.len().min(BLOCKS * BLOCK);
    volume[BLOCK..BLOCK + n].copy_from_slice(&blocks[..n]);
    fix_checksums(*flags, &mut volume[BLOCK..]);
    let free = FreeSpace::of(&Volume(volume)).ok()?.bytes();
    assert!(free < VOLUME, "all of it is free, with its own metadata");
    Some(free)
}
