//! The restores that this agent has finished. A coordinator that did not hear so, or that was given back an old journal, assigns them
//! again: by then the application may have written to the target, and old bytes must not come over it.
//!
//! A target's tag alone does not tell: of a device, or of a file that is written in place, it stays the same. So an agent
//! remembers what it finished, for as long as it lives, beside the end that the coordinator writes to the repository.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// So many are remembered.
const KEPT: usize = 4096;

/// A volume of a run.
type Of = (Vec<u8>, String);

/// What is remembered, for as long as the process lives.
#[derive(Clone, Debug, Default)]
pub(crate) struct Finished(Arc<Mutex<VecDeque<Of>>>);

impl Finished {
    fn table(&self) -> MutexGuard<'_, VecDeque<Of>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A volume is restored, and durable.
    pub(crate) fn add(&self, run: &[u8], volume: &str) {
        let mut table = self.table();
        table.push_back((run.to_vec(), volume.to_owned()));
        if table.len() > KEPT {
            table.pop_front();
        }
    }

    /// Whether it was.
    pub(crate) fn contains(&self, run: &[u8], volume: &str) -> bool {
        self.table().iter().any(|(r, v)| r == run && v == volume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_remembered() {
        let finished = Finished::default();
        finished.add(b"run", "data");
        assert!(
            finished.contains(b"run", "data") && !finished.contains(b"run", "wal") && !finished.contains(b"r", "data")
        );
        (0..KEPT).for_each(|n| finished.add(b"other", &n.to_string()));
        assert!(!finished.contains(b"run", "data") && finished.contains(b"other", "0"));
    }
}
