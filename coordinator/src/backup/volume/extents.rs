//! Checks the extents of a region as an agent reports them, and finds the places of their chunks.

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::chunk::PAGE;
use milkrun_repository::id::ChunkId;
use milkrun_repository::pack::Place;
use milkrun_repository::volume_map::{Extent, LEAF_BYTES_MAX};

use crate::backup::pages::sent;
use crate::backup::parent_region::{ParentRegion, Placed};
use crate::backup::{BackupError, Run, lock};

/// How many extents a region may have beyond one for each page: the last extent of a stream may be short.
const EXTENTS_SPARE: u64 = 16;

impl Run {
    /// Finds the place of every extent's chunk. Invariant 10: only chunks that are known or were sealed.
    pub(super) fn place<'r>(
        &self,
        told: &ParentRegion,
        region: &'r wire::Region,
        nonsense: impl Fn(&'static str) -> BackupError,
    ) -> Result<Placed<'r>, BackupError> {
        if region.length > LEAF_BYTES_MAX {
            return Err(nonsense("a region longer than a leaf"));
        }
        // Extents are at least single pages: nobody makes smaller ones.
        if region.extents.len() as u64 > region.length / PAGE as u64 + EXTENTS_SPARE {
            return Err(nonsense("more extents than pages"));
        }
        // A part that is kept has as many extents as the parent has there.
        let mut placed = Placed::with_capacity(region.extents.len() + told.len());
        let mut at = region.offset;
        for e in &region.extents {
            if e.length == 0 {
                return Err(nonsense("an empty extent"));
            }
            let here = at..at + u64::from(e.length);
            at = here.end;
            if e.kept {
                told.keep(here, &mut placed).map_err(&nonsense)?;
                continue;
            }
            let pages = sent(e).map_err(&nonsense)?;
            if e.chunk.is_empty() {
                placed.push(Extent::Hole { len: e.length }, None);
                continue;
            }
            let id = ChunkId::try_from(&e.chunk[..]).map_err(|_| nonsense("a chunk id of another length"))?;
            let place = self.place_of(&id, told).ok_or_else(|| nonsense("a chunk that nobody knows"))?;
            let end = e.chunk_offset.checked_add(e.length);
            if place.plain_len != e.chunk_length || end.is_none_or(|end| end > place.plain_len) {
                return Err(nonsense("an extent outside of its chunk"));
            }
            let kept = if pages.is_some() { None } else { told.pages(&id, e.chunk_offset, e.length) };
            let extent = Extent::Data { len: e.length, chunk_offset: e.chunk_offset, id, place, pages: kept };
            placed.push(extent, pages);
        }
        // Kept parts lie on pages too: together they are no more than the region's pages.
        if placed.fresh.len() as u64 > region.length / PAGE as u64 + EXTENTS_SPARE {
            return Err(nonsense("more extents than pages"));
        }
        if placed.leaf.so_far().len() != region.length {
            return Err(nonsense("extents that do not fill their region"));
        }
        Ok(placed)
    }

    /// The place of a chunk: the parent's at the same place, or else any that was stored. The parent's comes first: it was checked
    /// before it was sent to the agent, while a chunk that was sealed since may come from a compromised agent.
    fn place_of(&self, id: &ChunkId, told: &ParentRegion) -> Option<Place> {
        told.place(id).or_else(|| lock(&self.index).find(id))
    }
}
