//! Chunks in flight on other nodes. Their bytes are not kept. A chunk that appears in the index is settled. A chunk
//! whose uploader is gone is read again and uploaded here (a snapshot does not change).

use std::sync::Arc;

use milkrun_repository::chunk::PAGE;
use milkrun_repository::id::ChunkId;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::cut::NewChunk;
use super::open_packs::Batch;
use super::region_bytes::RegionBytes;
use super::{BackupError, VolumeJob};
use crate::device::Source;
use crate::rpc::Answer;

/// The largest number of chunks that wait. When it is reached, regions wait before they add more.
const WAITING_MAX: usize = 16 * 1024;
/// Ids in one call.
const IDS_PER_CALL: usize = 4096;

/// A chunk that another node is storing.
#[derive(Clone, Debug)]
pub struct Pending {
    /// Where the region begins in this volume.
    pub region: u64,
    /// The chunk, and the parts of the region that it consists of.
    pub chunk: NewChunk,
}

/// Takes chunks to wait for. Waiting ends when this is dropped and all chunks are settled.
#[derive(Clone)]
pub struct RemoteChunks {
    sender: mpsc::Sender<Pending>,
}

impl RemoteChunks {
    /// Starts the task that waits.
    pub fn start(job: &Arc<VolumeJob>, source: &Arc<dyn Source>) -> (Self, Waiting) {
        let (sender, receiver) = mpsc::channel(IDS_PER_CALL);
        let (job, source) = (job.clone(), source.clone());
        let task = tokio::spawn(async move {
            if let Err(e) = wait_for(&job, &source, receiver).await {
                job.run.fail(e);
            }
        });
        (Self { sender }, Waiting::new(task))
    }

    /// Adds chunks to wait for. The caller must not hold a buffer: a chunk that is read again may need one.
    pub async fn add(&self, pending: Vec<Pending>) {
        for p in pending {
            // The task failed: the error is reported where the region is handed over.
            if self.sender.send(p).await.is_err() {
                return;
            }
        }
    }
}

/// The task that waits. Dropping this stops it.
pub type Waiting = AbortOnDropHandle<()>;

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
        let asked = waiting.split_off(waiting.len().saturating_sub(IDS_PER_CALL));
        let ids: Vec<ChunkId> = asked.iter().map(|p| p.chunk.id).collect();
        let answers = job.coordinator.lookup_later(&ids).await?;
        let answered = |answer: Answer| {
            let matching = asked.iter().zip(&answers).filter(move |(_, a)| **a == answer);
            matching.map(|(p, _)| p.clone()).collect::<Vec<_>>()
        };
        job.run.claims.settle(answered(Answer::Known).into_iter().map(|p| p.chunk.id));
        store_here(job, source, answered(Answer::Yours)).await?;
        // The next call begins with other chunks: ids are taken from the end.
        waiting.splice(0..0, answered(Answer::Remote));
    }
}

/// Reads and stores chunks whose uploader is gone, as many at a time as a region's buffer holds.
async fn store_here(
    job: &Arc<VolumeJob>,
    source: &Arc<dyn Source>,
    mut chunks: Vec<Pending>,
) -> Result<(), BackupError> {
    let room = usize::try_from(job.engine.region_bytes).unwrap_or(usize::MAX);
    while !chunks.is_empty() {
        let mut used = 0;
        let mut placed = Vec::new();
        // Each chunk begins on a page of the buffer: O_DIRECT needs it.
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
        let chunks = placed.into_iter().map(|(at, p)| NewChunk { parts: vec![(at, p.chunk.len())], id: p.chunk.id });
        let chunks = chunks.collect();
        job.run.fill(job, Batch { bytes: Arc::new(RegionBytes::whole(buffer)), chunks }).await?;
        drop(permit);
    }
    Ok(())
}
