//! Handing finished regions to the coordinator: in the order of the volume, each only once all its packs are sealed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::claims::Settled;
use super::{BackupError, Counters, Run, VolumeJob};
use crate::extent::Region;

/// Regions that wait for their packs. More, and open packs are sent early (see [`Checkpoints::push`]).
const WAITING: usize = 2048;
/// Regions and runs in one call.
const BATCH_REGIONS: usize = 256;
const BATCH_RUNS: usize = 16 * 1024;
/// Of so much that was read it is handed over at once, or so often, whatever comes first. Each call is an object in the run's journal;
/// what was not handed over when an agent dies is read again by the next one.
const BATCH_BYTES: u64 = 512 << 20;
const EVERY: Duration = Duration::from_secs(1);
/// A region that has waited so long for an open pack has it sent early, full or not: regions behind it wait too.
const PATIENCE: Duration = Duration::from_secs(15);

/// A region that was dealt with.
pub struct Done {
    /// What it is.
    pub region: Region,
    /// Bytes that were read for it.
    pub read: u64,
    /// What must be settled before the coordinator may hear of it.
    pub wanted: Vec<Settled>,
}

/// The way in.
pub struct Checkpoints {
    sender: mpsc::Sender<Done>,
    task: HandOver,
}

/// The task that hands over; stopped when dropped.
struct HandOver(tokio::task::JoinHandle<Result<(), BackupError>>);

impl Drop for HandOver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Checkpoints {
    /// Starts handing over.
    pub fn start(job: &Arc<VolumeJob>) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        Self { sender, task: HandOver(tokio::spawn(hand_over(job.clone(), receiver))) }
    }

    /// Adds the next region in order.
    ///
    /// # Errors
    /// Why handing over stopped.
    pub async fn push(&mut self, job: &Arc<VolumeJob>, done: Done) -> Result<(), BackupError> {
        match self.sender.try_send(done) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(done)) => {
                // Many regions wait for few new chunks: send their packs now rather than to hold the regions.
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
        match (&mut self.task.0).await {
            Ok(Err(e)) => Err(e),
            _ => Err(BackupError::Stopped { why: "handing over regions ended".into(), passing: false }),
        }
    }

    /// All regions were added: waits until the coordinator has them.
    ///
    /// # Errors
    /// Why handing over stopped.
    pub async fn finish(self) -> Result<(), BackupError> {
        let Self { sender, mut task } = self;
        drop(sender);
        match (&mut task.0).await {
            Ok(result) => result,
            Err(_) => Err(BackupError::Stopped { why: "handing over regions was stopped".into(), passing: false }),
        }
    }
}

async fn hand_over(job: Arc<VolumeJob>, mut receiver: mpsc::Receiver<Done>) -> Result<(), BackupError> {
    let mut batch: Vec<Region> = Vec::new();
    let (mut runs, mut bytes) = (0, 0);
    let mut due = Instant::now() + EVERY;
    loop {
        let next = tokio::select! {
            next = receiver.recv() => next,
            () = tokio::time::sleep_until(due), if !batch.is_empty() => {
                send(&job, &mut batch, &mut runs).await?;
                (bytes, due) = (0, Instant::now() + EVERY);
                continue;
            }
        };
        let Some(Done { mut region, read, wanted }) = next else { return send(&job, &mut batch, &mut runs).await };
        loop {
            match tokio::time::timeout(PATIENCE, job.run.claims.wait(&wanted, || job.run.failed())).await {
                Ok(settled) => break settled?,
                Err(_) => {
                    job.run.flush(&job).await;
                    send(&job, &mut batch, &mut runs).await?;
                    (bytes, due) = (0, Instant::now() + EVERY);
                }
            }
        }
        if region.is_hole() {
            region.extents.clear();
        }
        bytes += read;
        runs += region.extents.len();
        match (batch.last_mut(), region.is_hole()) {
            // Terabytes of holes are one entry.
            (Some(last), true) if last.is_hole() && last.offset + last.len == region.offset => last.len += region.len,
            _ => batch.push(region),
        }
        if batch.len() >= BATCH_REGIONS || runs >= BATCH_RUNS || bytes >= BATCH_BYTES {
            send(&job, &mut batch, &mut runs).await?;
            (bytes, due) = (0, Instant::now() + EVERY);
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
    // Only now: what was read and still waits for its upload, or to be handed over, is not done.
    Counters::add(&job.counters.done, len);
    Ok(())
}

impl Region {
    fn is_hole(&self) -> bool {
        !self.unchanged && self.extents.iter().all(|e| matches!(e.run, Run::Hole { .. }))
    }
}
