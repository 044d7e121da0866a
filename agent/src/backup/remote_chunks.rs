//! Chunks in flight on other nodes. Their bytes are not kept. A chunk that turns up in the index is settled; a chunk whose uploader is gone is
//! read again and uploaded here (a snapshot does not change).

use std::sync::Arc;

use milkrun_repository::chunk::PAGE;
use milkrun_repository::id::ChunkId;
use tokio::sync::mpsc;

use super::cut::Fresh;
use super::open_packs::Batch;
use super::region_bytes::RegionBytes;
use super::{BackupError, VolumeJob};
use crate::device::Source;
use crate::rpc::Answer;

/// Chunks that may wait at once. More, and regions wait before they go on.
const WAITING_MAX: usize = 16 * 1024;
/// Ids in one question.
const ASKED: usize = 4096;

/// A chunk that another node is storing.
#[derive(Clone, Debug)]
pub struct Pending {
    /// Where the region begins in this volume.
    pub region: u64,
    /// Which one, and of which parts of the region it consists.
    pub chunk: Fresh,
}

/// The way in; waiting ends when it is dropped and all is settled.
#[derive(Clone)]
pub struct Elsewhere {
    sender: mpsc::Sender<Pending>,
}

impl Elsewhere {
    /// Starts waiting for what is sent.
    pub fn start(job: &Arc<VolumeJob>, source: &Arc<dyn Source>) -> (Self, Waiting) {
        let (sender, receiver) = mpsc::channel(ASKED);
        let (job, source) = (job.clone(), source.clone());
        let task = tokio::spawn(async move {
            if let Err(e) = wait_for(&job, &source, receiver).await {
                job.run.fail(e);
            }
        });
        (Self { sender }, Waiting(task))
    }

    /// More to wait for. Whoever calls holds no buffer: what is waited for may need one.
    pub async fn add(&self, pending: Vec<Pending>) {
        for p in pending {
            // Waiting failed: whoever hands over the region hears why.
            if self.sender.send(p).await.is_err() {
                return;
            }
        }
    }
}

/// The task that waits; stopped when dropped.
pub struct Waiting(tokio::task::JoinHandle<()>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn wait_for(
    job: &Arc<VolumeJob>,
    source: &Arc<dyn Source>,
    mut receiver: mpsc::Receiver<Pending>,
) -> Result<(), BackupError> {
    let mut waiting: Vec<Pending> = Vec::new();
    loop {
        if waiting.is_empty() {
            match receiver.recv().await {
                Some(pending) => waiting.push(pending),
                None => return Ok(()),
            }
        }
        while waiting.len() < WAITING_MAX {
            let Ok(pending) = receiver.try_recv() else { break };
            waiting.push(pending);
        }
        let asked = waiting.split_off(waiting.len().saturating_sub(ASKED));
        let ids: Vec<ChunkId> = asked.iter().map(|p| p.chunk.id).collect();
        let answers = job.coordinator.lookup_later(&ids).await?;
        let with = |wanted: Answer| {
            let matching = asked.iter().zip(&answers).filter(move |(_, a)| **a == wanted);
            matching.map(|(p, _)| p.clone()).collect::<Vec<_>>()
        };
        job.run.claims.settle(with(Answer::Known).into_iter().map(|p| p.chunk.id));
        store_again(job, source, with(Answer::Yours)).await?;
        // Others first, next time.
        waiting.splice(0..0, with(Answer::Elsewhere));
    }
}

/// Stores chunks whose uploader is gone, as many at a time as a region's buffer holds.
async fn store_again(
    job: &Arc<VolumeJob>,
    source: &Arc<dyn Source>,
    mut chunks: Vec<Pending>,
) -> Result<(), BackupError> {
    let room = usize::try_from(job.engine.region_bytes).unwrap_or(usize::MAX);
    while !chunks.is_empty() {
        let mut used = 0;
        let mut placed = Vec::new();
        // Page by page: reads past the system's cache need it.
        while let Some(pending) = chunks.pop_if(|p| used + p.chunk.len().next_multiple_of(PAGE) <= room) {
            let len = pending.chunk.len();
            placed.push((used, pending));
            used += len.next_multiple_of(PAGE);
        }
        let permit = job.engine.budget.transfer(job.engine.region_bytes).await;
        let mut buffer = job.engine.regions.take(used);
        let (length, from) = (source.len(), source.clone());
        let mut parts = Vec::new();
        for (at, Pending { region, chunk }) in &placed {
            let mut at = *at;
            for &(offset, len) in &chunk.parts {
                parts.push((at, len, region + offset as u64));
                at += len;
            }
        }
        let read = move || {
            for (at, len, offset) in parts {
                from.read_at(&mut buffer[at..at + len], offset).map_err(|e| (offset, e))?;
            }
            Ok(buffer)
        };
        let buffer = job.engine.io.run(read).await;
        let buffer = buffer.map_err(|(offset, e)| BackupError::Read { offset, length, source: e })?;
        let chunks = placed.into_iter().map(|(at, p)| Fresh { parts: vec![(at, p.chunk.len())], id: p.chunk.id });
        let chunks = chunks.collect();
        job.run.fill(job, Batch { bytes: Arc::new(RegionBytes::whole(buffer)), chunks }).await?;
        drop(permit);
    }
    Ok(())
}
