//! Limits how much a node may store for a run: twice the size of its volumes, and a margin. Pure.
//!
//! It is twice the size, since an attempt may be lost after its packs were stored. It is counted by node, since a pack holds chunks
//! of several volumes. If a volume's size is unknown (an inventory may leave it out), there is no limit. Granted bytes are recorded
//! in the journal, so that a new leader goes on counting (the last 256 MiB of grants need not be there). After a take-over the node
//! may store its volumes once more, because uploads in flight may be lost.

use std::collections::HashSet;

/// How much a node may store for a run. Its volumes share packs, so they are counted together.
#[derive(Default)]
pub(super) struct Quota {
    pub(super) granted: u64,
    pub(super) most: u64,
    /// Bytes of its volumes.
    again: u64,
    /// All volumes that it ever had.
    volumes: HashSet<String>,
    /// One of its volumes has no known size: there is no limit.
    pub(super) open: bool,
}

impl Quota {
    /// Adds a volume of `size` bytes: twice its size, since an attempt may be lost after its packs were stored, and the overhead of
    /// packs and their directories.
    pub(super) fn add(&mut self, volume: &str, size: Option<u64>) {
        if !self.volumes.insert(volume.to_owned()) {
            return;
        }
        match size {
            Some(size) => {
                self.again = self.again.saturating_add(size);
                let margin = (size / 32).saturating_add(64 << 20);
                self.most = self.most.saturating_add(size.saturating_mul(2)).saturating_add(margin);
            }
            None => self.open = true,
        }
    }

    /// Another coordinator took the run over: uploads in flight are stored once more, and that is not the node's fault.
    pub(super) fn forgive(&mut self) {
        self.most = self.most.saturating_add(self.again);
    }
}
