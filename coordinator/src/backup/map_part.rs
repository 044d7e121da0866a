//! Parts of a map, and their records in the journal. Pure functions.

use milkrun_repository::id::PackId;
use milkrun_repository::point::journal;
use milkrun_repository::volume_map::{Extent, Leaf, MapRef};

/// The next part of a map.
pub(super) enum MapPart {
    /// A leaf that is stored: one of the parent's, or a new one.
    Leaf { offset: u64, reference: MapRef, leaf: Leaf, needs: Vec<PackId>, unchanged: bool },
    /// A hole of any length.
    Hole { offset: u64 },
}

impl MapPart {
    /// Its record in the journal, up to `end`.
    pub(super) fn noted(&self, end: u64) -> journal::Region {
        let (offset, unchanged, runs) = match self {
            Self::Hole { offset } => (*offset, false, Vec::new()),
            Self::Leaf { offset, unchanged: true, .. } => (*offset, true, Vec::new()),
            Self::Leaf { offset, leaf, .. } => (*offset, false, leaf.extents().map(run).collect()),
        };
        journal::Region { offset, len: end - offset, unchanged, runs }
    }
}

fn run(extent: Extent) -> journal::Run {
    match extent {
        Extent::Hole { len } => journal::Run { len, chunk: None },
        Extent::Data { len, chunk_offset, id, place, .. } => {
            journal::Run { len, chunk: Some((id, chunk_offset, place.plain_len)) }
        }
    }
}
