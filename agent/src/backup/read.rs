//! Reading a region: all ranges that may hold data, or the dirty ranges.

use std::io;
use std::ops::Range;

use milkrun_repository::chunk::PAGE;
use rayon::prelude::*;

use super::region_bytes::RegionBytes;
use crate::buffer::Buffer;
use crate::device::{Piece, Source};
use crate::ranges;

/// The length of one read: long enough to cost little per byte, short enough that a region keeps many reads in flight.
const READ_BYTES: usize = 1 << 20;

/// Where a read failed, and why.
pub(super) type Failed = (u64, io::Error);

/// Reads these ranges of a region of `len` bytes at `offset` into a buffer, one behind the other. The ranges are in
/// order and do not touch. Also returns how many bytes were read.
pub(super) fn read_ranges(
    source: &dyn Source,
    mut buffer: Buffer,
    offset: u64,
    len: usize,
    ranges: Vec<Range<usize>>,
) -> Result<(RegionBytes, u64), Failed> {
    let pieces = range_pieces(&mut buffer, offset, &ranges);
    let read = pieces.iter().map(|(_, p)| p.len() as u64).sum();
    source.read_pieces(pieces)?;
    Ok((RegionBytes::parts(buffer, ranges, len), read))
}

/// The reads for these ranges of a region at `offset`: they fill the buffer one behind the other.
pub(super) fn range_pieces<'a>(buffer: &'a mut [u8], offset: u64, ranges: &[Range<usize>]) -> Vec<Piece<'a>> {
    let mut pieces: Vec<Piece<'_>> = Vec::with_capacity(ranges.len());
    let mut rest = buffer;
    for range in ranges {
        let (part, tail) = std::mem::take(&mut rest).split_at_mut(range.len());
        let start = offset + range.start as u64;
        pieces.extend(part.chunks_mut(READ_BYTES).enumerate().map(|(i, p)| (start + (i * READ_BYTES) as u64, p)));
        rest = tail;
    }
    pieces
}

/// Fills a region's buffer: ranges with data are read in parallel pieces, the rest is zeroed. Also returns how many
/// bytes were read.
pub(super) fn read_region(
    source: &dyn Source,
    mut buffer: Buffer,
    offset: u64,
    first: Option<(u64, u64)>,
) -> Result<(RegionBytes, u64), Failed> {
    let mut pieces: Vec<Piece<'_>> = Vec::new();
    let mut at = 0;
    let ranges = data_ranges(source, offset, buffer.len(), first)?;
    let mut rest: &mut [u8] = &mut buffer;
    for range in ranges {
        let (gap, tail) = std::mem::take(&mut rest).split_at_mut(range.start - at);
        let (part, tail) = tail.split_at_mut(range.len());
        gap.fill(0);
        let start = offset + range.start as u64;
        pieces.extend(part.chunks_mut(READ_BYTES).enumerate().map(|(i, p)| (start + (i * READ_BYTES) as u64, p)));
        (rest, at) = (tail, range.end);
    }
    rest.fill(0);
    let read = pieces.iter().map(|(_, p)| p.len() as u64).sum();
    let failed = pieces.into_par_iter().filter_map(|(at, piece)| source.read_at(piece, at).err().map(|e| (at, e)));
    // If several parallel reads fail, the lowest offset is reported: it says where the damage begins.
    match failed.min_by_key(|(at, _)| *at) {
        Some(first) => Err(first),
        None => Ok((RegionBytes::whole(buffer), read)),
    }
}

/// The ranges of a region of `len` bytes at `offset` that may hold data: whole pages, in order, not touching each
/// other. `first` is the first such range at or after `offset`.
fn data_ranges(
    source: &dyn Source,
    offset: u64,
    len: usize,
    first: Option<(u64, u64)>,
) -> Result<Vec<Range<usize>>, Failed> {
    let within = |at: u64| usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX).min(len);
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut next = first;
    while let Some((start, stop)) = next {
        // Whole pages are read, whatever the file system's granularity: O_DIRECT and prediction both need them.
        let range = within(start) / PAGE * PAGE..within(stop).next_multiple_of(PAGE).min(len);
        if within(start) == len {
            break;
        }
        let end = range.end;
        ranges::push(&mut ranges, range);
        if end == len {
            break;
        }
        let at = offset + end as u64;
        next = source.next_data(at).map_err(|e| (at, e))?;
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::buffer::BufferPool;
    use crate::device::SourceError;

    const LEN: usize = 40 * PAGE;

    /// A file with holes: the byte ranges that have data.
    struct Sparse(Vec<Range<usize>>);

    impl Sparse {
        fn byte(&self, at: usize) -> u8 {
            let data = self.0.iter().any(|r| r.contains(&at));
            if data { (at % 251) as u8 + 1 } else { 0 }
        }
    }

    impl Source for Sparse {
        fn len(&self) -> u64 {
            LEN as u64
        }
        fn sector_bytes(&self) -> u32 {
            0
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            assert!(offset.is_multiple_of(PAGE as u64) && buf.len().is_multiple_of(PAGE), "reads are of whole pages");
            (0..buf.len()).for_each(|n| buf[n] = self.byte(offset as usize + n));
            Ok(())
        }
        fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
            let next = self.0.iter().find(|r| r.end as u64 > offset);
            Ok(next.map(|r| (offset.max(r.start as u64), r.end as u64)))
        }
        fn finish(&self) -> Result<Vec<String>, SourceError> {
            Ok(Vec::new())
        }
    }

    proptest! {
        #[test]
        fn holes_are_zeros_and_pages_with_data_are_read(parts in proptest::collection::vec((0usize..3 * PAGE, 1usize..3 * PAGE), 0..12), first in 0usize..20, pages in 1usize..20) {
            let mut at = 0;
            let parts = parts.into_iter().map(|(gap, len)| { let start = at + gap; at = start + len; start..at.min(LEN) });
            let sparse = Sparse(parts.filter(|r| r.start < r.end).collect());
            let (offset, len) = (first * PAGE, pages * PAGE);
            let mut buffer = BufferPool::new(len).take(len);
            // Left over from earlier use.
            buffer.fill(0xaa);
            let data = sparse.next_data(offset as u64).unwrap();
            let (region, read) = read_region(&sparse, buffer, offset as u64, data).map_err(|e| e.1).unwrap();
            let wanted: Vec<u8> = (offset..offset + len).map(|at| sparse.byte(at)).collect();
            prop_assert!(region.at(0..len) == wanted, "other bytes");
            let with_data = |page: usize| sparse.0.iter().any(|r| r.start < (page + 1) * PAGE && page * PAGE < r.end);
            prop_assert_eq!(read as usize, (first..first + pages).filter(|&page| with_data(page)).count() * PAGE);
        }
    }
}
