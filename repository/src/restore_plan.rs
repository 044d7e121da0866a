//! From the extents of a volume to ranged reads. Planning is a pure function, and the plan can be printed.
//!
//! A window of the volume is planned at once. Within it, reads go in pack order, neighbours are read together over gaps of up to
//! [`Limits::gap_max`], a chunk that is needed in several places is read once, and holes are never read.

use std::collections::HashMap;

use crate::id::{ChunkId, PackId};
use crate::pack::Place;
use crate::volume_map::{Leaf, MapRef};

/// Leaves that are planned together: 512 MiB of volume. A larger window finds more neighbours in packs but needs more memory.
pub const WINDOW_LEAVES: usize = 32;

/// How reads are put together.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many unwanted bytes are read to save a second request.
    pub gap_max: u64,
    /// No read is longer, unless one chunk is.
    pub range_max: u64,
    /// No read opens to more bytes, unless one chunk does. This bounds how much waits for its turn in a stream.
    pub plain_max: u64,
}

impl Limits {
    /// 256 KiB of gap, reads of up to 8 MiB that open to up to 16 MiB.
    pub const DEFAULT: Self = Self { gap_max: 256 << 10, range_max: 8 << 20, plain_max: 16 << 20 };
}

/// A part of a chunk that goes to the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// Where in the volume.
    pub volume_offset: u64,
    /// Where it begins in the chunk's plaintext.
    pub chunk_offset: u32,
    /// Bytes.
    pub len: u32,
}

/// A chunk to open, and where its parts go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedChunk {
    /// Its id, checked before a byte is written.
    pub id: ChunkId,
    /// Where it is.
    pub place: Place,
    /// Where its parts go.
    pub writes: Vec<Write>,
}

/// One ranged read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedRange {
    /// The pack.
    pub pack: PackId,
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// In the order of the pack (or of the volume, for streams).
    pub chunks: Vec<PlannedChunk>,
}

/// Plans a window of a volume: `leaves` with their offsets in the volume, in order.
///
/// With `in_order` the ranges keep the order of the volume (for targets that can't seek), and only neighbours in both
/// are read together.
pub fn plan(leaves: &[(u64, Leaf)], limits: Limits, in_order: bool) -> Vec<PlannedRange> {
    let mut chunks: Vec<PlannedChunk> = Vec::new();
    let mut known: HashMap<MapRef, usize> = HashMap::new();
    for (begin, leaf) in leaves {
        // A fragmented volume uses a chunk in many pieces: the chunk is looked up once in each leaf.
        let mut planned: Vec<Option<usize>> = vec![None; leaf.chunks().len()];
        let mut volume_offset = *begin;
        for (len, of) in leaf.pieces() {
            if let Some((number, chunk_offset)) = of {
                let chunk = leaf.chunks()[number];
                let mut another = || {
                    let MapRef { id, place } = chunk;
                    chunks.push(PlannedChunk { id, place, writes: Vec::with_capacity(1) });
                    chunks.len() - 1
                };
                let at = if in_order {
                    another()
                } else {
                    *planned[number].get_or_insert_with(|| *known.entry(chunk).or_insert_with(another))
                };
                chunks[at].writes.push(Write { volume_offset, chunk_offset, len });
            }
            volume_offset += u64::from(len);
        }
    }
    if !in_order {
        chunks.sort_by_key(|c| (c.place.pack, c.place.offset));
    }
    let mut ranges: Vec<PlannedRange> = Vec::new();
    let mut joining = Joining::new(limits);
    for chunk in chunks {
        match ranges.last_mut() {
            Some(last) if joining.goes_with_the_last(&chunk.place) => {
                last.end = chunk.place.end();
                last.chunks.push(chunk);
            }
            _ => {
                joining.begin(&chunk.place);
                let (start, end) = (u64::from(chunk.place.offset), chunk.place.end());
                ranges.push(PlannedRange { pack: chunk.place.pack, start, end, chunks: vec![chunk] });
            }
        }
    }
    ranges
}

/// How many reads [`plan`] makes for these chunks in pack order, and how many bytes they open to.
pub fn count(mut places: Vec<Place>, limits: Limits) -> (u64, u64) {
    places.sort_unstable_by_key(|p| (p.pack, p.offset, p.slot));
    places.dedup_by_key(|p| (p.pack, p.slot));
    let mut joining = Joining::new(limits);
    let mut reads = 0;
    for place in &places {
        if !joining.goes_with_the_last(place) {
            joining.begin(place);
            reads += 1;
        }
    }
    (reads, places.iter().map(|p| u64::from(p.plain_len)).sum())
}

/// Which chunks are read together.
struct Joining {
    limits: Limits,
    /// The range that is open: its pack, its start and end, and how many bytes it opens to.
    open: Option<(PackId, u64, u64, u64)>,
}

impl Joining {
    fn new(limits: Limits) -> Self {
        Self { limits, open: None }
    }

    /// Whether the next chunk is read together with those before it. If so, it is added to their range.
    fn goes_with_the_last(&mut self, place: &Place) -> bool {
        let Some((pack, start, end, plain)) = &mut self.open else { return false };
        let (from, to, all) = (u64::from(place.offset), place.end(), *plain + u64::from(place.plain_len));
        let goes = *pack == place.pack
            && from >= *end
            && from - *end <= self.limits.gap_max
            && to - *start <= self.limits.range_max
            && all <= self.limits.plain_max;
        if goes {
            (*end, *plain) = (to, all);
        }
        goes
    }

    fn begin(&mut self, place: &Place) {
        self.open = Some((place.pack, u64::from(place.offset), place.end(), u64::from(place.plain_len)));
    }
}

impl std::fmt::Display for PlannedRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}..{}: {} chunks", self.pack, self.start, self.end, self.chunks.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chunk::codec::Codec;
    use crate::volume_map::Extent;

    fn extent(pack: u8, slot: u32, from: u32, len: u32) -> Extent {
        let id = [[pack; 16], [u8::try_from(slot).unwrap(); 16]].concat();
        let id = ChunkId::from_bytes(id.try_into().unwrap());
        let pack = PackId::from_bytes([pack; 16]);
        let (sealed_len, plain_len) = (1000, 1000);
        let place = Place { pack, slot, offset: 64 + slot * 1000, sealed_len, plain_len, codec: Codec::Raw };
        Extent::Data { len, chunk_offset: from, id, place, pages: None }
    }

    #[test]
    fn a_chunk_that_is_needed_twice_is_read_once() {
        let first = [extent(1, 0, 0, 100), Extent::Hole { len: 50 }, extent(1, 0, 100, 100)];
        let leaves = [(0, first.into_iter().collect()), (250, [extent(1, 0, 0, 100)].into_iter().collect())];
        let ranges = plan(&leaves, Limits::DEFAULT, false);
        assert_eq!(ranges.len(), 1);
        assert_eq!(ranges[0].chunks.len(), 1);
        let writes: Vec<u64> = ranges[0].chunks[0].writes.iter().map(|w| w.volume_offset).collect();
        assert_eq!(writes, [0, 150, 250]);
        assert_eq!((ranges[0].start, ranges[0].end), (64, 1064));
    }

    proptest! {
        #[test]
        fn every_byte_is_planned_once(
            parts in proptest::collection::vec((0u8..4, 0u32..50, any::<bool>(), 0u32..900, 1u32..=100), 0..200),
            in_a_leaf in 1usize..100,
            in_order: bool,
        ) {
            let mut at = 0;
            let mut extents = Vec::new();
            for (pack, slot, hole, from, len) in parts {
                let e = if hole { Extent::Hole { len: 7 } } else { extent(pack, slot, from, len) };
                extents.push((at, e));
                at += u64::from(e.len());
            }
            let limits = Limits { gap_max: 1500, range_max: 5000, plain_max: 4000 };
            let leaves = extents.chunks(in_a_leaf).map(|part| (part[0].0, part.iter().map(|&(_, e)| e).collect()));
            let ranges = plan(&leaves.collect::<Vec<_>>(), limits, in_order);
            let mut writes: Vec<(u64, u32, u32, ChunkId, Place)> = Vec::new();
            for r in &ranges {
                prop_assert!(r.end - r.start <= limits.range_max);
                for c in &r.chunks {
                    prop_assert!(u64::from(c.place.offset) >= r.start && c.place.end() <= r.end && c.place.pack == r.pack);
                    writes.extend(c.writes.iter().map(|w| (w.volume_offset, w.chunk_offset, w.len, c.id, c.place)));
                }
            }
            let order: Vec<u64> = writes.iter().map(|w| w.0).collect();
            if in_order {
                prop_assert!(order.is_sorted());
            }
            let places = extents.iter().filter_map(|&(_, e)| match e { Extent::Data { place, .. } => Some(place), Extent::Hole { .. } => None });
            if !in_order {
                let opened = ranges.iter().flat_map(|r| &r.chunks).map(|c| u64::from(c.place.plain_len)).sum();
                prop_assert_eq!(count(places.collect(), limits), (ranges.len() as u64, opened));
            }
            writes.sort_unstable_by_key(|w| w.0);
            let wanted = extents.iter().filter_map(|&(offset, e)| match e {
                Extent::Data { len, chunk_offset, id, place, .. } => Some((offset, chunk_offset, len, id, place)),
                Extent::Hole { .. } => None,
            });
            let wanted: Vec<_> = wanted.collect();
            prop_assert_eq!(writes, wanted);
        }
    }
}
