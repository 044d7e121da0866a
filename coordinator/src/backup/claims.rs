//! Chunks in flight, among all agents of a run. A lookup of an unknown chunk claims it for the volume's attempt. Other agents are
//! told that it is in flight, keep none of its bytes, and ask again later. A claim lives until its pack is sealed, or until the
//! attempt that made it is over. In the second case one of the agents that wait reads the chunk again and uploads it. A node that
//! others wait for is asked to send packs that are not full, at most every five seconds.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use milkrun_repository::id::ChunkId;
use tokio::sync::Notify;

/// How long a lookup waits at most; then the agent asks again.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// A volume's attempt that claimed chunks. The volumes of one node share packs: lookups that wait are told the node that uploads.
struct Holder {
    node: String,
    volume: String,
}

/// How many chunks one node may have claimed: more than an agent has in memory. A node may store further chunks without a claim,
/// and others may store them as well.
const CLAIMS_OF_NODE: usize = 512 * 1024;

/// The claims, and how many each node has.
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

/// The table of claims.
#[derive(Default)]
pub(super) struct Claims {
    table: Mutex<Table>,
    bell: Notify,
}

/// Who uploads an unknown chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Claimed {
    /// The one who asked.
    Yours,
    /// Another node.
    Theirs,
    /// Nobody: it was stored since the lookup.
    Stored,
}

impl Claims {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims unknown chunks for a volume's present attempt, on this node. A chunk may have been sealed since the caller looked it
    /// up, and then its claim is gone: `stored` says whether it is known now. A chunk is made known before its claim is
    /// [settled](Self::settle).
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

    /// These chunks are known now: their claims end.
    pub(super) fn settle<'a>(&self, ids: impl IntoIterator<Item = &'a ChunkId>) {
        let mut table = self.table();
        for id in ids {
            table.remove(id);
        }
        drop(table);
        self.bell.notify_waiters();
    }

    /// A volume's attempt is over: the chunks that it claimed and did not store are no longer claimed.
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

    /// Waits until something may have changed since `look` was called. `look` returns whether there is a reason to wait.
    pub(super) async fn wait(&self, look: impl FnOnce() -> bool) {
        let bell = self.bell.notified();
        tokio::pin!(bell);
        bell.as_mut().enable();
        if look() {
            // After the time limit, the caller asks again in any case.
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
        // Beyond the limit, the next node may store a chunk as well.
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
        // Another volume of that node goes on; the claims of this one are free all the same.
        claims.forget("v");
        assert_eq!(claims.claim(&ids, "b", "w", |_| false), [Claimed::Yours, Claimed::Yours]);
        claims.settle(&ids);
        assert!(claims.holders(&ids).is_empty());
        // A lookup from before the chunks were stored, which claims them afterwards, stores nothing again.
        let stored = |id: &ChunkId| *id == ids[0];
        assert_eq!(claims.claim(&ids, "a", "v", stored), [Claimed::Stored, Claimed::Yours]);
        claims.settle(&ids);
        // There is nothing to wait for: it returns at once.
        claims.wait(|| false).await;
    }
}
