//! The parent's extents of one region that were sent to an agent, and the parts of them that the agent kept. Pure.
//!
//! Where a range is the same as in the parent at the same place, an agent reports only its length (`kept`). The coordinator takes
//! the extents from the leaves that it sent to the agent.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::OnceLock;

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::chunk::PAGE;
use milkrun_repository::chunk::pages::PageDigest;
use milkrun_repository::id::ChunkId;
use milkrun_repository::pack::Place;
use milkrun_repository::volume_map::{Extent, Leaf, LeafBuilder, PagesAt, Renumbered};

/// How many parts of a chunk are looked at for the digests of another part.
const NEAR: usize = 8;

/// The leaves of the parent that begin in a region.
pub(super) struct ParentRegion {
    leaves: Vec<Leaf>,
    /// For each extent, in order: its offset on the volume, its length, the leaf that it is in, and its number in that leaf.
    extents: Vec<(u64, u32, usize, usize)>,
    /// The parts of each chunk. Made when digests are first asked for: ranges that are kept don't need it.
    chunks: OnceLock<HashMap<ChunkId, Chunk>>,
}

struct Chunk {
    place: Place,
    /// The parts: where they begin in the chunk (sorted), their length, and where the digests of their pages are.
    parts: Vec<(u32, u32, PagesAt)>,
}

/// A leaf that is being made, and the digests of pages that came with each of its extents.
pub(super) struct Placed<'r> {
    pub(super) leaf: LeafBuilder,
    pub(super) fresh: Vec<Option<&'r [PageDigest]>>,
    /// For each leaf of the parent that the agent was sent.
    seen: Vec<Renumbered>,
}

impl<'r> Placed<'r> {
    pub(super) fn with_capacity(extents: usize) -> Self {
        let fresh = Vec::with_capacity(extents);
        Self { leaf: LeafBuilder::with_capacity(extents), fresh, seen: Vec::new() }
    }

    pub(super) fn push(&mut self, extent: Extent, fresh: Option<&'r [PageDigest]>) {
        self.leaf.push(extent);
        self.fresh.push(fresh);
    }

    /// Adds a part of an extent of the parent, which is in the leaf of this number.
    fn keep(&mut self, (leaf, of): (usize, &Leaf), number: usize, skipped: u32, len: u32) {
        if self.seen.len() <= leaf {
            self.seen.resize_with(leaf + 1, Renumbered::default);
        }
        self.leaf.push_part(of, number, skipped, len, &mut self.seen[leaf]);
        self.fresh.push(None);
    }
}

impl ParentRegion {
    /// From leaves, each with its offset, in order.
    pub(super) fn of(leaves: impl IntoIterator<Item = (u64, Leaf)>) -> Self {
        let mut parent = Self { leaves: Vec::new(), extents: Vec::new(), chunks: OnceLock::new() };
        for (mut at, leaf) in leaves {
            for (number, len) in leaf.lengths().enumerate() {
                parent.extents.push((at, len, parent.leaves.len(), number));
                at += u64::from(len);
            }
            parent.leaves.push(leaf);
        }
        parent
    }

    /// How many extents it has.
    pub(super) fn len(&self) -> usize {
        self.extents.len()
    }

    /// Adds the parent's extents in a range of the volume.
    ///
    /// # Errors
    /// If the agent was not sent all of the range.
    pub(super) fn keep(&self, range: Range<u64>, placed: &mut Placed<'_>) -> Result<(), &'static str> {
        let nothing = "a part that is kept of a parent that does not have it";
        let first = self.extents.partition_point(|(at, ..)| *at <= range.start).checked_sub(1).ok_or(nothing)?;
        let mut from = range.start;
        for &(at, len, leaf, number) in &self.extents[first..] {
            let end = at + u64::from(len);
            if from == range.end {
                break;
            }
            if !(at..end).contains(&from) {
                return Err(nothing);
            }
            let to = end.min(range.end);
            // Both lengths lie within the extent, whose length has 32 bits.
            let narrow = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
            placed.keep((leaf, &self.leaves[leaf]), number, narrow(from - at), narrow(to - from));
            from = to;
        }
        if from == range.end { Ok(()) } else { Err(nothing) }
    }

    /// Where a chunk of the parent lies.
    pub(super) fn place(&self, id: &ChunkId) -> Option<Place> {
        if let Some(chunks) = self.chunks.get() {
            return chunks.get(id).map(|chunk| chunk.place);
        }
        // Made for the one or two new chunks of a region of which most is kept.
        self.leaves.iter().flat_map(Leaf::chunks).find(|chunk| chunk.id == *id).map(|chunk| chunk.place)
    }

    /// The digests of a part of a chunk.
    pub(super) fn pages(&self, id: &ChunkId, chunk_offset: u32, len: u32) -> Option<PagesAt> {
        let page = PAGE as u32;
        let parts = &self.chunks().get(id)?.parts;
        // Parts of one chunk do not overlap, unless they are used twice.
        let before = parts.partition_point(|p| p.0 <= chunk_offset);
        parts[..before].iter().rev().take(NEAR).find_map(|&(from, all, at)| {
            let skipped = (chunk_offset - from).is_multiple_of(page).then_some(chunk_offset - from)?;
            (skipped + len <= all).then(|| PagesAt { first: at.first.saturating_add(skipped / page), ..at })
        })
    }

    fn chunks(&self) -> &HashMap<ChunkId, Chunk> {
        self.chunks.get_or_init(|| {
            let mut chunks = HashMap::new();
            for extent in self.leaves.iter().flat_map(Leaf::extents) {
                if let Extent::Data { len, chunk_offset, id, place, pages } = extent {
                    let chunk = chunks.entry(id).or_insert_with(|| Chunk { place, parts: Vec::new() });
                    chunk.parts.extend(pages.map(|at| (chunk_offset, len, at)));
                }
            }
            chunks.values_mut().for_each(|chunk| chunk.parts.sort_unstable_by_key(|p| (p.0, p.1)));
            chunks
        })
    }
}

/// Holes and data, with the data that is fragmented marked. Neighbouring extents are joined, unless they meet within a page: no
/// extent after that begins at a page, and agents must see that.
pub(super) fn outline(leaf: &Leaf, fragmented: &HashSet<ChunkId>) -> Vec<wire::Extent> {
    let mut outline: Vec<wire::Extent> = Vec::new();
    for extent in leaf.extents() {
        let (kept, retire) = match extent {
            Extent::Hole { .. } => (false, false),
            Extent::Data { id, .. } => (true, !fragmented.is_empty() && fragmented.contains(&id)),
        };
        match outline.last_mut() {
            Some(last) if (last.kept, last.retire) == (kept, retire) && last.length.is_multiple_of(PAGE as u32) => {
                last.length += extent.len();
            }
            _ => outline.push(wire::Extent { length: extent.len(), kept, retire, ..Default::default() }),
        }
    }
    outline
}

#[cfg(test)]
mod tests {
    use milkrun_repository::chunk::codec::Codec;
    use milkrun_repository::id::PackId;
    use milkrun_repository::volume_map::MapRef;

    use super::*;

    const P: u32 = PAGE as u32;

    fn place(plain_len: u32) -> Place {
        let pack = PackId::from_bytes([1; 16]);
        Place { pack, slot: 3, offset: 64, sealed_len: plain_len, plain_len, codec: Codec::Raw }
    }

    fn data(chunk: u8, pages: u32, first: Option<u32>) -> Extent {
        let id = ChunkId::from_bytes([chunk; 32]);
        let list = MapRef { id: ChunkId::from_bytes([99; 32]), place: place(800) };
        let pages_at = first.map(|first| PagesAt { list, first });
        Extent::Data { len: pages * P, chunk_offset: P, id, place: place(20 * P), pages: pages_at }
    }

    fn leaf<const N: usize>(extents: [Extent; N]) -> Leaf {
        extents.into_iter().collect()
    }

    /// Two adjacent leaves, and one after a gap.
    fn parent() -> ParentRegion {
        let first = leaf([data(1, 4, Some(10)), Extent::Hole { len: 2 * P }]);
        let second = leaf([data(2, 3, None), data(3, 1, Some(0))]);
        let third = leaf([data(4, 5, None)]);
        let page = u64::from(P);
        ParentRegion::of([(0, first), (6 * page, second), (11 * page, third)])
    }

    fn kept(from: u32, to: u32) -> Option<Vec<Extent>> {
        let mut placed = Placed::with_capacity(4);
        parent().keep(u64::from(from)..u64::from(to), &mut placed).ok()?;
        let extents: Vec<Extent> = placed.leaf.finish().extents().collect();
        assert_eq!(placed.fresh, vec![None; extents.len()]);
        Some(extents)
    }

    #[test]
    fn what_is_kept_is_what_the_parent_has_there() {
        let [whole, hole, next] = [data(1, 4, Some(10)), Extent::Hole { len: 2 * P }, data(2, 3, None)];
        assert_eq!(kept(0, 9 * P), Some(vec![whole, hole, next]));
        let Some(middle) = kept(P, 5 * P) else { panic!() };
        assert_eq!(middle[1], Extent::Hole { len: P });
        let Extent::Data { len, chunk_offset, pages, .. } = middle[0] else { panic!() };
        assert_eq!((len, chunk_offset, pages.map(|p| p.first)), (3 * P, 2 * P, Some(11)));
        // When a range begins within a page, the digests don't apply to the rest.
        let Some(odd) = kept(512, P) else { panic!() };
        assert!(
            matches!(odd[..], [Extent::Data { len, chunk_offset, pages: None, .. }] if len == P - 512 && chunk_offset == P + 512)
        );
        assert_eq!(kept(10 * P - 1, 10 * P).map(|e| e.len()), Some(1));
    }

    #[test]
    fn what_nobody_was_told_of_is_not_kept() {
        for (from, to) in [(9 * P, 11 * P), (10 * P, 11 * P), (15 * P, 17 * P), (16 * P, 17 * P), (10 * P, 12 * P)] {
            assert_eq!(kept(from, to), None, "{from}..{to}");
        }
        assert!(ParentRegion::of([]).keep(0..1, &mut Placed::with_capacity(0)).is_err());
    }

    #[test]
    fn parts_of_its_chunks_are_found_with_their_digests() {
        let before = parent();
        let id = |n| ChunkId::from_bytes([n; 32]);
        assert_eq!(before.pages(&id(1), 3 * P, 2 * P).map(|p| p.first), Some(12));
        assert_eq!(
            (before.pages(&id(1), 3 * P, 3 * P), before.pages(&id(2), P, P), before.pages(&id(9), P, P)),
            (None, None, None)
        );
        assert_eq!((before.place(&id(2)), before.place(&id(9))), (Some(place(20 * P)), None));
    }

    #[test]
    fn an_outline_says_where_data_is_and_what_of_it_has_worn() {
        let leaf =
            leaf([data(1, 4, Some(10)), data(2, 3, None), Extent::Hole { len: P }, data(3, 2, None), data(2, 1, None)]);
        let outlined = |fragmented: &[u8]| -> Vec<(u32, bool, bool)> {
            let fragmented = fragmented.iter().map(|n| ChunkId::from_bytes([*n; 32])).collect();
            outline(&leaf, &fragmented).into_iter().map(|e| (e.length / P, e.kept, e.retire)).collect()
        };
        assert_eq!(outlined(&[]), [(7, true, false), (1, false, false), (3, true, false)]);
        assert_eq!(
            outlined(&[2]),
            [(4, true, false), (3, true, true), (1, false, false), (2, true, false), (1, true, true)]
        );
    }

    #[test]
    fn an_outline_shows_what_ends_within_a_page() {
        let Extent::Data { id, place, .. } = data(1, 1, None) else { panic!() };
        let odd = Extent::Data { len: P + 512, chunk_offset: 0, id, place, pages: None };
        let leaf = leaf([data(2, 2, None), odd, data(3, 1, None), data(4, 1, None)]);
        let ends: Vec<u32> = outline(&leaf, &HashSet::new()).iter().map(|e| e.length).collect();
        assert_eq!(ends, [3 * P + 512, 2 * P]);
    }
}
