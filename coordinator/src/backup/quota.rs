//! How much a node may store for a run: twice the size of the volumes that it was given, and a margin. Pure.
//!
//! Twice, since an attempt may be lost after its packs were stored. By node, since a pack holds chunks of several volumes. Without
//! a volume's size, which an inventory may leave out, there is no bound. What was granted is in the journal, so that a new leader
//! goes on counting (the last 256 MiB of grants need not be). After a take-over the node may store its volumes once more, because
//! uploads in flight may be lost.

use std::collections::HashSet;

/// What a node may still store for a run: its volumes share packs, so that no volume's share can be told apart.
#[derive(Default)]
pub(super) struct Quota {
    pub(super) granted: u64,
    pub(super) most: u64,
    /// Bytes of its volumes.
    again: u64,
    /// The volumes that it ever had.
    volumes: HashSet<String>,
    /// One of them has no known size: nobody can tell what is too much.
    pub(super) open: bool,
}

impl Quota {
    /// For a volume of `size` bytes: all of it twice, since an attempt may be lost after its packs were stored, and what packs
    /// and their directories take themselves.
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

    /// Its coordinator was followed by another one: what was on its way is stored once more, and it is not the node's fault.
    pub(super) fn forgive(&mut self) {
        self.most = self.most.saturating_add(self.again);
    }
}
