//! Hands finished regions to the coordinator, in the order of the volume, each once all its packs are sealed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::claims::Settled;
use super::{BackupError, Counters, Run, VolumeJob};
use crate::extent::Region;

/// The largest number of regions that wait for their packs. When it is reached, open packs are uploaded early (see
/// [`Checkpoints::push`]).
const WAITING_MAX: usize = 2048;
/// The largest numbers of regions and runs in one call.
const BATCH_REGIONS: usize = 256;
const BATCH_RUNS: usize = 16 * 1024;
/// A call is made after so many bytes were read, or after this interval, whichever comes first. Each call is an object
/// in the run's journal. If the agent dies, the next attempt reads again what was not handed over.
const BATCH_BYTES: u64 = 512 << 20;
const BATCH_INTERVAL: Duration = Duration::from_secs(1);
/// When a region has waited so long for open packs, these are uploaded early, full or not: later regions wait too.
const PACK_WAIT_MAX: Duration = Duration::from_secs(15);

/// A region that was read and cut.
pub struct FinishedRegion {
    /// The region.
    pub region: Region,
    /// Bytes that were read for it.
    pub read: u64,
    /// Chunks that must be settled before the region may be handed over.
    pub wanted: Vec<Settled>,
}

/// Takes finished regions.
pub struct Checkpoints {
    sender: mpsc::Sender<FinishedRegion>,
    task: AbortOnDropHandle<Result<(), BackupError>>,
}

impl Checkpoints {
    /// Starts the task.
    pub fn start(job: &Arc<VolumeJob>) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        Self { sender, task: AbortOnDropHandle::new(tokio::spawn(hand_over(job.clone(), receiver))) }
    }

    /// Adds the next region in order.
    ///
    /// # Errors
    /// Why handing over stopped.
    pub async fn push(&mut self, job: &Arc<VolumeJob>, done: FinishedRegion) -> Result<(), BackupError> {
        match self.sender.try_send(done) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(done)) => {
                // Many regions wait for few new chunks: their packs are uploaded now, so that the regions need not
                // wait.
                job.run.flush(job).await;
                match self.sender.send(done).await {
                    Ok(()) => Ok(()),
                    Err(_) => self.why().await,
                }
            }
            Err(mpsc::error::TrySendError::Closed(_)) => self.why().await,
        }
    }

    async fn why(&mut self) -> Result<(), BackupError> {
        match (&mut self.task).await {
            Ok(Err(e)) => Err(e),
            _ => Err(BackupError::Stopped { why: "handing over regions ended".into(), passing: false }),
        }
    }

    /// Call this after the last region. It waits until the coordinator has all of them.
    ///
    /// # Errors
    /// Why handing over stopped.
    pub async fn finish(self) -> Result<(), BackupError> {
        let Self { sender, mut task } = self;
        drop(sender);
        match (&mut task).await {
            Ok(result) => result,
            Err(_) => Err(BackupError::Stopped { why: "handing over regions was stopped".into(), passing: false }),
        }
    }
}

async fn hand_over(job: Arc<VolumeJob>, mut receiver: mpsc::Receiver<FinishedRegion>) -> Result<(), BackupError> {
    let mut batch: Vec<Region> = Vec::new();
    let (mut runs, mut bytes) = (0, 0);
    let mut due = Instant::now() + BATCH_INTERVAL;
    loop {
        let next = tokio::select! {
            next = receiver.recv() => next,
            () = tokio::time::sleep_until(due), if !batch.is_empty() => {
                send(&job, &mut batch, &mut runs).await?;
                (bytes, due) = (0, Instant::now() + BATCH_INTERVAL);
                continue;
            }
        };
        let Some(FinishedRegion { mut region, read, wanted }) = next else {
            return send(&job, &mut batch, &mut runs).await;
        };
        loop {
            match tokio::time::timeout(PACK_WAIT_MAX, job.run.claims.wait(&wanted, || job.run.failed())).await {
                Ok(settled) => break settled?,
                Err(_) => {
                    job.run.flush(&job).await;
                    send(&job, &mut batch, &mut runs).await?;
                    (bytes, due) = (0, Instant::now() + BATCH_INTERVAL);
                }
            }
        }
        if region.is_hole() {
            region.extents.clear();
        }
        bytes += read;
        runs += region.extents.len();
        match (batch.last_mut(), region.is_hole()) {
            // Neighbouring holes, which may be terabytes, become one entry.
            (Some(last), true) if last.is_hole() && last.offset + last.len == region.offset => last.len += region.len,
            _ => batch.push(region),
        }
        if batch.len() >= BATCH_REGIONS || runs >= BATCH_RUNS || bytes >= BATCH_BYTES {
            send(&job, &mut batch, &mut runs).await?;
            (bytes, due) = (0, Instant::now() + BATCH_INTERVAL);
        }
    }
}

async fn send(job: &VolumeJob, batch: &mut Vec<Region>, runs: &mut usize) -> Result<(), BackupError> {
    *runs = 0;
    if batch.is_empty() {
        return Ok(());
    }
    let len = batch.iter().map(|r| r.len).sum();
    job.coordinator.checkpoint(std::mem::take(batch)).await?;
    // Only now: a region that still waits for its upload, or to be handed over, is not done.
    Counters::add(&job.counters.done, len);
    Ok(())
}

impl Region {
    fn is_hole(&self) -> bool {
        !self.unchanged && self.extents.iter().all(|e| matches!(e.run, Run::Hole { .. }))
    }
}
