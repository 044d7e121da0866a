//! Answers agents which chunks are stored, which they have to store, and which another node is storing.

use std::collections::HashSet;
use std::time::Duration;

use futures::StreamExt;
use milkrun_proto::agent::v1 as wire;
use milkrun_repository::id::{ChunkId, PackId};
use milkrun_repository::pack::Place;
use milkrun_repository::store::{GetError, Key};
use tokio::time::Instant;

use super::claims::Claimed;
use super::{BackupError, Run, lock};
use crate::assignment::RefusedCall;

/// How often a node is told that others wait for chunks that it is storing. Each time it sends packs that are not full.
const HURRY_EVERY: Duration = Duration::from_secs(5);

/// What a lookup answers for one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is stored.
    Known,
    /// The one who asked has to store it.
    Yours,
    /// Another node is storing it.
    Elsewhere,
}

impl Run {
    /// Finds out which chunks are known and really stored. The others are claimed for the volume's attempt, unless another node has
    /// claimed them. In that case the answer says so with `share`; without it, the caller may store them as well.
    ///
    /// # Errors
    /// [`BackupError::Store`] when the store can't be asked for a pack.
    pub async fn lookup(&self, a: &wire::Assignment, ids: &[ChunkId], share: bool) -> Result<Vec<Answer>, BackupError> {
        let places: Vec<Option<Place>> = {
            let index = lock(&self.index);
            ids.iter().map(|id| index.find(id)).collect()
        };
        let packs: HashSet<PackId> = places.iter().flatten().map(|p| p.pack).collect();
        let gone = self.missing(packs).await?;
        let known = |p: &Option<Place>| p.is_some_and(|p| !gone.contains(&p.pack));
        let unknown: Vec<ChunkId> = ids.iter().zip(&places).filter(|(_, p)| !known(p)).map(|(id, _)| *id).collect();
        let mut claimed = {
            let assigned = lock(&self.assigned);
            // Asking the store took time: if the volume was assigned again meanwhile, the new attempt asks for itself.
            let present = assigned.get(&a.volume).filter(|present| present.attempt == a.attempt);
            let node = &present.ok_or(RefusedCall::Stale)?.node;
            let index = lock(&self.index);
            // A pack may have been sealed meanwhile. A chunk that was not found before, or is in another pack now, was stored by
            // this run, so it is there.
            let stored = |id: &ChunkId| index.find(id).is_some_and(|p| !gone.contains(&p.pack));
            self.claims.claim(&unknown, node, &a.volume, stored).into_iter()
        };
        let answer = |p: &Option<Place>| match known(p) {
            true => Answer::Known,
            false => match claimed.next() {
                Some(Claimed::Stored) => Answer::Known,
                Some(Claimed::Theirs) if share => Answer::Elsewhere,
                _ => Answer::Yours,
            },
        };
        let answers: Vec<Answer> = places.iter().map(answer).collect();
        let count = |wanted| answers.iter().filter(|a| **a == wanted).count() as u64;
        for (name, wanted) in [("known", Answer::Known), ("yours", Answer::Yours), ("elsewhere", Answer::Elsewhere)] {
            metrics::counter!("milkrun_lookups_total", "answer" => name).increment(count(wanted));
        }
        Ok(answers)
    }

    /// As [`Self::lookup`], but waits for some seconds while other nodes upload all chunks that are unknown. `hurry` is called with
    /// the nodes that others wait for.
    ///
    /// # Errors
    /// [`BackupError::Store`].
    pub async fn lookup_later(
        &self,
        a: &wire::Assignment,
        ids: &[ChunkId],
        hurry: impl Fn(&str),
    ) -> Result<Vec<Answer>, BackupError> {
        let answers = self.lookup(a, ids, true).await?;
        if answers.iter().any(|a| *a != Answer::Elsewhere) {
            return Ok(answers);
        }
        for holder in self.claims.holders(ids) {
            let now = Instant::now();
            let mut hurried = lock(&self.hurried);
            let due = hurried.get(&holder).is_none_or(|last| now.duration_since(*last) >= HURRY_EVERY);
            if due {
                hurried.insert(holder.clone(), now);
                drop(hurried);
                hurry(&holder);
            }
        }
        self.claims.wait(|| !self.claims.holders(ids).is_empty()).await;
        self.lookup(a, ids, true).await
    }

    /// Asks the store once per run whether packs are there, so that a lost pack is uploaded again instead of referred to.
    pub(super) async fn missing(&self, packs: HashSet<PackId>) -> Result<HashSet<PackId>, BackupError> {
        let mut present = self.present.lock().await;
        let unknown: Vec<PackId> = {
            let own = lock(&self.stored);
            packs.iter().filter(|p| !present.contains_key(p) && !own.contains_key(p)).copied().collect()
        };
        let asks = unknown.into_iter().map(|id| {
            let info = lock(&self.index).pack(&id).cloned();
            async move {
                let Some(info) = info else { return Ok((id, false)) };
                match self.repository.store.head(&Key::pack(&id), Some(&info.version)).await {
                    Ok(head) => Ok((id, head.length == info.length)),
                    Err(GetError::NotFound(_)) => Ok((id, false)),
                    Err(GetError::Failed(f)) => Err(f),
                }
            }
        });
        let mut asks = futures::stream::iter(asks).buffer_unordered(32);
        while let Some(answer) = asks.next().await {
            let (id, there) = answer?;
            if !there {
                tracing::warn!(pack = %id, "a pack that the index names is gone; its chunks are stored again");
            }
            present.insert(id, there);
        }
        Ok(packs.into_iter().filter(|p| present.get(p) == Some(&false)).collect())
    }
}
