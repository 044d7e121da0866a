//! Chunks in flight, among all agents of a run. A lookup of an unknown chunk claims it for the volume's attempt; other agents hear
//! that it is in flight, keep no bytes of it, and ask again later. A claim lives until its pack is sealed, or until the attempt
//! that made it is over; then one of the agents that wait reads the chunk again and uploads it. A node that others wait for is
//! asked to send packs that are not full, at most every five seconds.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use milkrun_repository::id::ChunkId;
use tokio::sync::Notify;

/// How long a lookup waits at most; then it is asked again.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// A volume's attempt that is under way. Volumes of one node share packs: for those who wait, the node uploads.
struct Holder {
    node: String,
    volume: String,
}

/// Chunks that one node may have claimed: what an agent has in memory is less. Beyond it a chunk is its own to store, and others may
/// store it as well.
const CLAIMS_OF_NODE: usize = 512 * 1024;

/// Who has claimed what, and how much.
#[derive(Default)]
struct Table {
    claims: HashMap<ChunkId, Arc<Holder>>,
    of_node: HashMap<String, usize>,
}

impl Table {
    fn remove(&mut self, id: &ChunkId) {
        if let Some(holder) = self.claims.remove(id)
            && let Some(count) = self.of_node.get_mut(&holder.node)
        {
            *count -= 1;
        }
    }
}

/// The table.
#[derive(Default)]
pub(super) struct Claims {
    table: Mutex<Table>,
    bell: Notify,
}

/// Who uploads an unknown chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Claimed {
    /// Whoever asked.
    Yours,
    /// Another node.
    Theirs,
    /// Nobody: it was stored since it was looked for.
    Stored,
}

impl Claims {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims unknown chunks for a volume's present attempt, on this node. What has no entry may have had one when the caller
    /// looked for it: `stored` says whether it has become known meanwhile. Whoever stores a chunk makes it known before it
    /// [settles](Self::settle) it.
    pub(super) fn claim<'a>(
        &self,
        ids: impl IntoIterator<Item = &'a ChunkId>,
        node: &str,
        volume: &str,
        stored: impl Fn(&ChunkId) -> bool,
    ) -> Vec<Claimed> {
        let holder = Arc::new(Holder { node: node.to_owned(), volume: volume.to_owned() });
        let mut table = self.table();
        let Table { claims, of_node } = &mut *table;
        let count = of_node.entry(node.to_owned()).or_default();
        let claim = |id: &ChunkId| match claims.entry(*id) {
            std::collections::hash_map::Entry::Occupied(e) if e.get().node == node => Claimed::Yours,
            std::collections::hash_map::Entry::Occupied(_) => Claimed::Theirs,
            std::collections::hash_map::Entry::Vacant(_) if stored(id) => Claimed::Stored,
            std::collections::hash_map::Entry::Vacant(_) if *count >= CLAIMS_OF_NODE => Claimed::Yours,
            std::collections::hash_map::Entry::Vacant(e) => {
                e.insert(holder.clone());
                *count += 1;
                Claimed::Yours
            }
        };
        ids.into_iter().map(claim).collect()
    }

    /// The nodes that upload some of these.
    pub(super) fn holders(&self, ids: &[ChunkId]) -> HashSet<String> {
        let table = self.table();
        ids.iter().filter_map(|id| table.claims.get(id)).map(|h| h.node.clone()).collect()
    }

    /// These are known now.
    pub(super) fn settle<'a>(&self, ids: impl IntoIterator<Item = &'a ChunkId>) {
        let mut table = self.table();
        for id in ids {
            table.remove(id);
        }
        drop(table);
        self.bell.notify_waiters();
    }

    /// A volume's attempt is over: what it claimed and did not store is nobody's.
    pub(super) fn forget(&self, volume: &str) {
        let mut table = self.table();
        let Table { claims, of_node } = &mut *table;
        claims.retain(|_, holder| {
            let stays = holder.volume != volume;
            if !stays && let Some(count) = of_node.get_mut(&holder.node) {
                *count -= 1;
            }
            stays
        });
        drop(table);
        self.bell.notify_waiters();
    }

    /// Waits until something may have changed since `look` was called, which returns whether there is reason to wait.
    pub(super) async fn wait(&self, look: impl FnOnce() -> bool) {
        let bell = self.bell.notified();
        tokio::pin!(bell);
        bell.as_mut().enable();
        if look() {
            // Whoever waits asks again in any case.
            let _ = tokio::time::timeout(WAIT_MAX, bell).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_claims_what_it_can_have_in_hand() {
        let claims = Claims::default();
        let id = |n: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            ChunkId::from_bytes(bytes)
        };
        let ids: Vec<ChunkId> = (0..CLAIMS_OF_NODE + 2).map(id).collect();
        assert!(claims.claim(&ids, "a", "v", |_| false).iter().all(|c| *c == Claimed::Yours));
        // What is beyond it is the next one's as well.
        let last = &ids[CLAIMS_OF_NODE - 1..];
        assert_eq!(claims.claim(last, "b", "w", |_| false), [Claimed::Theirs, Claimed::Yours, Claimed::Yours]);
        claims.settle(&ids[..1]);
        assert_eq!(claims.table().of_node["a"], CLAIMS_OF_NODE - 1);
        claims.forget("v");
        assert_eq!(claims.table().of_node["a"], 0);
        assert_eq!(claims.table().claims.len(), 2);
    }

    #[tokio::test]
    async fn one_uploads_the_others_wait_and_inherit() {
        let claims = Claims::default();
        let ids = [ChunkId::from_bytes([1; 32]), ChunkId::from_bytes([2; 32])];
        assert_eq!(claims.claim(&ids[..1], "a", "v", |_| false), [Claimed::Yours]);
        assert_eq!(claims.claim(&ids, "b", "w", |_| false), [Claimed::Theirs, Claimed::Yours]);
        assert_eq!(claims.claim(&ids, "a", "x", |_| false), [Claimed::Yours, Claimed::Theirs]);
        assert_eq!(claims.holders(&ids), ["a".to_owned(), "b".to_owned()].into());
        // Another volume of that node goes on; what this one claimed is free all the same.
        claims.forget("v");
        assert_eq!(claims.claim(&ids, "b", "w", |_| false), [Claimed::Yours, Claimed::Yours]);
        claims.settle(&ids);
        assert!(claims.holders(&ids).is_empty());
        // Who looked before they were stored, and claims afterwards, stores nothing again.
        let stored = |id: &ChunkId| *id == ids[0];
        assert_eq!(claims.claim(&ids, "a", "v", stored), [Claimed::Stored, Claimed::Yours]);
        claims.settle(&ids);
        // Nothing to wait for: returns at once.
        claims.wait(|| false).await;
    }
}
