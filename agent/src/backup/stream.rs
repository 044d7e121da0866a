//! The backup of a byte stream: it is read in order, cut by content, and packed like a volume.

use std::sync::Arc;

use milkrun_repository::chunk::Piece;

use super::checkpoint::{Checkpoints, FinishedRegion};
use super::cut::{NewChunk, whole_chunk};
use super::lookups::Lookups;
use super::region_bytes::RegionBytes;
use super::{BackupError, Counters, Extent, Outcome, VolumeJob};
use crate::buffer::Buffer;
use crate::device::ByteSource;
use crate::extent::Region;

/// Backs up a stream to its end.
///
/// # Errors
/// [`BackupError`].
pub async fn back_up(job: Arc<VolumeJob>, source: Box<dyn ByteSource>) -> Result<Outcome, BackupError> {
    let mut checkpoints = Checkpoints::start(&job);
    // Not shared with other nodes: if the node that stores a chunk dies, a stream can't be read again.
    let (lookups, _lookup_task) = Lookups::start(&job, false);
    let mut source = Some(source);
    let mut notes = Vec::new();
    let mut rest: Vec<u8> = Vec::new();
    let mut offset = 0;
    loop {
        let permit = job.engine.budget.transfer(job.engine.region_bytes).await;
        let size = usize::try_from(job.engine.region_bytes).unwrap_or(usize::MAX);
        let buffer = job.engine.regions.take(size);
        let Some(mut reader) = source.take() else { break };
        let carried = std::mem::take(&mut rest);
        let read = job.engine.io.run(move || fill(&mut *reader, buffer, &carried).map(|filled| (reader, filled)));
        let (mut reader, (buffer, filled, carried)) =
            read.await.map_err(|e| BackupError::Read { offset, length: 0, source: e })?;
        let last = filled < size;
        Counters::add(&job.counters.read, (filled - carried) as u64);
        metrics::counter!("milkrun_agent_read_bytes_total").increment((filled - carried) as u64);
        let (cutter, domain) = (job.streams, job.domain.clone());
        let buffer = Arc::new(RegionBytes::whole(buffer));
        let bytes = buffer.clone();
        let (used, fresh) = job
            .engine
            .cpu
            .run(move || {
                let mut pieces = Vec::new();
                let used = cutter.cut(domain.cut_seed(), bytes.at(0..filled), last, &mut pieces);
                let chunks = pieces.into_iter().filter_map(|p| match p {
                    Piece::Data { offset, len } => {
                        let id = domain.identify(bytes.at(offset..offset + len));
                        Some(NewChunk { id, parts: vec![(offset, len)] })
                    }
                    Piece::Hole { .. } => None,
                });
                (used, chunks.collect::<Vec<_>>())
            })
            .await;
        rest.extend_from_slice(buffer.at(used..filled));
        if used > 0 {
            // Page digests are of no use for a stream: an insertion moves everything behind it.
            let extent = |f: &NewChunk| Extent { run: whole_chunk(f.id, f.len()), pages: Vec::new() };
            let extents = fresh.iter().map(extent).collect();
            let region = Region { offset, len: used as u64, unchanged: false, extents };
            let wanted = job.run.store(&job, &lookups, buffer, fresh).await?.wanted;
            offset += used as u64;
            checkpoints.push(&job, FinishedRegion { region, read: used as u64, wanted }).await?;
        }
        drop(permit);
        if last {
            // If the producer failed at its end, the stream is not complete.
            notes = job.engine.io.run(move || reader.finish()).await?;
            break;
        }
        source = Some(reader);
    }
    job.run.flush(&job).await;
    checkpoints.finish().await?;
    Ok(Outcome { len: offset, notes, ..Outcome::default() })
}

/// Fills a buffer: first with what is left over from the last buffer, then from the stream, until it is full or the
/// stream ends.
fn fill(source: &mut dyn ByteSource, mut buffer: Buffer, carried: &[u8]) -> std::io::Result<(Buffer, usize, usize)> {
    buffer[..carried.len()].copy_from_slice(carried);
    let mut at = carried.len();
    while at < buffer.len() {
        match source.read(&mut buffer[at..]) {
            Ok(0) => break,
            Ok(n) => at += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok((buffer, at, carried.len()))
}
