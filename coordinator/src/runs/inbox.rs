//! The events of a run. The number of waiting messages is limited for each agent, so that a busy run does not collect messages
//! without end.

use std::collections::HashMap;
use std::sync::Arc;

use milkrun_repository::id::RunId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::RunEvent;

/// How many messages of one agent may wait in the inbox of one run.
const WAITING_MAX: usize = 64;

/// A run's inbox.
pub(crate) struct Inbox {
    pub(super) sender: mpsc::UnboundedSender<RunEvent>,
    pub(super) receiver: mpsc::UnboundedReceiver<RunEvent>,
}

impl Inbox {
    /// The next event.
    pub(crate) async fn next(&mut self) -> Option<RunEvent> {
        self.receiver.recv().await
    }
}

impl Default for Inbox {
    fn default() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { sender, receiver }
    }
}

/// The place of a waiting message. It is free again once this is dropped.
#[derive(Debug)]
pub struct Room(#[expect(dead_code, reason = "dropped, not read")] OwnedSemaphorePermit);

/// The places that one agent has in the inboxes of runs.
#[derive(Default)]
pub(crate) struct Rooms(HashMap<RunId, Arc<Semaphore>>);

impl Rooms {
    fn of(&mut self, run: RunId) -> Arc<Semaphore> {
        self.0.entry(run).or_insert_with(|| Arc::new(Semaphore::new(WAITING_MAX))).clone()
    }

    /// Waits until there is a place in the run's inbox.
    pub(crate) async fn wait(&mut self, run: RunId) -> Option<Room> {
        // The semaphore is never closed.
        self.of(run).acquire_owned().await.ok().map(Room)
    }

    /// A place, if there is one now.
    pub(crate) fn now(&mut self, run: RunId) -> Option<Room> {
        self.of(run).try_acquire_owned().ok().map(Room)
    }

    /// The run is no longer under way.
    pub(crate) fn forget(&mut self, run: &RunId) {
        self.0.remove(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn so_many_wait_and_no_more() {
        let mut rooms = Rooms::default();
        let (run, other) = (RunId::from_bytes([1; 8]), RunId::from_bytes([2; 8]));
        let mut held: Vec<Room> = std::iter::from_fn(|| rooms.now(run)).collect();
        assert_eq!(held.len(), WAITING_MAX);
        assert!(rooms.now(other).is_some(), "another run has room of its own");
        held.pop();
        assert!(rooms.wait(run).await.is_some());
    }
}
