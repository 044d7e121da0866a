//! Chunks that this agent is uploading for a run. The first region that has such a chunk claims it; others refer to it.
//!
//! An entry lives until its pack is sealed; from then on the coordinator knows the chunk. So the size of the table
//! depends on the packs in flight, and not on the volume.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use milkrun_repository::id::ChunkId;
use tokio::sync::Notify;

/// Whether a chunk may be named in a checkpoint: it was known before, or its pack is sealed.
#[derive(Clone, Debug, Default)]
pub struct Settled(Arc<AtomicBool>);

impl Settled {
    /// Whether it may.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Who uploads a chunk.
#[derive(Debug)]
pub enum Claim {
    /// The caller; it must [settle](Claims::settle) it.
    Mine(Settled),
    /// Somebody else on this agent.
    Theirs(Settled),
}

/// The claims of a run on this agent.
#[derive(Default)]
pub struct Claims {
    table: Mutex<HashMap<ChunkId, Settled>>,
    /// Notified whenever a chunk is settled, or the run failed.
    changed: Notify,
}

impl Claims {
    fn table(&self) -> MutexGuard<'_, HashMap<ChunkId, Settled>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims a chunk.
    pub fn claim(&self, id: ChunkId) -> Claim {
        match self.table().entry(id) {
            std::collections::hash_map::Entry::Occupied(e) => Claim::Theirs(e.get().clone()),
            std::collections::hash_map::Entry::Vacant(e) => Claim::Mine(e.insert(Settled::default()).clone()),
        }
    }

    /// Marks chunks that the coordinator knows now.
    pub fn settle(&self, ids: impl IntoIterator<Item = ChunkId>) {
        let mut table = self.table();
        for id in ids {
            if let Some(settled) = table.remove(&id) {
                settled.0.store(true, Ordering::Release);
            }
        }
        drop(table);
        self.changed.notify_waiters();
    }

    /// Wakes all tasks in [`Self::wait`], so that they check again.
    pub fn wake_all(&self) {
        self.changed.notify_waiters();
    }

    /// Waits until all are settled, or `stop` says why not.
    ///
    /// # Errors
    /// What `stop` returned.
    pub async fn wait<E>(&self, wanted: &[Settled], stop: impl Fn() -> Option<E>) -> Result<(), E> {
        for settled in wanted {
            loop {
                // Registered before the check, so that a notification in between is not missed.
                let notified = self.changed.notified();
                tokio::pin!(notified);
                notified.as_mut().enable();
                if let Some(e) = stop() {
                    return Err(e);
                }
                if settled.is_set() {
                    break;
                }
                notified.await;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_waits_for_the_first() {
        let claims = Arc::new(Claims::default());
        let id = ChunkId::from_bytes([1; 32]);
        assert!(matches!(claims.claim(id), Claim::Mine(_)));
        let Claim::Theirs(theirs) = claims.claim(id) else { panic!("claimed twice") };
        let waiting = {
            let claims = claims.clone();
            tokio::spawn(async move { claims.wait(&[theirs], || None::<()>).await })
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        claims.settle([id]);
        waiting.await.unwrap().unwrap();
        assert!(matches!(claims.claim(id), Claim::Mine(_)), "a settled chunk leaves the table");
    }
}
