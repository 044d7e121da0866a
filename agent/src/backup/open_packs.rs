//! Open packs of a run on this agent. CPU jobs fill them, full ones are uploaded by grant and sealed.
//!
//! A pack is either idle, in one CPU job's hands, or on its way. The last two hold a permit of the budget; an idle one holds
//! none, lest who waits for a permit wait for packs that nobody fills. Their number is bounded all the same: a new pack is
//! made only when none is idle, so that all packs together are never more than the permits.

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
use super::cut::Fresh;
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
    /// Lower: begun earlier.
    number: u64,
    builder: PackBuilder,
    entries: Vec<(ChunkId, Place)>,
}

/// The packs of one run on this agent, and the claims on its chunks.
pub struct RunPacks {
    target: PackTarget,
    redeem: Arc<dyn Redeem>,
    pace: LevelControl,
    /// Who uploads what.
    pub claims: Claims,
    idle: Mutex<Vec<OpenPack>>,
    /// Packs that were begun.
    begun: AtomicU64,
    buffers: Mutex<Vec<Vec<u8>>>,
    uploads: tokio::sync::Mutex<JoinSet<()>>,
    /// Packs that are being uploaded or wait for leave to be.
    on_the_line: AtomicUsize,
    /// Why they can't be stored, as others hear it, and for the first who asks.
    failed: Mutex<Option<(BackupError, Option<BackupError>)>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Chunks of a region that are to be stored: the region's bytes and where the chunks lie in them.
pub(super) struct Batch {
    pub(super) bytes: Arc<RegionBytes>,
    pub(super) chunks: std::collections::VecDeque<Fresh>,
}

/// Counts a pack on its way in an assignment's name: the coordinator takes it only as long as that is in force.
struct Underway(tokio::sync::watch::Sender<Uploads>);

impl Underway {
    /// `None` once no more may set out.
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
struct OnTheLine(Arc<RunPacks>);

impl OnTheLine {
    fn of(run: &Arc<RunPacks>) -> Self {
        run.on_the_line.fetch_add(1, Ordering::Relaxed);
        Self(run.clone())
    }
}

impl Drop for OnTheLine {
    fn drop(&mut self) {
        self.0.on_the_line.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What became of a region's fresh chunks.
pub struct Stored {
    /// What must be settled before the region may be named in a checkpoint.
    pub wanted: Vec<Settled>,
    /// What another node is storing.
    pub elsewhere: Vec<Fresh>,
}

impl RunPacks {
    /// For one run.
    pub fn new(target: PackTarget, redeem: Arc<dyn Redeem>, pace: LevelControl) -> Self {
        Self {
            target,
            redeem,
            pace,
            claims: Claims::default(),
            idle: Mutex::default(),
            begun: AtomicU64::new(0),
            buffers: Mutex::default(),
            uploads: tokio::sync::Mutex::default(),
            on_the_line: AtomicUsize::new(0),
            failed: Mutex::default(),
        }
    }

    /// Why the run's packs can't be stored, if they can't.
    pub fn failed(&self) -> Option<BackupError> {
        let mut failed = lock(&self.failed);
        let (others, first) = failed.as_mut()?;
        // The first to ask gets the error itself, the others what follows for them.
        Some(first.take().unwrap_or_else(|| others.stops_others()))
    }

    /// Whether they can't be stored any more.
    pub fn is_broken(&self) -> bool {
        lock(&self.failed).is_some()
    }

    /// Nothing of the run is stored from here any more.
    pub fn fail(&self, e: BackupError) {
        lock(&self.failed).get_or_insert_with(|| (e.stops_others(), Some(e)));
        self.claims.ring();
    }

    /// Stores those of a region's fresh chunks that are not known yet, and that no other node is storing, if that is told.
    ///
    /// # Errors
    /// [`BackupError`].
    pub async fn store(
        self: &Arc<Self>,
        job: &VolumeJob,
        lookups: &Lookups,
        bytes: Arc<RegionBytes>,
        fresh: Vec<Fresh>,
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
            return Ok(Stored { wanted, elsewhere: Vec::new() });
        }
        let ids: Vec<ChunkId> = mine.iter().map(|c| c.id).collect();
        let answers = lookups.ask(ids).await.inspect_err(|e| self.fail(e.stops_others()))?;
        let with = |wanted: Answer| {
            let matching = mine.iter().zip(&answers).filter(move |(_, a)| **a == wanted);
            matching.map(|(c, _)| c.clone())
        };
        self.claims.settle(with(Answer::Known).map(|c| c.id));
        let elsewhere = with(Answer::Elsewhere).collect();
        self.fill(job, Batch { bytes, chunks: with(Answer::Yours).collect() }).await?;
        Ok(Stored { wanted, elsewhere })
    }

    pub(super) async fn fill(self: &Arc<Self>, job: &VolumeJob, mut batch: Batch) -> Result<(), BackupError> {
        while !batch.chunks.is_empty() {
            if let Some(e) = self.failed() {
                return Err(e);
            }
            let (open, permit, waited) = self.take(job).await;
            let (counters, cpu) = (job.counters.clone(), &job.engine.cpu);
            let worked = Worked { time: cpu.worked(), threads: cpu.count() };
            let level = self.pace.level(waited, worked, Instant::now());
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

    /// An idle pack, or a new one when there is none and the budget has room; and whether that had to wait for packs on their way.
    async fn take(&self, job: &VolumeJob) -> (OpenPack, Permit, bool) {
        let (permit, waited) = match job.engine.budget.try_pack() {
            Some(permit) => (permit, false),
            None => {
                // If it is rather threads of ours that hold the room, it is not the line that is slow. When a wait begins, packs may
                // still be on their way to it; when it ends, the one that made room may have left it.
                let before = self.on_the_line.load(Ordering::Relaxed);
                let permit = job.engine.budget.pack().await;
                let after = self.on_the_line.load(Ordering::Relaxed);
                let most = before.max(after + usize::from(after < before));
                (permit, most * 2 > job.engine.budget.pack_count())
            }
        };
        if let Some(open) = self.oldest_idle() {
            return (open, permit, waited);
        }
        let capacity = job.engine.budget.pack_bytes();
        // A fresh one has no pages until they are filled; those that come back are of this size.
        let mut buffer = lock(&self.buffers).pop().unwrap_or_else(|| vec![0; capacity]);
        buffer.resize(capacity, 0);
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        (OpenPack { number, builder: PackBuilder::new(self.target, buffer), entries: Vec::new() }, permit, waited)
    }

    /// What lies in the oldest pack are the first regions, and those behind them wait to be handed over until it is full.
    fn oldest_idle(&self) -> Option<OpenPack> {
        let mut idle = lock(&self.idle);
        let (oldest, _) = idle.iter().enumerate().min_by_key(|(_, open)| open.number)?;
        Some(idle.swap_remove(oldest))
    }

    /// Finishes a pack and sends it on its way. Returns whether it went: in the name of a volume that is about to be done none
    /// does any more, and it lies idle again.
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
                    let _counted = OnTheLine::of(&this);
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

    /// Sends all open packs on their way, full or not.
    pub async fn flush(self: &Arc<Self>, job: &VolumeJob) {
        loop {
            let permit = job.engine.budget.pack().await;
            let Some(open) = self.oldest_idle() else { return };
            if !open.builder.is_empty() && !self.dispatch(job, open, permit).await {
                return;
            }
        }
    }

    /// Stops what is on its way.
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
    // For chunks that are put together from single pages: no longer than the cutter's longest.
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
