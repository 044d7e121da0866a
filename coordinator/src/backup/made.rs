//! The parts of a map that were made, and how they stand in the journal. Pure.

use milkrun_repository::id::PackId;
use milkrun_repository::point::journal;
use milkrun_repository::volume_map::{Extent, Leaf, MapRef};

/// Runs in one object of the journal: 3 MB. Who takes over reads several at once.
const RUNS_NOTED: usize = 64 * 1024;

/// The next part of a map.
pub(super) enum Made {
    /// A leaf that is stored: the parent's, or a new one.
    Leaf { offset: u64, reference: MapRef, leaf: Leaf, needs: Vec<PackId>, unchanged: bool },
    /// A hole, however long.
    Hole { offset: u64 },
}

impl Made {
    /// As it stands in the journal, up to `end`.
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

/// Regions as they are written down together: with no more than [`RUNS_NOTED`] runs, but for one that has more.
pub(super) fn together(regions: Vec<journal::Region>) -> Vec<Vec<journal::Region>> {
    let mut all: Vec<Vec<journal::Region>> = Vec::new();
    let mut runs = 0;
    for region in regions {
        runs += region.runs.len();
        match all.last_mut() {
            Some(last) if runs <= RUNS_NOTED => last.push(region),
            _ => {
                runs = region.runs.len();
                all.push(vec![region]);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_together_is_bounded_and_in_order() {
        let region = |offset: u64, runs: usize| {
            let runs = vec![journal::Run { len: 1, chunk: None }; runs];
            journal::Region { offset, len: 1, unchanged: false, runs }
        };
        let runs = [0, RUNS_NOTED - 1, 1, 1, RUNS_NOTED + 5, 0, 7];
        let regions: Vec<_> = runs.into_iter().enumerate().map(|(n, runs)| region(n as u64, runs)).collect();
        let all = together(regions.clone());
        assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [3, 1, 1, 2]);
        assert_eq!(all.concat(), regions);
        assert!(together(Vec::new()).is_empty());
    }
}
