//! Leaves: what a range of a volume is made of. In memory they are as they are stored: tables of chunks and of lists, and extents
//! that refer to table entries by number. After some generations a chunk is used in many pieces, and numbers are shorter.

use std::collections::HashMap;

use super::MapRef;
use crate::chunk::PAGE;
use crate::id::{ChunkId, PackId};
use crate::pack::Place;

/// A run of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Zeros that are stored nowhere.
    Hole {
        /// How many bytes.
        len: u32,
    },
    /// A part of a chunk, or all of it.
    Data {
        /// How many bytes.
        len: u32,
        /// Where these bytes begin in the chunk's plaintext.
        chunk_offset: u32,
        /// The chunk.
        id: ChunkId,
        /// Where it is stored.
        place: Place,
        /// Where the digests of its pages are kept, if they are kept.
        pages: Option<PagesAt>,
    },
}

/// Where the digests of an extent's pages are kept: the list, and the number of the first digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagesAt {
    /// The chunk that holds the list.
    pub list: MapRef,
    /// The number of the digest of the extent's first page in the list. Those of the other pages follow.
    pub first: u32,
}

impl Extent {
    /// Bytes covered.
    pub fn len(&self) -> u32 {
        match *self {
            Self::Hole { len } | Self::Data { len, .. } => len,
        }
    }

    /// Never true of a decoded extent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A leaf: the extents of up to 64 MiB of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    pub(super) chunks: Vec<MapRef>,
    pub(super) lists: Vec<MapRef>,
    pub(super) parts: Vec<Part>,
    pub(super) len: u64,
}

/// An extent that refers to table entries by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) len: u32,
    /// The number of the chunk; [`NONE`]: a hole.
    pub(super) chunk: u32,
    pub(super) chunk_offset: u32,
    /// The number of the list; [`NONE`]: its digests are not kept.
    pub(super) list: u32,
    pub(super) first: u32,
}

/// Not a number of a table entry: a leaf has fewer extents than this.
pub(super) const NONE: u32 = u32::MAX;

impl Leaf {
    /// Its extents, in order, without gaps.
    pub fn extents(&self) -> impl ExactSizeIterator<Item = Extent> + Clone {
        self.parts.iter().map(|part| self.extent(part))
    }

    /// The extent with this number.
    ///
    /// # Panics
    /// If the leaf has no extent with this number.
    pub fn nth(&self, number: usize) -> Extent {
        self.extent(&self.parts[number])
    }

    /// How long each extent is.
    pub fn lengths(&self) -> impl ExactSizeIterator<Item = u32> {
        self.parts.iter().map(|part| part.len)
    }

    /// Its extents by numbers: how many bytes, the number of the chunk in [`Self::chunks`], and the offset in the chunk; `None`:
    /// a hole.
    pub fn pieces(&self) -> impl Iterator<Item = (u32, Option<(usize, u32)>)> {
        self.parts
            .iter()
            .map(|part| (part.len, (part.chunk != NONE).then_some((part.chunk as usize, part.chunk_offset))))
    }

    fn extent(&self, part: &Part) -> Extent {
        let Part { len, chunk, chunk_offset, list, first } = *part;
        let Some(&MapRef { id, place }) = self.chunks.get(chunk as usize) else { return Extent::Hole { len } };
        let pages = self.lists.get(list as usize).map(|&list| PagesAt { list, first });
        Extent::Data { len, chunk_offset, id, place, pages }
    }

    /// Bytes covered.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Whether it is one hole.
    pub fn is_hole(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The chunks that it uses, and where they are.
    pub fn chunks(&self) -> &[MapRef] {
        &self.chunks
    }

    /// How many bytes it uses of each of its chunks. Bytes that are used twice count twice.
    pub fn used(&self) -> Vec<u64> {
        let mut used = vec![0; self.chunks.len()];
        for part in &self.parts {
            if let Some(used) = used.get_mut(part.chunk as usize) {
                *used += u64::from(part.len);
            }
        }
        used
    }

    /// The packs that hold its data, each once, sorted.
    pub fn packs(&self) -> Vec<PackId> {
        let mut packs: Vec<PackId> = self.chunks.iter().map(|c| c.place.pack).collect();
        packs.dedup();
        packs.sort_unstable();
        packs.dedup();
        packs
    }

    /// The lists of digests that it refers to. A backup needs them; a restore does not.
    pub fn page_lists(&self) -> &[MapRef] {
        &self.lists
    }

    /// All packs that a restore point with this leaf must keep, besides the pack of the leaf itself.
    pub fn needs(&self) -> impl Iterator<Item = PackId> {
        self.packs().into_iter().chain(self.lists.iter().map(|l| l.place.pack))
    }
}

impl FromIterator<Extent> for Leaf {
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> Self {
        let extents = extents.into_iter();
        let mut builder = LeafBuilder::with_capacity(extents.size_hint().0);
        extents.for_each(|extent| builder.push(extent));
        builder.finish()
    }
}

/// How many chunks a region of 16 MiB has if it has not changed since it was stored.
const CHUNKS: usize = 64;

/// A leaf that is being built.
#[derive(Default)]
pub struct LeafBuilder {
    leaf: Leaf,
    chunks: Numbers,
    lists: Numbers,
}

/// The number of each entry of a table.
#[derive(Default)]
struct Numbers(HashMap<MapRef, u32>);

impl Numbers {
    /// How many of the last entries are checked first: few of many consecutive extents differ, so most entries are found there.
    const NEAR: usize = 4;

    fn number(&mut self, table: &mut Vec<MapRef>, wanted: &MapRef) -> u32 {
        let near = table.len().saturating_sub(Self::NEAR);
        let found = table[near..].iter().rposition(|r| r == wanted).map(|n| near + n);
        found.map(narrow).unwrap_or_else(|| {
            *self.0.entry(*wanted).or_insert_with(|| {
                table.push(*wanted);
                narrow(table.len() - 1)
            })
        })
    }
}

/// Maps the entries of one leaf's tables to their numbers in a leaf that is being built. Valid until that leaf forgets its page
/// lists.
#[derive(Default)]
pub struct Renumbered {
    chunks: Renumbering,
    lists: Renumbering,
}

/// By the number in the other leaf; [`NONE`]: not yet known.
#[derive(Default)]
struct Renumbering(Vec<u32>);

impl Renumbering {
    fn renumbered(&mut self, number: u32, table: usize, here: impl FnOnce() -> u32) -> u32 {
        if self.0.is_empty() {
            self.0.resize(table, NONE);
        }
        let known = &mut self.0[number as usize];
        if *known == NONE {
            *known = here();
        }
        *known
    }
}

/// A table has no more entries than there are extents.
fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(NONE)
}

impl LeafBuilder {
    /// A builder with room for this many extents.
    pub fn with_capacity(extents: usize) -> Self {
        let mut builder = Self::default();
        builder.leaf.parts.reserve(extents);
        builder.leaf.chunks.reserve(extents.min(CHUNKS));
        builder
    }

    /// Adds the next extent.
    pub fn push(&mut self, extent: Extent) {
        let leaf = &mut self.leaf;
        let part = match extent {
            Extent::Hole { len } => Part { len, chunk: NONE, chunk_offset: 0, list: NONE, first: 0 },
            Extent::Data { len, chunk_offset, id, place, pages } => {
                let chunk = self.chunks.number(&mut leaf.chunks, &MapRef { id, place });
                let (list, first) = match pages {
                    Some(PagesAt { list, first }) => (self.lists.number(&mut leaf.lists, &list), first),
                    None => (NONE, 0),
                };
                Part { len, chunk, chunk_offset, list, first }
            }
        };
        leaf.len += u64::from(part.len);
        leaf.parts.push(part);
    }

    /// Adds `len` bytes of another leaf's extent, from `skipped` on. Digests are kept only if the rest begins at the start of a
    /// page.
    ///
    /// # Panics
    /// If the other leaf has no such extent.
    pub fn push_part(&mut self, of: &Leaf, number: usize, skipped: u32, len: u32, seen: &mut Renumbered) {
        let mut part = of.parts[number];
        let leaf = &mut self.leaf;
        if let Some(chunk) = of.chunks.get(part.chunk as usize) {
            let here = || self.chunks.number(&mut leaf.chunks, chunk);
            part.chunk = seen.chunks.renumbered(part.chunk, of.chunks.len(), here);
            part.chunk_offset += skipped;
        }
        match of.lists.get(part.list as usize).filter(|_| skipped.is_multiple_of(PAGE as u32)) {
            Some(list) => {
                let here = || self.lists.number(&mut leaf.lists, list);
                part.list = seen.lists.renumbered(part.list, of.lists.len(), here);
                part.first = part.first.saturating_add(skipped / PAGE as u32);
            }
            None => (part.list, part.first) = (NONE, 0),
        }
        part.len = len;
        leaf.len += u64::from(len);
        leaf.parts.push(part);
    }

    /// Sets where the digests of the pages of this extent are kept. Does nothing for a hole.
    ///
    /// # Panics
    /// If there is no extent with this number.
    pub fn keep_pages(&mut self, number: usize, pages: PagesAt) {
        let part = &mut self.leaf.parts[number];
        if part.chunk != NONE {
            part.list = self.lists.number(&mut self.leaf.lists, &pages.list);
            part.first = pages.first;
        }
    }

    /// Removes all digests, as if none were kept.
    pub fn forget_pages(&mut self) {
        self.lists = Numbers::default();
        self.leaf.lists.clear();
        for part in &mut self.leaf.parts {
            (part.list, part.first) = (NONE, 0);
        }
    }

    /// The leaf as built so far.
    pub fn so_far(&self) -> &Leaf {
        &self.leaf
    }

    /// The finished leaf. Its table of lists holds only the lists in use, in the order in which the extents first refer to them,
    /// so that equal leaves have equal bytes. Its table of chunks is always like that.
    pub fn finish(mut self) -> Leaf {
        let lists = std::mem::take(&mut self.leaf.lists);
        let mut seen = Renumbering::default();
        for part in self.leaf.parts.iter_mut().filter(|part| part.list != NONE) {
            let list = lists[part.list as usize];
            part.list = seen.renumbered(part.list, lists.len(), || {
                self.leaf.lists.push(list);
                narrow(self.leaf.lists.len() - 1)
            });
        }
        self.leaf
    }
}
