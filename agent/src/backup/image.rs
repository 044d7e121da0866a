//! Walking a device or image: regions are read and cut side by side, and come out in order.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use milkrun_repository::chunk::PAGE;

use super::checkpoint::{Checkpoints, Done};
use super::cut::{Cutting, cut_region};
use super::elsewhere::{Elsewhere, Pending};
use super::sample::{self, Verdict};
use super::{BackupError, Counters, Extent, Outcome, ParentExtent, Run, VolumeJob};
use crate::buffer::Buffer;
use crate::device::Source;
use crate::device::changes::Changes;
use crate::rpc::{ParentRange, ParentRanges, Region};

/// One read: long enough to cost little per byte, short enough that a region keeps many in flight.
const READ_BYTES: usize = 1 << 20;

/// Backs up an image: all of it, or what a list of changes names.
///
/// # Errors
/// [`BackupError`]: the first thing that failed; nothing is skipped.
pub async fn back_up(
    job: Arc<VolumeJob>,
    source: Arc<dyn Source>,
    changes: Option<Changes>,
) -> Result<Outcome, BackupError> {
    let len = source.len();
    job.counters.total.store(len, std::sync::atomic::Ordering::Relaxed);
    let (list, mut outcome) = trusted(&job, &source, changes).await?;
    let mut checkpoints = Checkpoints::start(&job);
    let mut parent = Parent::open(&job, list.as_ref()).await?;
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
            let hole = Region { offset, len: until - offset, unchanged: false, extents: Vec::new() };
            in_flight.push_back(unread(hole));
            offset = until;
        } else {
            let predicted = parent.take(offset, end).await?;
            let named = list.as_ref().and_then(|list| named(list, offset..end, &predicted, job.whole_chunks));
            if named.as_ref().is_some_and(Vec::is_empty) {
                let same = Region { offset, len: end - offset, unchanged: true, extents: Vec::new() };
                in_flight.push_back(unread(same));
            } else {
                let part = Part { offset, end, data, predicted, named };
                let task = region(job.clone(), source.clone(), elsewhere.clone(), part).await;
                in_flight.push_back(Task(tokio::spawn(task)));
            }
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
    outcome.notes.extend(source.finish()?);
    Ok(Outcome { len, sector_bytes: source.sector_bytes(), ..outcome })
}

/// The list of changes, if everything speaks for it; else what a person should know.
async fn trusted(
    job: &Arc<VolumeJob>,
    source: &Arc<dyn Source>,
    changes: Option<Changes>,
) -> Result<(Option<Changes>, Outcome), BackupError> {
    let mut outcome = Outcome::default();
    let Some(changes) = changes else { return Ok((None, outcome)) };
    if changes.since.to_string() != job.parent {
        let (since, parent) = (changes.since, &job.parent);
        outcome.notes.push(format!(
            "the list of changes is since {since}, and the parent is {parent}: it was not used, everything was read"
        ));
        return Ok((None, outcome));
    }
    match sample::check(job, source, &changes).await? {
        Verdict::Holds(sampled_bytes) => {
            outcome.by_list = true;
            outcome.sampled_bytes = sampled_bytes;
            Ok((Some(changes), outcome))
        }
        Verdict::Wrong(at) => {
            metrics::counter!("milkrun_agent_wrong_lists_total").increment(1);
            tracing::error!(
                offset = at,
                "THE LIST OF CHANGES IS WRONG: a page that it does not name has changed; everything is read"
            );
            outcome.notes.push(format!(
                "THE LIST OF CHANGES IS WRONG: the page at byte {at} changed since {} and is not named. Everything was read. \
                 Points that rest on earlier lists from the same source may lack changes",
                changes.since
            ));
            Ok((None, outcome))
        }
        Verdict::Unknown => {
            let why = "the parent has no digests of pages to check the list of changes with: everything was read";
            outcome.notes.push(why.into());
            Ok((None, outcome))
        }
    }
}

/// What of a region is to be read by a list, in whole pages: what it names, what has worn if something is named, and chunks that
/// must stay whole. `None` when the parent does not say all of the region: then all of it is.
fn named(list: &Changes, region: Range<u64>, parent: &[ParentExtent], whole_chunks: bool) -> Option<Vec<Range<usize>>> {
    let within = |at: u64| usize::try_from(at - region.start).unwrap_or(usize::MAX);
    let covered: u64 = parent.iter().map(|p| u64::from(p.extent.run.len())).sum();
    if covered != region.end - region.start {
        return None;
    }
    let mut named: Vec<Range<usize>> = list.within(region.clone()).map(|r| within(r.start)..within(r.end)).collect();
    if named.is_empty() {
        return Some(named);
    }
    let mut at = 0;
    let mut more = Vec::new();
    for p in parent {
        let end = at + p.extent.run.len() as usize;
        let first = named.partition_point(|r| r.end <= at);
        let touched = named.get(first).is_some_and(|r| r.start < end);
        if p.retire || (whole_chunks && touched) {
            more.push(at..end);
        }
        at = end;
    }
    named.extend(more);
    named.sort_unstable_by_key(|r| r.start);
    named.dedup_by(|next, last| {
        let joins = next.start <= last.end;
        if joins {
            last.end = last.end.max(next.end);
        }
        joins
    });
    Some(named)
}

/// A region that nobody need read.
fn unread(region: Region) -> Task {
    Task(tokio::spawn(async move { Ok(Done { region, wanted: Vec::new() }) }))
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
    predicted: Vec<ParentExtent>,
    /// What of it is to be read; `None`: all.
    named: Option<Vec<Range<usize>>>,
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
        let Part { offset, end, data, predicted, named } = part;
        let len = usize::try_from(end - offset).unwrap_or(usize::MAX);
        let buffer = job.engine.regions.take(len);
        let length = source.len();
        let read = move || match named {
            None => read_region(&*source, buffer, offset, data).map(|(buffer, read)| (buffer, read, None)),
            Some(named) => read_named(&*source, buffer, offset, &named).map(|(b, read)| (b, read, Some(named))),
        };
        let (buffer, read, named) =
            job.engine.io.run(read).await.map_err(|(at, e)| BackupError::Read { offset: at, length, source: e })?;
        Counters::add(&job.counters.read, read);
        metrics::counter!("milkrun_agent_read_bytes_total").increment(read);
        let how = Cutting {
            cutter: job.pages,
            seed: job.domain.cut_seed(),
            domain: job.domain.clone(),
            whole_chunks: job.whole_chunks,
        };
        let buffer = Arc::new(buffer);
        let bytes = buffer.clone();
        let cut = job.engine.cpu.run(move || cut_region(&bytes, &predicted, named.as_deref(), &how)).await;
        let extents = if cut.unchanged { Vec::new() } else { cut.extents };
        let region = Region { offset, len: end - offset, unchanged: cut.unchanged, extents };
        let stored = job.run.store(&job, buffer, cut.fresh, true).await?;
        drop(permit);
        elsewhere.add(stored.elsewhere.into_iter().map(|chunk| Pending { region: offset, chunk }).collect()).await;
        Ok(Done { region, wanted: stored.wanted })
    }
}

/// Reads these parts of a region; the rest of the buffer is whatever it was.
fn read_named(
    source: &dyn Source,
    mut buffer: Buffer,
    offset: u64,
    named: &[Range<usize>],
) -> Result<(Buffer, u64), (u64, std::io::Error)> {
    use rayon::prelude::*;
    let mut pieces: Vec<(u64, &mut [u8])> = Vec::with_capacity(named.len());
    let (mut rest, mut at): (&mut [u8], usize) = (&mut buffer, 0);
    for range in named {
        let (_, tail) = rest.split_at_mut(range.start - at);
        let (part, tail) = tail.split_at_mut(range.end - range.start);
        let start = offset + range.start as u64;
        pieces.extend(part.chunks_mut(READ_BYTES).enumerate().map(|(i, p)| (start + (i * READ_BYTES) as u64, p)));
        (rest, at) = (tail, range.end);
    }
    let read = pieces.iter().map(|(_, p)| p.len() as u64).sum();
    let failed = pieces.into_par_iter().filter_map(|(at, piece)| source.read_at(piece, at).err().map(|e| (at, e)));
    match failed.min_by_key(|(at, _)| *at) {
        Some(first) => Err(first),
        None => Ok((buffer, read)),
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
    /// Digests of pages are asked for where they can tell something: a list that names single pages tells it already.
    async fn open(job: &VolumeJob, list: Option<&Changes>) -> Result<Self, BackupError> {
        let pages = !job.whole_chunks && list.is_none_or(Changes::is_coarse);
        let ranges = if job.has_parent { Some(job.coordinator.parent(pages).await?) } else { None };
        Ok(Self { ranges, waiting: VecDeque::new() })
    }

    /// The parent's extents for a region. Empty unless they are for exactly this region: a prediction is worth only what it
    /// says of whole chunks.
    async fn take(&mut self, offset: u64, end: u64) -> Result<Vec<ParentExtent>, BackupError> {
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
        let mut extents = Vec::new();
        let mut at = offset;
        for range in self.waiting.iter().take_while(|r| r.offset < end) {
            if range.extents.is_empty() {
                // A hole may be longer than a region.
                let from = range.offset.max(at);
                if from != at {
                    break;
                }
                let to = (range.offset + range.len).min(end);
                let run = Run::Hole { len: u32::try_from(to - from).unwrap_or(u32::MAX) };
                extents.push(ParentExtent { extent: Extent { run, pages: Vec::new() }, retire: false });
                at = to;
            } else if range.offset == at {
                extents.extend_from_slice(&range.extents);
                at += range.len;
            } else {
                break;
            }
        }
        Ok(extents)
    }
}
