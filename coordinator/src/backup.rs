//! Backup runs: the state of one, which the upload service works on ([`Run`]), and the run itself, from the order to the commit
//! (`execute`).

mod assign;
mod claims;
mod error;
mod execute;
mod finish;
mod fragmentation;
mod lookups;
mod map_part;
mod metadata;
pub(crate) mod opened;
mod order;
mod packs;
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
pub use lookups::Answer;
pub use order::Order;
pub use parent::Detail;
pub(crate) use take_over::take_over;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use milkrun_identity::Peer;
use milkrun_proto::agent::v1 as wire;
use milkrun_repository::Repository;
use milkrun_repository::clock::Moment;
use milkrun_repository::id::{PackId, PointId};
use milkrun_repository::index::{ChunkIndex, IndexCache, PackInfo};
use milkrun_repository::keys::Domain;
use milkrun_repository::metadata::{MetadataWriter, OpenedKeys, Preparer};
use milkrun_repository::point::Root;
use milkrun_repository::point::commit::{Locks, StoredPack};
use milkrun_repository::point::journal::Record;
use tokio::time::Instant;

use crate::admission::Admission;
use crate::assignment::{Assigned, RefusedCall};
use crate::inventory::SourceSpec;
use crate::journal::Journal;
use claims::Claims;
use packs::Granted;
use quota::Quota;
use volume::VolumeBuild;

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
}
