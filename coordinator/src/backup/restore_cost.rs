//! How a volume lies in the repository. It is counted leaf by leaf as the map is built, recorded in the root, and shown to people.

use std::collections::VecDeque;

use milkrun_repository::pack::Place;
use milkrun_repository::point::root::Layout;
use milkrun_repository::restore_plan::{Limits, WINDOW_LEAVES, count};
use milkrun_repository::volume_map::Leaf;
use tokio::task::JoinHandle;

use super::{BackupError, joined};

/// How many windows are counted while the map is built: limits their memory.
const COUNTED_BESIDE: usize = 2;

/// What a restore would have to do for the leaves so far.
#[derive(Default)]
pub(super) struct RestoreCost {
    /// The places of the chunks that the leaves of a window use.
    window: Vec<Place>,
    /// Leaves and holes.
    steps: usize,
    in_hole: bool,
    /// The number of reads, and the bytes of plaintext that they open.
    counted: (u64, u64),
    counting: VecDeque<JoinHandle<(u64, u64)>>,
}

impl RestoreCost {
    /// Adds the next leaf.
    pub(super) async fn add(&mut self, leaf: &Leaf) -> Result<(), BackupError> {
        self.window.extend(leaf.chunks().iter().map(|chunk| chunk.place));
        self.in_hole = false;
        self.step().await
    }

    /// Adds a hole in place of leaves: a hole of any length is one step of a restore, as a leaf is.
    pub(super) async fn hole(&mut self) -> Result<(), BackupError> {
        if std::mem::replace(&mut self.in_hole, true) { Ok(()) } else { self.step().await }
    }

    async fn step(&mut self) -> Result<(), BackupError> {
        self.steps += 1;
        if self.steps < WINDOW_LEAVES {
            return Ok(());
        }
        self.close();
        while self.counting.len() > COUNTED_BESIDE {
            self.count_first().await?;
        }
        Ok(())
    }

    /// Returns the result for the whole volume.
    pub(super) async fn finish(mut self) -> Result<Layout, BackupError> {
        self.close();
        while !self.counting.is_empty() {
            self.count_first().await?;
        }
        let (ranges, opened_bytes) = self.counted;
        Ok(Layout { ranges, opened_bytes, ..Layout::default() })
    }

    async fn count_first(&mut self) -> Result<(), BackupError> {
        if let Some(first) = self.counting.pop_front() {
            let (ranges, opened_bytes) = joined(first).await?;
            self.counted = (self.counted.0 + ranges, self.counted.1 + opened_bytes);
        }
        Ok(())
    }

    fn close(&mut self) {
        self.steps = 0;
        let window = std::mem::take(&mut self.window);
        if !window.is_empty() {
            self.counting.push_back(tokio::spawn(async move { count(window, Limits::DEFAULT) }));
        }
    }
}
