//! Open packs of a run on this agent. CPU jobs fill them; full ones are uploaded by grant and sealed.
//!
//! A pack is idle, or a CPU job fills it, or it is being uploaded. In the last two states it holds a permit of the
//! budget. An idle pack holds none: otherwise a task could wait for a permit that only packs hold which nobody fills.
//! The number of packs is bounded all the same: a new pack is made only if none is idle, so there are never more packs
//! than permits.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use milkrun_repository::chunk::codec::{Compressor, Level};
use milkrun_repository::id::ChunkId;
use milkrun_repository::pack::{PackBuilder, PackTarget, Place};
use milkrun_repository::store::grant::Redeem;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::adaptive_level::{LevelControl, Worked};
use super::claims::{Claim, Claims, Settled};
use super::cut::NewChunk;
use super::lookups::Lookups;
use super::region_bytes::RegionBytes;
use super::{BackupError, Counters, Uploads, VolumeJob};
use crate::budget::Permit;
use crate::rpc::{Answer, Coordinator, SealedClaim};

thread_local! {
    /// One set of zstd tables per worker thread.
    static COMPRESSOR: RefCell<Option<Compressor>> = const { RefCell::new(None) };
}

struct OpenPack {
    /// Packs are numbered in the order in which they are begun.
    number: u64,
    builder: PackBuilder,
    entries: Vec<(ChunkId, Place)>,
}

/// The packs of one run on this agent, and the claims on its chunks.
pub struct RunPacks {
    target: PackTarget,
    redeem: Arc<dyn Redeem>,
    level_control: LevelControl,
    /// Which chunks are being uploaded.
    pub claims: Claims,
    idle: Mutex<Vec<OpenPack>>,
    /// The number of packs that were begun.
    begun: AtomicU64,
    buffers: Mutex<Vec<Vec<u8>>>,
    uploads: tokio::sync::Mutex<JoinSet<()>>,
    /// The number of packs that are being uploaded, or that wait for a grant.
    uploading: AtomicUsize,
    /// Why packs can't be stored: the error for all who ask later, and the original one for the first who asks.
    failed: Mutex<Option<(BackupError, Option<BackupError>)>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Chunks that are to be stored, and the region in whose bytes they lie.
pub(super) struct Batch {
    pub(super) bytes: Arc<RegionBytes>,
    pub(super) chunks: std::collections::VecDeque<NewChunk>,
}

/// Counts an upload under an assignment. The coordinator accepts the pack only as long as the assignment is in force.
struct Underway(tokio::sync::watch::Sender<Uploads>);

impl Underway {
    /// `None` once no more uploads may begin.
    fn of(job: &VolumeJob) -> Option<Self> {
        let may = job.uploads.send_if_modified(|u| {
            u.under_way += usize::from(!u.closed);
            !u.closed
        });
        may.then(|| Self(job.uploads.clone()))
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.send_modify(|u| u.under_way -= 1);
    }
}

/// Counts a pack that is being uploaded.
struct Uploading(Arc<RunPacks>);

impl Uploading {
    fn of(run: &Arc<RunPacks>) -> Self {
        run.uploading.fetch_add(1, Ordering::Relaxed);
        Self(run.clone())
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        self.0.uploading.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What happened to the new chunks of a region.
pub struct Stored {
    /// Chunks that must be settled before the region may be checkpointed.
    pub wanted: Vec<Settled>,
    /// Chunks that another node is storing.
    pub remote: Vec<NewChunk>,
}

impl RunPacks {
    /// For one run.
    pub fn new(target: PackTarget, redeem: Arc<dyn Redeem>, level_control: LevelControl) -> Self {
        Self {
            target,
            redeem,
            level_control,
            claims: Claims::default(),
            idle: Mutex::default(),
            begun: AtomicU64::new(0),
            buffers: Mutex::default(),
            uploads: tokio::sync::Mutex::default(),
            uploading: AtomicUsize::new(0),
            failed: Mutex::default(),
        }
    }

    /// Why the run's packs can't be stored, if they can't.
    pub fn failed(&self) -> Option<BackupError> {
        let mut failed = lock(&self.failed);
        let (others, first) = failed.as_mut()?;
        // The first caller gets the error itself, later ones get one that says why they stop.
        Some(first.take().unwrap_or_else(|| others.stops_others()))
    }

    /// Whether the run's packs can't be stored any more.
    pub fn is_broken(&self) -> bool {
        lock(&self.failed).is_some()
    }

    /// Marks the run as failed: this agent stores nothing of it any more.
    pub fn fail(&self, e: BackupError) {
        lock(&self.failed).get_or_insert_with(|| (e.stops_others(), Some(e)));
        self.claims.wake_all();
    }

    /// Stores the new chunks of a region, except those that are known already. If `lookups` are shared, also except
    /// those that another node is storing.
    ///
    /// # Errors
    /// [`BackupError`].
    pub async fn store(
        self: &Arc<Self>,
        job: &VolumeJob,
        lookups: &Lookups,
        bytes: Arc<RegionBytes>,
        fresh: Vec<NewChunk>,
    ) -> Result<Stored, BackupError> {
        let mut wanted = Vec::new();
        let mut mine = Vec::new();
        for chunk in fresh {
            match self.claims.claim(chunk.id) {
                Claim::Mine(settled) => {
                    wanted.push(settled);
                    mine.push(chunk);
                }
                Claim::Theirs(settled) => wanted.push(settled),
            }
        }
        if mine.is_empty() {
            return Ok(Stored { wanted, remote: Vec::new() });
        }
        let ids: Vec<ChunkId> = mine.iter().map(|c| c.id).collect();
        let answers = lookups.ask(ids).await.inspect_err(|e| self.fail(e.stops_others()))?;
        let answered = |answer: Answer| {
            let matching = mine.iter().zip(&answers).filter(move |(_, a)| **a == answer);
            matching.map(|(c, _)| c.clone())
        };
        self.claims.settle(answered(Answer::Known).map(|c| c.id));
        let remote = answered(Answer::Remote).collect();
        self.fill(job, Batch { bytes, chunks: answered(Answer::Yours).collect() }).await?;
        Ok(Stored { wanted, remote })
    }

    pub(super) async fn fill(self: &Arc<Self>, job: &VolumeJob, mut batch: Batch) -> Result<(), BackupError> {
        while !batch.chunks.is_empty() {
            if let Some(e) = self.failed() {
                return Err(e);
            }
            let (open, permit, waited) = self.take(job).await;
            let (counters, cpu) = (job.counters.clone(), &job.engine.cpu);
            let worked = Worked { time: cpu.worked(), threads: cpu.count() };
            let level = self.level_control.level(waited, worked, Instant::now());
            let (open, rest, full) = cpu.run(move || fill_now(open, batch, level, &counters)).await?;
            batch = rest;
            if full {
                self.dispatch(job, open, permit).await;
            } else {
                lock(&self.idle).push(open);
                drop(permit);
            }
        }
        Ok(())
    }

    /// An idle pack, or a new one if none is idle and the budget has room. Also returns whether the caller had to wait
    /// for uploads.
    async fn take(&self, job: &VolumeJob) -> (OpenPack, Permit, bool) {
        let (permit, waited) = match job.engine.budget.try_pack() {
            Some(permit) => (permit, false),
            None => {
                // If mostly CPU jobs hold the permits, uploads are not the bottleneck. The count is taken twice: when
                // the wait begins, full packs may not be uploading yet; when it ends, the upload that made room may be
                // over.
                let before = self.uploading.load(Ordering::Relaxed);
                let permit = job.engine.budget.pack().await;
                let after = self.uploading.load(Ordering::Relaxed);
                let most = before.max(after + usize::from(after < before));
                (permit, most * 2 > job.engine.budget.pack_count())
            }
        };
        if let Some(open) = self.oldest_idle() {
            return (open, permit, waited);
        }
        let capacity = job.engine.budget.pack_bytes();
        // The kernel gives a new buffer its pages only as it is filled. Buffers that come back have this size already.
        let mut buffer = lock(&self.buffers).pop().unwrap_or_else(|| vec![0; capacity]);
        buffer.resize(capacity, 0);
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        (OpenPack { number, builder: PackBuilder::new(self.target, buffer), entries: Vec::new() }, permit, waited)
    }

    /// The oldest idle pack. It holds chunks of the earliest regions, and all later regions wait for these to be handed
    /// over.
    fn oldest_idle(&self) -> Option<OpenPack> {
        let mut idle = lock(&self.idle);
        let (oldest, _) = idle.iter().enumerate().min_by_key(|(_, open)| open.number)?;
        Some(idle.swap_remove(oldest))
    }

    /// Finishes a pack and starts its upload. Returns whether it did: while a volume is being finished no more uploads
    /// begin under its assignment, and the pack becomes idle again.
    async fn dispatch(self: &Arc<Self>, job: &VolumeJob, open: OpenPack, permit: Permit) -> bool {
        let Some(underway) = Underway::of(job) else {
            lock(&self.idle).push(open);
            return false;
        };
        let (this, engine, coordinator) = (self.clone(), job.engine.clone(), job.coordinator.clone());
        let mut uploads = self.uploads.lock().await;
        while uploads.try_join_next().is_some() {}
        uploads.spawn(async move {
            let OpenPack { builder, entries, .. } = open;
            let finished = engine.cpu.run(move || builder.finish()).await;
            let result = match finished {
                Ok(pack) => {
                    let _counted = Uploading::of(&this);
                    this.upload(&coordinator, pack, entries).await
                }
                Err(e) => Err(BackupError::Pack(e.to_string())),
            };
            if let Err(e) = result {
                this.fail(e);
            }
            drop((permit, underway));
        });
        true
    }

    async fn upload(
        &self,
        coordinator: &Coordinator,
        pack: milkrun_repository::pack::SealedPack,
        entries: Vec<(ChunkId, Place)>,
    ) -> Result<(), BackupError> {
        let mut claim = SealedClaim {
            id: pack.id,
            length: pack.bytes.len() as u64,
            crc32: pack.crc32,
            digest: pack.digest,
            key: pack.key,
            version: None,
        };
        let grant = coordinator.grant(&claim).await?;
        let body = Bytes::from(pack.bytes);
        let stored = self.redeem.put(&grant, body.clone()).await;
        claim.version = stored.map_err(|source| BackupError::Store { pack: claim.id, source })?;
        metrics::counter!("milkrun_agent_uploads_total").increment(1);
        metrics::counter!("milkrun_agent_uploaded_bytes_total").increment(claim.length);
        if let Ok(buffer) = body.try_into_mut() {
            lock(&self.buffers).push(buffer.into());
        }
        coordinator.seal(&claim, &entries).await?;
        self.claims.settle(entries.into_iter().map(|(id, _)| id));
        Ok(())
    }

    /// Uploads all idle packs, full or not.
    pub async fn flush(self: &Arc<Self>, job: &VolumeJob) {
        loop {
            let permit = job.engine.budget.pack().await;
            let Some(open) = self.oldest_idle() else { return };
            if !open.builder.is_empty() && !self.dispatch(job, open, permit).await {
                return;
            }
        }
    }

    /// Stops all uploads, and drops the idle packs.
    pub async fn abort(&self) {
        self.uploads.lock().await.shutdown().await;
        lock(&self.idle).clear();
    }
}

/// Fills a pack with as much of the batch as fits.
fn fill_now(
    mut open: OpenPack,
    mut batch: Batch,
    level: Level,
    counters: &Counters,
) -> Result<(OpenPack, Batch, bool), BackupError> {
    // For chunks that are put together from single pages. It grows no longer than the cutter's longest chunk.
    let mut scratch = Vec::new();
    COMPRESSOR.with_borrow_mut(|slot| {
        let compressor = match slot {
            Some(compressor) => compressor,
            None => slot.insert(Compressor::new(level).map_err(|e| BackupError::Pack(e.to_string()))?),
        };
        compressor.set_level(level).map_err(|e| BackupError::Pack(e.to_string()))?;
        while let Some(chunk) = batch.chunks.front() {
            let len = chunk.len();
            if !open.builder.fits(len) {
                return Ok((open, batch, true));
            }
            let place = open.builder.append(&chunk.id, chunk.plaintext(&batch.bytes, &mut scratch), compressor);
            open.entries.push((chunk.id, place));
            Counters::add(&counters.new, len as u64);
            metrics::counter!("milkrun_agent_new_bytes_total").increment(len as u64);
            Counters::add(&counters.stored, u64::from(place.sealed_len));
            batch.chunks.pop_front();
        }
        Ok((open, batch, false))
    })
}
