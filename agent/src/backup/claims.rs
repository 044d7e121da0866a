//! Chunks that this agent is uploading for a run: the first region that meets one claims it, the others refer to it.
//!
//! An entry lives until its pack is sealed; from then on the coordinator knows the chunk. So the table is bounded by the
//! packs in flight, not by the volume.

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

/// The table.
#[derive(Default)]
pub struct Claims {
    table: Mutex<HashMap<ChunkId, Settled>>,
    /// Rung whenever something was settled, or failed.
    bell: Notify,
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

    /// These chunks are known to the coordinator now.
    pub fn settle(&self, ids: impl IntoIterator<Item = ChunkId>) {
        let mut table = self.table();
        for id in ids {
            if let Some(settled) = table.remove(&id) {
                settled.0.store(true, Ordering::Release);
            }
        }
        drop(table);
        self.bell.notify_waiters();
    }

    /// Wakes all who wait, to look again.
    pub fn ring(&self) {
        self.bell.notify_waiters();
    }

    /// Waits until all are settled, or `stop` says why not.
    ///
    /// # Errors
    /// What `stop` returned.
    pub async fn wait<E>(&self, wanted: &[Settled], stop: impl Fn() -> Option<E>) -> Result<(), E> {
        for settled in wanted {
            loop {
                // Registered before looking, so that a bell in between is not missed.
                let bell = self.bell.notified();
                tokio::pin!(bell);
                bell.as_mut().enable();
                if let Some(e) = stop() {
                    return Err(e);
                }
                if settled.is_set() {
                    break;
                }
                bell.await;
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
        assert!(matches!(claims.claim(id), Claim::Mine(_)), "a settled chunk is the coordinator's to know");
    }
}
