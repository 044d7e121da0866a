//! Reading a region: all that may hold data, or what a list of changes names.

use std::io;
use std::ops::Range;

use milkrun_repository::chunk::PAGE;
use rayon::prelude::*;

use super::held::Held;
use crate::buffer::Buffer;
use crate::device::{Piece, Source};

/// One read: long enough to cost little per byte, short enough that a region keeps many in flight.
const READ_BYTES: usize = 1 << 20;

/// Where a read failed, and why.
pub(super) type Failed = (u64, io::Error);

/// Reads these parts of a region of `len` bytes at `offset`, which are apart from each other and in order, side by side into a
/// buffer that has room for just them. Returns how much was read, too.
pub(super) fn read_named(
    source: &dyn Source,
    mut buffer: Buffer,
    offset: u64,
    len: usize,
    named: Vec<Range<usize>>,
) -> Result<(Held, u64), Failed> {
    let mut pieces: Vec<Piece<'_>> = Vec::with_capacity(named.len());
    let mut rest: &mut [u8] = &mut buffer;
    for range in &named {
        let (part, tail) = std::mem::take(&mut rest).split_at_mut(range.len());
        let start = offset + range.start as u64;
        pieces.extend(part.chunks_mut(READ_BYTES).enumerate().map(|(i, p)| (start + (i * READ_BYTES) as u64, p)));
        rest = tail;
    }
    let read = pieces.iter().map(|(_, p)| p.len() as u64).sum();
    source.read_pieces(pieces)?;
    Ok((Held::parts(buffer, named, len), read))
}

/// Fills a region's buffer: ranges with data are read in parallel parts, the rest is zeroed. Returns how much was read.
pub(super) fn read_region(
    source: &dyn Source,
    mut buffer: Buffer,
    offset: u64,
    first: Option<(u64, u64)>,
) -> Result<(Held, u64), Failed> {
    let end = offset + buffer.len() as u64;
    let mut read = 0;
    let mut at = offset;
    let mut next = first;
    while at < end {
        let (start, stop) = match next {
            Some((start, stop)) if start < end => (start.max(at), stop.min(end)),
            _ => (end, end),
        };
        // Whole pages are read, whatever the file system's granule: O_DIRECT and prediction both want them.
        let page = PAGE as u64;
        let start = if start < end { start - (start - offset) % page } else { end };
        let stop = (offset + (stop - offset).next_multiple_of(page)).min(end);
        let within = |at: u64| usize::try_from(at - offset).unwrap_or(usize::MAX);
        buffer[within(at)..within(start)].fill(0);
        if start < end {
            let part = &mut buffer[within(start)..within(stop)];
            read += part.len() as u64;
            let failed = part.par_chunks_mut(READ_BYTES).enumerate().filter_map(|(i, piece)| {
                let at = start + (i * READ_BYTES) as u64;
                source.read_at(piece, at).err().map(|e| (at, e))
            });
            // Of several reads that fail side by side, the first on the volume is the one that tells where it begins.
            if let Some(first) = failed.min_by_key(|(at, _)| *at) {
                return Err(first);
            }
        }
        at = stop.max(start);
        if at < end {
            next = source.next_data(at).map_err(|e| (at, e))?;
        }
    }
    Ok((Held::whole(buffer), read))
}
