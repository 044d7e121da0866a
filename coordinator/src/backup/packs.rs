//! The packs of a run: who may store which, what the store really holds of them, and the index segments that name their chunks.

use std::sync::atomic::Ordering;
use std::time::Duration;

use milkrun_repository::id::{ChunkId, PackId, SegmentId};
use milkrun_repository::keys::envelope::{self, Kind};
use milkrun_repository::pack::{PackKind, Place};
use milkrun_repository::point::commit::{self, StoredReport};
use milkrun_repository::point::journal::Record;
use milkrun_repository::store::grant::{PutGrant, PutTerms};
use milkrun_repository::store::{GetError, Key};

use super::{BackupError, Run, lock};
use crate::assignment::RefusedCall;

/// How many entries are kept in memory before they become a segment: 512 Ki entries are about 60 MB.
pub(super) const SEGMENT_ENTRIES: usize = 512 * 1024;

/// How many bytes may be granted before the journal has to record them.
const GRANTED_UNWRITTEN: u64 = 256 << 20;

/// The times in HEAD answers are in whole seconds.
const STORE_TICK: Duration = Duration::from_secs(1);

/// A pack that a node has a grant for.
pub(super) struct Granted {
    node: String,
    length: u64,
    crc32: u32,
}

impl Run {
    /// Grants the right to store one pack.
    ///
    /// # Errors
    /// [`BackupError::Store`]; [`BackupError::Quota`] when the volume's agent has stored too much.
    pub async fn grant(&self, volume: &str, pack: PackId, length: u64, crc32: u32) -> Result<PutGrant, BackupError> {
        let node = lock(&self.assigned).get(volume).ok_or(RefusedCall::Stale)?.node.clone();
        if let Some(quota) = lock(&self.quotas).get_mut(&node) {
            let granted = quota.granted.saturating_add(length);
            if !quota.open && granted > quota.most {
                return Err(BackupError::Quota { node, most: quota.most });
            }
            quota.granted = granted;
        }
        self.is_free(&node, &pack).await?;
        self.note_granted(&node, volume, length);
        // Checkpoints usually write the journal before so much is granted.
        if self.granted_unwritten.load(Ordering::Relaxed) >= GRANTED_UNWRITTEN {
            self.write_journal().await?;
        }
        lock(&self.granted).insert(pack, Granted { node, length, crc32 });
        metrics::counter!("milkrun_grants_total").increment(1);
        let terms = PutTerms { key: Key::pack(&pack), length, crc32, lock: self.locks.packs };
        Ok(self.repository.store.grant_put(&terms).await?)
    }

    /// Checks that this agent may use a pack's name. Otherwise a compromised agent could report a pack of another application as
    /// its own, and its report on the pack would stand beside the true one. A pack that this run stored itself may be there
    /// already, if the answer was lost.
    async fn is_free(&self, node: &str, pack: &PackId) -> Result<(), BackupError> {
        // In the embedded mode agent and coordinator are one.
        if self.journal.is_none() {
            return Ok(());
        }
        match lock(&self.granted).get(pack) {
            Some(granted) if granted.node == node => return Ok(()),
            Some(_) => return Err(BackupError::Foreign(*pack)),
            None => {}
        }
        match self.repository.store.head(&Key::pack(pack), None).await {
            // The times in a listing and in a HEAD may differ by a fraction of a second.
            Ok(head) if head.modified.plus(STORE_TICK) < self.since => Err(BackupError::Foreign(*pack)),
            Ok(_) | Err(GetError::NotFound(_)) => Ok(()),
            Err(GetError::Failed(f)) => Err(f.into()),
        }
    }

    /// Notes granted bytes, so that the next leader goes on counting quotas. The note is written together with the next record that
    /// is written, or when [`GRANTED_UNWRITTEN`] bytes have been noted.
    pub(super) fn note_granted(&self, node: &str, volume: &str, bytes: u64) {
        if let (Some(journal), Ok(volume)) = (&self.journal, volume.parse()) {
            journal.note(Record::Granted { node: node.to_owned(), volume, bytes });
            self.granted_unwritten.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Asks the store what a pack really contains, and makes its chunks known.
    ///
    /// # Errors
    /// [`BackupError`] unless the pack is there, whole and locked.
    pub async fn seal(
        &self,
        volume: &str,
        claim: StoredReport,
        entries: Vec<(ChunkId, Place)>,
    ) -> Result<(), BackupError> {
        let node = lock(&self.assigned).get(volume).ok_or(RefusedCall::Stale)?.node.clone();
        {
            // A pack is sealed once, and only as it was granted: so what is known of a pack can't be changed by another seal in its
            // name.
            let mut granted = lock(&self.granted);
            let fits = |g: &Granted| g.node == node && g.length == claim.length && g.crc32 == claim.crc32;
            if !granted.get(&claim.id).is_some_and(fits) {
                return Err(BackupError::Ungranted(claim.id));
            }
            granted.remove(&claim.id);
        }
        self.take_sealed(claim, entries).await
    }

    /// As [`Self::seal`], without the check of the grant.
    pub(super) async fn take_sealed(
        &self,
        claim: StoredReport,
        entries: Vec<(ChunkId, Place)>,
    ) -> Result<(), BackupError> {
        let length = claim.length;
        let ids: Vec<ChunkId> = entries.iter().map(|(id, _)| *id).collect();
        let is_data = claim.kind == PackKind::Data;
        let stored = commit::seal(&*self.repository.store, claim, self.locks.packs).await?;
        self.grew(usize::try_from(length).unwrap_or(usize::MAX));
        metrics::counter!("milkrun_sealed_packs_total").increment(1);
        metrics::counter!("milkrun_sealed_bytes_total").increment(length);
        // Noted before anybody knows its chunks: in a journal, a pack comes before the regions that use it. Metadata packs are not
        // noted, since maps are built anew.
        if let (true, Some(journal)) = (is_data, &self.journal) {
            journal.note(Record::Sealed { pack: stored.info().clone(), entries: entries.clone() });
        }
        let full = {
            let mut index = lock(&self.index);
            index.add(stored.info().clone(), entries);
            index.fresh_len() >= SEGMENT_ENTRIES
        };
        lock(&self.stored).insert(stored.info().id, stored);
        self.claims.settle(&ids);
        if full {
            self.write_segment(false).await?;
        }
        Ok(())
    }

    /// Writes the chunks that this run sealed to the repository's index.
    pub(super) async fn write_segment(&self, merge: bool) -> Result<(), BackupError> {
        let Some(segment) = lock(&self.index).unwritten(merge) else { return Ok(()) };
        let id = SegmentId::random();
        let (repository, key) = (&self.repository, Key::segment(&self.root.domain(), &id));
        let body = segment.encode();
        let object = envelope::seal(&repository.ring, &repository.config.id, &key, Kind::IndexSegment, &body);
        let size = object.len();
        let created = repository.store.create(&key, object.into(), None).await;
        created.map_err(|e| BackupError::Create(key, e))?;
        self.grew(size);
        let mapped = self.cache.store(&id, &body)?;
        lock(&self.index).written(id, mapped);
        Ok(())
    }
}
