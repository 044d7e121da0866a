//! Walking a device or image: regions are read and cut side by side, and come out in order.

use std::ops::Range;
use std::sync::Arc;

use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};

use milkrun_repository::chunk::PAGE;
use tokio::sync::Semaphore;

use super::checkpoint::{Checkpoints, Done};
use super::compare::{UnchangedGuess, is_same};
use super::cut::{Cutting, cut_region};
use super::lookups::Lookups;
use super::parent::Parent;
use super::read::{read_named, read_region};
use super::region_bytes::RegionBytes;
use super::remote_chunks::{Elsewhere, Pending};
use super::sample::{self, Verdict};
use super::sparse_read::Few;
use super::{BackupError, Counters, FEW_BYTES, IN_FLIGHT, Outcome, ParentExtent, SMALL_BYTES, VolumeJob};
use crate::budget::Permit;
use crate::device::Source;
use crate::device::changes::Changes;
use crate::extent::Region;

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
    let mut in_flight = FuturesOrdered::new();
    let (elsewhere, _waiting) = Elsewhere::start(&job, &source);
    let (lookups, _asking) = Lookups::start(&job, true);
    let parent = Parent::open(&job, list.as_ref()).await?;
    let learn = parent.has_pages();
    let large = Arc::new(Semaphore::new(job.engine.cpu.count() * 2 + 2));
    let guess = Arc::default();
    let context = RegionContext { job: job.clone(), source: source.clone(), elsewhere, lookups, learn, guess, large };
    let mut walk = Walk { context, list, parent, offset: job.resume_at };
    Counters::add(&job.counters.done, walk.offset.min(len));
    while let Some(task) = walk.next().await? {
        in_flight.push_back(task);
        while in_flight.len() >= IN_FLIGHT {
            collect(&job, &mut checkpoints, &mut in_flight).await?;
        }
        // What is done is handed over at once, lest it be done again should this agent die.
        while let Some(Some(done)) = in_flight.next().now_or_never() {
            checkpoints.push(&job, done?).await?;
        }
    }
    while !in_flight.is_empty() {
        collect(&job, &mut checkpoints, &mut in_flight).await?;
    }
    job.run.flush(&job).await;
    checkpoints.finish().await?;
    outcome.notes.extend(source.finish()?);
    Ok(Outcome { len, sector_bytes: source.sector_bytes(), file_system: source.file_system(), ..outcome })
}

/// What each region is dealt with.
#[derive(Clone)]
struct RegionContext {
    job: Arc<VolumeJob>,
    source: Arc<dyn Source>,
    elsewhere: Elsewhere,
    lookups: Lookups,
    /// The parent was asked for digests of pages.
    learn: bool,
    /// Whether regions are mostly unchanged.
    guess: Arc<UnchangedGuess>,
    /// Turns of regions of which much is read: enough for every thread to have one in hand while others are read or wait for an
    /// answer. More would only take memory.
    large: Arc<Semaphore>,
}

/// The way through the volume.
struct Walk {
    context: RegionContext,
    list: Option<Changes>,
    parent: Parent,
    offset: u64,
}

impl Walk {
    /// Begins the next region, or passes over what need not be read; `None` at the end.
    async fn next(&mut self) -> Result<Option<Task>, BackupError> {
        let (offset, len) = (self.offset, self.context.source.len());
        let region_bytes = self.context.job.engine.region_bytes;
        if offset >= len {
            return Ok(None);
        }
        let end = (offset + region_bytes).min(len);
        self.offset = end;
        if let Some(list) = &self.list {
            let predicted = self.parent.take(offset, end).await?;
            return Ok(Some(match named(list, offset..end, &predicted, self.context.job.whole_chunks) {
                Some(named) if named.is_empty() => {
                    unread(Region { offset, len: end - offset, unchanged: true, extents: Vec::new() })
                }
                Some(named) => {
                    self.context.clone().region(Part { offset, end, predicted, reads: Reads::Named(named) }).await
                }
                None => {
                    let data = next_data(&self.context, offset).await?;
                    self.context.clone().region(Part { offset, end, predicted, reads: Reads::All(data) }).await
                }
            }));
        }
        let data = next_data(&self.context, offset).await?;
        if data.is_none_or(|(start, _)| start >= end) {
            // Holes by the file system's word: whole regions at once, unread.
            self.offset = data.map_or(len, |(start, _)| start - start % region_bytes);
            return Ok(Some(unread(Region {
                offset,
                len: self.offset - offset,
                unchanged: false,
                extents: Vec::new(),
            })));
        }
        let predicted = self.parent.take(offset, end).await?;
        Ok(Some(self.context.clone().region(Part { offset, end, predicted, reads: Reads::All(data) }).await))
    }
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
        // What an earlier attempt handed over rests on it, and can't be taken back.
        Verdict::Wrong(at) if job.resume_at > 0 => Err(BackupError::WrongList { at, since: changes.since }),
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
    let mut end = region.start;
    for p in parent {
        end += u64::from(p.extent.run.len());
        // As in `cut`: behind what ends within a page, nothing lies on pages.
        if !end.is_multiple_of(PAGE as u64) && end != region.end {
            return None;
        }
    }
    if end != region.end {
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
    Task(tokio::spawn(async move { Ok(Done { region, read: 0, wanted: Vec::new() }) }))
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

async fn next_data(context: &RegionContext, offset: u64) -> Result<Option<(u64, u64)>, BackupError> {
    let (length, source) = (context.source.len(), context.source.clone());
    let asked = context.job.engine.io.run(move || source.next_data(offset)).await;
    asked.map_err(|e| BackupError::Read { offset, length, source: e })
}

/// A region that is to be dealt with.
struct Part {
    offset: u64,
    end: u64,
    /// What the parent has there.
    predicted: Vec<ParentExtent>,
    reads: Reads,
}

/// What of a region is read.
enum Reads {
    /// All that may hold data; the first range that does.
    All(Option<(u64, u64)>),
    /// This.
    Named(Vec<Range<usize>>),
}

impl Reads {
    /// How much that is, if it is known.
    fn bytes(&self) -> u64 {
        match self {
            Self::All(_) => u64::MAX,
            Self::Named(named) => named.iter().map(|r| r.len() as u64).sum(),
        }
    }
}

impl RegionContext {
    /// Begins a region. The permit is taken here, in order, so that the first regions get it.
    async fn region(self, part: Part) -> Task {
        let engine = &self.job.engine;
        let small = part.reads.bytes() <= SMALL_BYTES;
        let turn = if small { None } else { self.large.clone().acquire_owned().await.ok() };
        let permit = engine.budget.transfer(if small { SMALL_BYTES } else { engine.region_bytes }).await;
        Task(tokio::spawn(async move {
            let done = self.deal_with(part, small, permit).await;
            drop(turn);
            done
        }))
    }

    async fn deal_with(self, part: Part, small: bool, permit: Permit) -> Result<Done, BackupError> {
        let Self { job, source, elsewhere, lookups, learn, guess, .. } = self;
        let Part { offset, end, mut predicted, reads } = part;
        let len = usize::try_from(end - offset).unwrap_or(usize::MAX);
        let length = source.len();
        let failed = |(at, e)| BackupError::Read { offset: at, length, source: e };
        let how = Cutting {
            cutter: job.pages,
            seed: job.domain.cut_seed(),
            domain: job.domain.clone(),
            whole_chunks: job.whole_chunks,
            may_keep: job.may_keep,
            learn,
        };
        let counted = |read: u64| {
            Counters::add(&job.counters.read, read);
            metrics::counter!("milkrun_agent_read_bytes_total").increment(read);
        };
        let by_list = matches!(reads, Reads::Named(_));
        // The threads that read do the comparing, and there are more of them than of those for CPU work.
        let may_look = !by_list && !predicted.is_empty() && job.engine.cpu.has_all_cores();
        if may_look && guess.is_good() {
            let (source, engine, how) = (source.clone(), job.engine.clone(), how.clone());
            let look =
                move || (is_same(&*source, &engine.small, offset..end, &predicted, &how, &engine.cpu), predicted);
            let (same, told) = job.engine.io.run(look).await;
            if let Some(read) = same.map_err(failed)? {
                counted(read);
                guess.note(true);
                let region = Region { offset, len: end - offset, unchanged: true, extents: Vec::new() };
                return Ok(Done { region, read, wanted: Vec::new() });
            }
            predicted = told;
        }
        let bytes = reads.bytes();
        let (held, permit, read, cut) = match reads {
            // A few pages are compared where they were read: to wake another thread would cost as much.
            Reads::Named(named) if small => {
                let few = bytes <= FEW_BYTES;
                let buffer = if few { &job.engine.few } else { &job.engine.small }.take(usize::MAX);
                let stopped = || BackupError::Stopped { why: "reading pages broke off".into(), passing: false };
                let few = Few { source, offset, len, named, buffer, permit, predicted, how };
                let seen = job.engine.readers.read(few).await.ok_or_else(stopped)?.map_err(failed)?;
                (Arc::new(seen.held), seen.permit, seen.read, seen.cut)
            }
            reads => {
                let buffer = job.engine.regions.take(len);
                let read = move || match reads {
                    Reads::All(data) => read_region(&*source, buffer, offset, data),
                    Reads::Named(named) => read_named(&*source, buffer, offset, len, named),
                };
                let (held, read) = job.engine.io.run(read).await.map_err(failed)?;
                let held = Arc::new(held);
                let bytes: Arc<RegionBytes> = held.clone();
                let cut = job.engine.cpu.run(move || cut_region(&bytes, &predicted, &how)).await;
                (held, permit, read, cut)
            }
        };
        counted(read);
        if !by_list {
            guess.note(cut.unchanged);
        }
        let region = Region { offset, len: end - offset, unchanged: cut.unchanged, extents: cut.extents };
        let stored = job.run.store(&job, &lookups, held, cut.fresh).await?;
        drop(permit);
        elsewhere.add(stored.elsewhere.into_iter().map(|chunk| Pending { region: offset, chunk }).collect()).await;
        Ok(Done { region, read, wanted: stored.wanted })
    }
}
