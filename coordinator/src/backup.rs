//! Backup runs: what the upload service works on ([`Run`]), and the run itself, from the order to the commit (`execute`).

mod assign;
mod claims;
mod error;
mod execute;
mod finish;
mod fragmentation;
mod map_part;
pub(crate) mod opened;
mod order;
mod pages;
mod parent;
mod parent_region;
mod quota;
mod replay;
mod restore_cost;
mod sets;
mod take_over;
mod volume;
mod waiting;

pub use error::BackupError;
pub(crate) use execute::execute;
pub use order::Order;
pub use parent::Detail;
pub(crate) use take_over::take_over;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use milkrun_identity::Peer;
use milkrun_proto::agent::v1 as wire;
use milkrun_repository::Repository;
use milkrun_repository::clock::Moment;
use milkrun_repository::id::{ChunkId, PackId, PointId, SegmentId};
use milkrun_repository::index::{ChunkIndex, IndexCache, PackInfo};
use milkrun_repository::keys::Domain;
use milkrun_repository::keys::envelope::{self, Kind};
use milkrun_repository::metadata::{FinishedMetadata, MetadataWriter, OpenedKeys, Prepared, Preparer};
use milkrun_repository::pack::{PackKind, Place};
use milkrun_repository::point::Root;
use milkrun_repository::point::commit::{self, Claim, Locks, StoredPack};
use milkrun_repository::point::journal::Record;
use milkrun_repository::store::grant::{PutGrant, PutTerms};
use milkrun_repository::store::{CreateError, GetError, Key};
use milkrun_repository::volume_map::MapRef;
use tokio::time::Instant;

use crate::admission::Admission;
use crate::assignment::{Assigned, RefusedCall};
use crate::inventory::SourceSpec;
use crate::journal::Journal;
use claims::{Claimed, Claims};
use quota::Quota;
use volume::VolumeBuild;

/// How many entries are kept in memory before they become a segment: 512 Ki entries are about 60 MB.
const SEGMENT_ENTRIES: usize = 512 * 1024;

/// How many bytes may be granted before the journal has to record them.
const GRANTED_UNWRITTEN: u64 = 256 << 20;

/// The times in HEAD answers are in whole seconds.
const STORE_TICK: Duration = Duration::from_secs(1);

/// How often a node is told that others wait for chunks that it is storing. Each time it sends packs that are not full.
const HURRY_EVERY: Duration = Duration::from_secs(5);

/// A backup run, as the upload service sees it.
pub struct Run {
    repository: Arc<Repository>,
    /// How people name the repository; empty where there is one.
    repository_name: String,
    /// Limits what is on its way to the repository's store.
    pub(crate) admission: Admission,
    cache: IndexCache,
    root: Root,
    /// When it began, by the store's clock.
    since: Moment,
    /// The identity of the repository's store when this run began.
    began_in: String,
    locks: Locks,
    index: Mutex<ChunkIndex>,
    preparer: Preparer,
    metadata: tokio::sync::Mutex<MetadataWriter>,
    /// The application's keys.
    domain: Arc<Domain>,
    volumes: Mutex<HashMap<String, Build>>,
    /// Packs that this run stored.
    stored: Mutex<HashMap<PackId, StoredPack>>,
    /// Packs that maps of this run name.
    referenced: Mutex<HashSet<PackId>>,
    /// Whether a pack is in the store, for the packs that the store was asked for.
    present: tokio::sync::Mutex<HashMap<PackId, bool>>,
    /// The parent.
    parent: Option<PointId>,
    /// Where the parent's maps are.
    parent_packs: Arc<HashMap<PackId, PackInfo>>,
    /// Those of their keys that were needed so far.
    parent_keys: Arc<OpenedKeys>,
    stored_bytes: AtomicU64,
    /// Held while a sample of the parent is taken.
    sampling: tokio::sync::Mutex<()>,
    /// Which node has which volume, under which attempt.
    assigned: Mutex<HashMap<String, Assigned>>,
    claims: Claims,
    /// For each node, when it was last told that others wait for chunks that it is storing.
    hurried: Mutex<HashMap<String, Instant>>,
    /// Records what was done, if another leader could go on with the run.
    journal: Option<Journal>,
    /// The sizes of volumes, where they are known.
    sizes: Mutex<HashMap<String, u64>>,
    /// The quota of each node.
    quotas: Mutex<HashMap<String, Quota>>,
    /// Bytes that were granted since the journal was last written.
    granted_unwritten: AtomicU64,
    /// Packs that were granted and are not sealed yet.
    granted: Mutex<HashMap<PackId, Granted>>,
}

/// The map of a volume while it is built.
type Build = Arc<tokio::sync::Mutex<VolumeBuild>>;

/// A pack that a node has a grant for.
struct Granted {
    node: String,
    length: u64,
    crc32: u32,
}

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

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a task that runs beside this one, and returns its result.
///
/// # Errors
/// [`BackupError::Cancelled`] when the process ends before the task does.
async fn joined<T>(work: tokio::task::JoinHandle<T>) -> Result<T, BackupError> {
    match work.await {
        Ok(done) => Ok(done),
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(_) => Err(BackupError::Cancelled),
    }
}

impl Run {
    /// Checks that an assignment is one of this run's.
    ///
    /// # Errors
    /// [`RefusedCall`].
    pub fn check(&self, a: &wire::Assignment, peer: &Peer) -> Result<(), RefusedCall> {
        if !lock(&self.volumes).contains_key(&a.volume) {
            return Err(RefusedCall::NoVolume(a.volume.clone()));
        }
        lock(&self.assigned).get(&a.volume).ok_or(RefusedCall::Stale)?.check(a, peer)
    }

    /// The map of a volume of this run while it is built.
    fn build_of(&self, volume: &str) -> Option<Build> {
        lock(&self.volumes).get(volume).cloned()
    }

    /// A volume's size in bytes, where that is known beforehand.
    fn size_of(&self, volume: &str) -> Option<u64> {
        lock(&self.sizes).get(volume).copied()
    }

    /// Adds a volume to this run.
    fn add_volume(&self, source: &SourceSpec, build: VolumeBuild) {
        let name = source.name.to_string();
        lock(&self.sizes).extend(source.size.map(|size| (name.clone(), size)));
        lock(&self.volumes).insert(name, Arc::new(tokio::sync::Mutex::new(build)));
    }

    /// A volume is assigned to a node: from now on only calls of this attempt count. Returns the offset from which the attempt goes
    /// on.
    async fn assign(&self, volume: &str, attempt: u32, node: &str) -> u64 {
        lock(&self.assigned).insert(volume.to_owned(), Assigned { attempt, node: node.to_owned() });
        lock(&self.quotas).entry(node.to_owned()).or_default().add(volume, self.size_of(volume));
        self.note_granted(node, volume, 0);
        match self.build_of(volume) {
            Some(build) => build.lock().await.begin_attempt(attempt),
            None => 0,
        }
    }

    /// A volume no longer has its node. Chunks that it claimed and did not store can be claimed by the nodes that wait for them.
    fn release(&self, volume: &str) {
        let mut assigned = lock(&self.assigned);
        if assigned.remove(volume).is_some() {
            // Under the lock, so that a late lookup of this attempt claims nothing afterwards.
            self.claims.forget(volume);
        }
    }

    /// Waits until no other sample of the parent is being taken.
    pub async fn sampling(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.sampling.lock().await
    }

    /// Bytes that the repository grew by so far.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes.load(Ordering::Relaxed)
    }

    fn grew(&self, bytes: usize) {
        self.stored_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Adds a record to the run's journal, if it has one. When this returns, another leader would find the record.
    ///
    /// # Errors
    /// [`BackupError::Journal`].
    pub(super) async fn write_down(&self, record: Record) -> Result<(), BackupError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        journal.note(record);
        self.write_journal().await
    }

    /// Waits until all records that were noted are in the journal.
    ///
    /// # Errors
    /// [`BackupError::Journal`].
    pub(super) async fn write_journal(&self) -> Result<(), BackupError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        self.granted_unwritten.store(0, Ordering::Relaxed);
        Ok(journal.write().await?)
    }

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
    async fn missing(&self, packs: HashSet<PackId>) -> Result<HashSet<PackId>, BackupError> {
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
    fn note_granted(&self, node: &str, volume: &str, bytes: u64) {
        if let (Some(journal), Ok(volume)) = (&self.journal, volume.parse()) {
            journal.note(Record::Granted { node: node.to_owned(), volume, bytes });
            self.granted_unwritten.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Asks the store what a pack really contains, and makes its chunks known.
    ///
    /// # Errors
    /// [`BackupError`] unless the pack is there, whole and locked.
    pub async fn seal(&self, volume: &str, claim: Claim, entries: Vec<(ChunkId, Place)>) -> Result<(), BackupError> {
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
    async fn take_sealed(&self, claim: Claim, entries: Vec<(ChunkId, Place)>) -> Result<(), BackupError> {
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
    async fn write_segment(&self, merge: bool) -> Result<(), BackupError> {
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

    /// Stores a map chunk, or finds that it is already stored.
    async fn put_metadata(&self, bytes: Vec<u8>) -> Result<MapRef, BackupError> {
        let prepared = self.preparer.map(bytes).map_err(BackupError::Setup)?;
        self.put_prepared(&prepared).await
    }

    async fn put_prepared(&self, prepared: &Prepared) -> Result<MapRef, BackupError> {
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
        let mut claim = Claim {
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
    async fn close_metadata(&self) -> Result<(), BackupError> {
        let full = {
            let mut writer = self.metadata.lock().await;
            writer.close()?;
            writer.take_full()
        };
        self.store_metadata(full).await
    }
}
