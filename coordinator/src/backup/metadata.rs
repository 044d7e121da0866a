//! The metadata packs of a run: the coordinator fills and stores them.

use bytes::Bytes;
use milkrun_repository::metadata::{FinishedMetadata, Prepared};
use milkrun_repository::pack::PackKind;
use milkrun_repository::point::commit::StoredReport;
use milkrun_repository::store::{CreateError, Key};
use milkrun_repository::volume_map::MapRef;

use super::{BackupError, Run, lock};

impl Run {
    /// Stores a map chunk, or finds that it is already stored.
    pub(super) async fn put_metadata(&self, bytes: Vec<u8>) -> Result<MapRef, BackupError> {
        let prepared = self.preparer.map(bytes).map_err(BackupError::Setup)?;
        self.put_prepared(&prepared).await
    }

    pub(super) async fn put_prepared(&self, prepared: &Prepared) -> Result<MapRef, BackupError> {
        let mut writer = self.metadata.lock().await;
        let reference = writer.put(prepared)?;
        let full = writer.take_full();
        drop(writer);
        lock(&self.referenced).insert(reference.place.pack);
        self.store_metadata(full).await?;
        Ok(reference)
    }

    async fn store_metadata(&self, full: Vec<FinishedMetadata>) -> Result<(), BackupError> {
        let mut full = full.into_iter();
        while let Some(mut finished) = full.next() {
            if let Err(e) = self.store_metadata_pack(&mut finished).await {
                // Maps already name this pack: the next call that stores a pack tries it again, and so does the commit.
                self.metadata.lock().await.give_back(std::iter::once(finished).chain(full));
                return Err(e);
            }
        }
        Ok(())
    }

    async fn store_metadata_pack(&self, finished: &mut FinishedMetadata) -> Result<(), BackupError> {
        let pack = &mut finished.pack;
        if lock(&self.stored).contains_key(&pack.id) {
            // The pack was stored; a later step failed.
            return Ok(());
        }
        let mut claim = StoredReport {
            id: pack.id,
            kind: PackKind::Metadata,
            length: pack.bytes.len() as u64,
            digest: pack.digest,
            crc32: pack.crc32,
            key: pack.key.clone(),
            version: None,
        };
        let key = Key::pack(&pack.id);
        let body = Bytes::from(std::mem::take(&mut pack.bytes));
        let created = self.repository.store.create(&key, body.clone(), self.locks.packs).await;
        pack.bytes = body.into();
        match created {
            Ok(version) => claim.version = Some(version),
            // Nobody else knows its name: an earlier attempt of this process stored it and did not get the answer.
            Err(CreateError::Exists(_)) if finished.tried => {}
            Err(e) => {
                finished.tried |= matches!(e, CreateError::Failed(_));
                return Err(BackupError::Create(key, e));
            }
        }
        finished.tried = true;
        // Map chunks are found by their places; the index need not know them.
        self.take_sealed(claim, Vec::new()).await
    }

    /// Closes the last metadata pack.
    pub(super) async fn close_metadata(&self) -> Result<(), BackupError> {
        let full = {
            let mut writer = self.metadata.lock().await;
            writer.close()?;
            writer.take_full()
        };
        self.store_metadata(full).await
    }
}
