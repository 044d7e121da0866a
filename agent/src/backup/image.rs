//! Walking a device or image: regions are read and cut side by side, and come out in order.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use milkrun_repository::chunk::PAGE;

use super::checkpoint::{Checkpoints, Done};
use super::cut::cut_region;
use super::elsewhere::{Elsewhere, Pending};
use super::{BackupError, Counters, Outcome, Run, VolumeJob};
use crate::buffer::Buffer;
use crate::device::Source;
use crate::rpc::{ParentRange, ParentRanges, Region};

/// One read: long enough to cost little per byte, short enough that a region keeps many in flight.
const READ_BYTES: usize = 1 << 20;

/// Backs up an image.
///
/// # Errors
/// [`BackupError`]: the first thing that failed; nothing is skipped.
pub async fn back_up(job: Arc<VolumeJob>, source: Arc<dyn Source>) -> Result<Outcome, BackupError> {
    let len = source.len();
    job.counters.total.store(len, std::sync::atomic::Ordering::Relaxed);
    let mut checkpoints = Checkpoints::start(&job);
    let mut parent = Parent::open(&job).await?;
    let mut in_flight = FuturesOrdered::new();
    // Enough for every thread to have one region in hand while others are read or wait for an answer.
    let most = job.engine.cpu.count() * 2 + 2;
    let region_bytes = job.engine.region_bytes;
    let (elsewhere, _waiting) = Elsewhere::start(&job, &source);
    let mut offset = job.resume_at;
    Counters::add(&job.counters.done, offset.min(len));
    while offset < len {
        let end = (offset + region_bytes).min(len);
        let data = next_data(&job, &source, offset).await?;
        if data.is_none_or(|(start, _)| start >= end) {
            // Holes by the file system's word: whole regions at once, unread.
            let until = data.map_or(len, |(start, _)| start - start % region_bytes);
            let hole = Region { offset, len: until - offset, unchanged: false, runs: Vec::new() };
            in_flight.push_back(Task(tokio::spawn(async move { Ok(Done { region: hole, wanted: Vec::new() }) })));
            offset = until;
        } else {
            let predicted = parent.take(offset, end).await?;
            let part = Part { offset, end, data, predicted };
            let task = region(job.clone(), source.clone(), elsewhere.clone(), part).await;
            in_flight.push_back(Task(tokio::spawn(task)));
            offset = end;
        }
        while in_flight.len() >= most {
            collect(&job, &mut checkpoints, &mut in_flight).await?;
        }
    }
    while !in_flight.is_empty() {
        collect(&job, &mut checkpoints, &mut in_flight).await?;
    }
    job.run.flush(&job).await;
    checkpoints.finish().await?;
    let notes = source.finish()?;
    Ok(Outcome { len, sector_bytes: source.sector_bytes(), notes })
}

/// A spawned region; stopped when dropped, so that a failure ends its siblings.
struct Task(tokio::task::JoinHandle<Result<Done, BackupError>>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Future for Task {
    type Output = Result<Done, BackupError>;
    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0).poll(cx).map(|joined| match joined {
            Ok(result) => result,
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            Err(_) => Err(BackupError::Stopped { why: "the region was stopped".into(), passing: false }),
        })
    }
}

async fn collect(
    job: &Arc<VolumeJob>,
    checkpoints: &mut Checkpoints,
    in_flight: &mut FuturesOrdered<Task>,
) -> Result<(), BackupError> {
    let Some(done) = in_flight.next().await else { return Ok(()) };
    let done = done?;
    checkpoints.push(job, done).await
}

async fn next_data(job: &VolumeJob, source: &Arc<dyn Source>, offset: u64) -> Result<Option<(u64, u64)>, BackupError> {
    let (length, source) = (source.len(), source.clone());
    let asked = job.engine.io.run(move || source.next_data(offset)).await;
    asked.map_err(|e| BackupError::Read { offset, length, source: e })
}

/// A region that is to be dealt with.
struct Part {
    offset: u64,
    end: u64,
    /// The first range in it with data.
    data: Option<(u64, u64)>,
    /// What the parent has there.
    predicted: Vec<Run>,
}

/// Prepares one region; what it returns is spawned. The permit is taken here, in order, so that the first regions get it.
async fn region(
    job: Arc<VolumeJob>,
    source: Arc<dyn Source>,
    elsewhere: Elsewhere,
    part: Part,
) -> impl Future<Output = Result<Done, BackupError>> + Send + 'static {
    let permit = job.engine.budget.transfer(job.engine.region_bytes).await;
    async move {
        let Part { offset, end, data, predicted } = part;
        let len = usize::try_from(end - offset).unwrap_or(usize::MAX);
        let buffer = job.engine.regions.take(len);
        let length = source.len();
        let (buffer, read) = job
            .engine
            .io
            .run(move || read_region(&*source, buffer, offset, data))
            .await
            .map_err(|(at, e)| BackupError::Read { offset: at, length, source: e })?;
        Counters::add(&job.counters.read, read);
        metrics::counter!("milkrun_agent_read_bytes_total").increment(read);
        let (pages, domain) = (job.pages, job.domain.clone());
        let buffer = Arc::new(buffer);
        let bytes = buffer.clone();
        let cut = job.engine.cpu.run(move || cut_region(&bytes, &predicted, &pages, domain.cut_seed(), &domain)).await;
        let runs = if cut.unchanged { Vec::new() } else { cut.runs };
        let region = Region { offset, len: end - offset, unchanged: cut.unchanged, runs };
        let stored = job.run.store(&job, buffer, cut.fresh, true).await?;
        drop(permit);
        let pending = stored.elsewhere.into_iter().map(|(at, len, id)| Pending { id, offset: offset + at as u64, len });
        elsewhere.add(pending.collect()).await;
        Ok(Done { region, wanted: stored.wanted })
    }
}

/// Fills a region's buffer: ranges with data are read in parallel parts, the rest is zeroed. Returns how much was read.
fn read_region(
    source: &dyn Source,
    mut buffer: Buffer,
    offset: u64,
    first: Option<(u64, u64)>,
) -> Result<(Buffer, u64), (u64, std::io::Error)> {
    use rayon::prelude::*;
    let end = offset + buffer.len() as u64;
    let mut read = 0;
    let mut at = offset;
    let mut next = first;
    while at < end {
        let (start, stop) = match next {
            Some((start, stop)) if start < end => (start.max(at), stop.min(end)),
            _ => (end, end),
        };
        // Whole pages are read, whatever the file system's granule: O_DIRECT and prediction both want them.
        let page = PAGE as u64;
        let start = if start < end { start - (start - offset) % page } else { end };
        let stop = (offset + (stop - offset).next_multiple_of(page)).min(end);
        let within = |at: u64| usize::try_from(at - offset).unwrap_or(usize::MAX);
        buffer[within(at)..within(start)].fill(0);
        if start < end {
            let part = &mut buffer[within(start)..within(stop)];
            read += part.len() as u64;
            let failed = part.par_chunks_mut(READ_BYTES).enumerate().filter_map(|(i, piece)| {
                let at = start + (i * READ_BYTES) as u64;
                source.read_at(piece, at).err().map(|e| (at, e))
            });
            // Of several reads that fail side by side, the first on the volume is the one that tells where it begins.
            if let Some(first) = failed.min_by_key(|(at, _)| *at) {
                return Err(first);
            }
        }
        at = stop.max(start);
        if at < end {
            next = source.next_data(at).map_err(|e| (at, e))?;
        }
    }
    Ok((buffer, read))
}

/// The parent's runs, in order, cut to regions.
struct Parent {
    ranges: Option<ParentRanges>,
    /// What was received and reaches beyond the regions taken so far.
    waiting: VecDeque<ParentRange>,
}

impl Parent {
    async fn open(job: &VolumeJob) -> Result<Self, BackupError> {
        let ranges = if job.has_parent { Some(job.coordinator.parent().await?) } else { None };
        Ok(Self { ranges, waiting: VecDeque::new() })
    }

    /// The parent's runs for a region. Empty unless they are for exactly this region: a prediction is worth only what it
    /// says of whole chunks.
    async fn take(&mut self, offset: u64, end: u64) -> Result<Vec<Run>, BackupError> {
        while let Some(ranges) = &mut self.ranges {
            if self.waiting.back().is_some_and(|r| r.offset + r.len >= end) {
                break;
            }
            match ranges.next().await? {
                Some(range) => self.waiting.push_back(range),
                None => self.ranges = None,
            }
        }
        while self.waiting.front().is_some_and(|r| r.offset + r.len <= offset) {
            self.waiting.pop_front();
        }
        let mut runs = Vec::new();
        let mut at = offset;
        for range in self.waiting.iter().take_while(|r| r.offset < end) {
            if range.runs.is_empty() {
                // A hole may be longer than a region.
                let from = range.offset.max(at);
                if from != at {
                    break;
                }
                let to = (range.offset + range.len).min(end);
                runs.push(Run::Hole { len: u32::try_from(to - from).unwrap_or(u32::MAX) });
                at = to;
            } else if range.offset == at {
                runs.extend_from_slice(&range.runs);
                at += range.len;
            } else {
                break;
            }
        }
        Ok(runs)
    }
}
