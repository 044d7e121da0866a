//! The restores that this agent has finished. A coordinator assigns one again if it did not receive the report, or if somebody put
//! an old journal back. By then the application may have written to the target, and it must not be overwritten with old bytes.
//!
//! A target's tag alone does not tell: of a device, or of a file that is written in place, it stays the same. So an agent
//! remembers what it finished, for as long as it lives, beside the end that the coordinator writes to the repository.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The number of restores that are remembered.
const KEPT: usize = 4096;

/// A run, and a volume of it.
type RunVolume = (Vec<u8>, String);

/// The restores that were finished since this process started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Finished(Arc<Mutex<VecDeque<RunVolume>>>);

impl Finished {
    fn table(&self) -> MutexGuard<'_, VecDeque<RunVolume>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a volume is restored, and durable.
    pub(crate) fn add(&self, run: &[u8], volume: &str) {
        let mut table = self.table();
        table.push_back((run.to_vec(), volume.to_owned()));
        if table.len() > KEPT {
            table.pop_front();
        }
    }

    /// Whether a volume was restored.
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
