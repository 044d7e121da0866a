//! The backup of a device or image: regions are read and cut in parallel, and come out in order.

use std::ops::Range;
use std::sync::Arc;

use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};

use milkrun_repository::chunk::PAGE;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::checkpoint::{Checkpoints, FinishedRegion};
use super::compare::{UnchangedGuess, read_unchanged};
use super::cut::{Cutting, cut_region};
use super::lookups::Lookups;
use super::parent::Parent;
use super::read::{read_ranges, read_region};
use super::region_bytes::RegionBytes;
use super::remote_chunks::{Pending, RemoteChunks};
use super::sample::{self, Verdict};
use super::sparse_read::SparseRead;
use super::{BackupError, Counters, IN_FLIGHT, Outcome, ParentExtent, SMALL_BYTES, SPARSE_BYTES, VolumeJob};
use crate::budget::Permit;
use crate::device::Source;
use crate::device::changes::Changes;
use crate::extent::Region;
use crate::ranges;

/// Backs up an image: reads all of it, or the dirty ranges that a changed-block list names.
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
    let (list, mut outcome) = check_list(&job, &source, changes).await?;
    let mut checkpoints = Checkpoints::start(&job);
    let mut in_flight = FuturesOrdered::new();
    let (remote, _waiting) = RemoteChunks::start(&job, &source);
    let (lookups, _lookup_task) = Lookups::start(&job, true);
    let parent = Parent::open(&job, list.as_ref()).await?;
    let learn = parent.has_pages();
    let large = Arc::new(Semaphore::new(job.engine.cpu.count() * 2 + 2));
    let guess = Arc::default();
    let context = RegionContext { job: job.clone(), source: source.clone(), remote, lookups, learn, guess, large };
    let mut walk = Walk { context, list, parent, offset: job.resume_at };
    Counters::add(&job.counters.done, walk.offset.min(len));
    while let Some(task) = walk.next().await? {
        in_flight.push_back(task);
        while in_flight.len() >= IN_FLIGHT
            && let Some(done) = in_flight.next().await
        {
            collect(&job, &mut checkpoints, done).await?;
        }
        // Finished regions are handed over at once: if this agent dies, they need not be read again.
        while let Some(Some(done)) = in_flight.next().now_or_never() {
            collect(&job, &mut checkpoints, done).await?;
        }
    }
    while let Some(done) = in_flight.next().await {
        collect(&job, &mut checkpoints, done).await?;
    }
    job.run.flush(&job).await;
    checkpoints.finish().await?;
    outcome.notes.extend(source.finish()?);
    Ok(Outcome { len, sector_bytes: source.sector_bytes(), file_system: source.file_system(), ..outcome })
}

/// What the work on each region needs.
#[derive(Clone)]
struct RegionContext {
    job: Arc<VolumeJob>,
    source: Arc<dyn Source>,
    remote: RemoteChunks,
    lookups: Lookups,
    /// The parent's page digests were asked for.
    learn: bool,
    /// Whether regions are mostly unchanged.
    guess: Arc<UnchangedGuess>,
    /// Limits the regions of which much is read: enough that every thread has one to work on while others are read or
    /// wait for an answer. More would only take memory.
    large: Arc<Semaphore>,
}

/// A walk over the regions of a volume.
struct Walk {
    context: RegionContext,
    list: Option<Changes>,
    parent: Parent,
    offset: u64,
}

impl Walk {
    /// Begins the next region, or skips what need not be read. `None` at the end.
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
            return Ok(Some(match dirty_ranges(list, offset..end, &predicted, self.context.job.whole_chunks) {
                Some(dirty) if dirty.is_empty() => {
                    unread(Region { offset, len: end - offset, unchanged: true, extents: Vec::new() })
                }
                Some(dirty) => {
                    let reads = Reads::Dirty(dirty);
                    self.context.clone().region(RegionPlan { offset, end, predicted, reads }).await
                }
                None => {
                    let reads = Reads::All(next_data(&self.context, offset).await?);
                    self.context.clone().region(RegionPlan { offset, end, predicted, reads }).await
                }
            }));
        }
        let data = next_data(&self.context, offset).await?;
        if data.is_none_or(|(start, _)| start >= end) {
            // The file system says that these are holes: whole regions are skipped at once, unread.
            self.offset = data.map_or(len, |(start, _)| start - start % region_bytes);
            return Ok(Some(unread(Region {
                offset,
                len: self.offset - offset,
                unchanged: false,
                extents: Vec::new(),
            })));
        }
        let predicted = self.parent.take(offset, end).await?;
        Ok(Some(self.context.clone().region(RegionPlan { offset, end, predicted, reads: Reads::All(data) }).await))
    }
}

/// The changed-block list, if it may be used. Else the outcome has a note that says why not.
async fn check_list(
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
        // An earlier attempt handed over regions that rely on the list, and these can't be taken back.
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

/// The ranges of a region that are to be read, in whole pages: those that the list names and, if it names any,
/// fragmented extents and, with `whole_chunks`, the whole of each changed chunk. `None`: the parent does not cover the
/// region, and all of it is to be read.
fn dirty_ranges(
    list: &Changes,
    region: Range<u64>,
    parent: &[ParentExtent],
    whole_chunks: bool,
) -> Option<Vec<Range<usize>>> {
    let within = |at: u64| usize::try_from(at - region.start).unwrap_or(usize::MAX);
    let mut end = region.start;
    for p in parent {
        end += u64::from(p.extent.run.len());
        // As in `cut`: nothing behind an extent that ends within a page would be page-aligned.
        if !end.is_multiple_of(PAGE as u64) && end != region.end {
            return None;
        }
    }
    if end != region.end {
        return None;
    }
    let mut dirty: Vec<Range<usize>> = list.within(region.clone()).map(|r| within(r.start)..within(r.end)).collect();
    if dirty.is_empty() {
        return Some(dirty);
    }
    let mut at = 0;
    let mut more = Vec::new();
    for p in parent {
        let end = at + p.extent.run.len() as usize;
        let first = dirty.partition_point(|r| r.end <= at);
        let touched = dirty.get(first).is_some_and(|r| r.start < end);
        if p.retire || (whole_chunks && touched) {
            more.push(at..end);
        }
        at = end;
    }
    dirty.extend(more);
    ranges::merge(&mut dirty);
    Some(dirty)
}

/// A region that need not be read.
fn unread(region: Region) -> Task {
    Task::new(tokio::spawn(async move { Ok(FinishedRegion { region, read: 0, wanted: Vec::new() }) }))
}

/// A spawned task for a region. Dropping it stops the task, so that a failure ends the tasks of other regions.
type Task = AbortOnDropHandle<Result<FinishedRegion, BackupError>>;

/// Hands a finished region over.
async fn collect(
    job: &Arc<VolumeJob>,
    checkpoints: &mut Checkpoints,
    joined: Result<Result<FinishedRegion, BackupError>, tokio::task::JoinError>,
) -> Result<(), BackupError> {
    let done = match joined {
        Ok(result) => result?,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(_) => return Err(BackupError::Stopped { why: "the region was stopped".into(), passing: false }),
    };
    checkpoints.push(job, done).await
}

async fn next_data(context: &RegionContext, offset: u64) -> Result<Option<(u64, u64)>, BackupError> {
    let (length, source) = (context.source.len(), context.source.clone());
    let asked = context.job.engine.io.run(move || source.next_data(offset)).await;
    asked.map_err(|e| BackupError::Read { offset, length, source: e })
}

/// A region that is to be read and cut.
struct RegionPlan {
    offset: u64,
    end: u64,
    /// The parent's extents at this place.
    predicted: Vec<ParentExtent>,
    reads: Reads,
}

/// What is read of a region.
enum Reads {
    /// All ranges that may hold data. The value is the first of them.
    All(Option<(u64, u64)>),
    /// The dirty ranges.
    Dirty(Vec<Range<usize>>),
}

impl Reads {
    /// The number of bytes to read, or `u64::MAX` if it is not known.
    fn bytes(&self) -> u64 {
        match self {
            Self::All(_) => u64::MAX,
            Self::Dirty(ranges) => ranges.iter().map(|r| r.len() as u64).sum(),
        }
    }
}

impl RegionContext {
    /// Begins a region. The permit is taken here, in the order of the volume, so that earlier regions get theirs first.
    async fn region(self, plan: RegionPlan) -> Task {
        let engine = &self.job.engine;
        let small = plan.reads.bytes() <= SMALL_BYTES;
        let turn = if small { None } else { self.large.clone().acquire_owned().await.ok() };
        let permit = engine.budget.transfer(if small { SMALL_BYTES } else { engine.region_bytes }).await;
        Task::new(tokio::spawn(async move {
            let done = self.process(plan, small, permit).await;
            drop(turn);
            done
        }))
    }

    async fn process(self, plan: RegionPlan, small: bool, permit: Permit) -> Result<FinishedRegion, BackupError> {
        let Self { job, source, remote, lookups, learn, guess, .. } = self;
        let RegionPlan { offset, end, mut predicted, reads } = plan;
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
        let count_read = |read: u64| {
            Counters::add(&job.counters.read, read);
            metrics::counter!("milkrun_agent_read_bytes_total").increment(read);
        };
        let by_list = matches!(reads, Reads::Dirty(_));
        // The I/O threads do the comparing, and there are more of them than CPU threads: not if cores are to be left
        // alone.
        let may_compare = !by_list && !predicted.is_empty() && job.engine.cpu.has_all_cores();
        if may_compare && guess.is_good() {
            let (source, engine, how) = (source.clone(), job.engine.clone(), how.clone());
            let compare = move || {
                let read = read_unchanged(&*source, &engine.small, offset..end, &predicted, &how, &engine.cpu);
                (read, predicted)
            };
            let (unchanged, parent) = job.engine.io.run(compare).await;
            if let Some(read) = unchanged.map_err(failed)? {
                count_read(read);
                guess.note(true);
                let region = Region { offset, len: end - offset, unchanged: true, extents: Vec::new() };
                return Ok(FinishedRegion { region, read, wanted: Vec::new() });
            }
            predicted = parent;
        }
        let to_read = reads.bytes();
        let (bytes, permit, read, cut) = match reads {
            // A few pages are compared by the thread that read them: waking another thread would cost as much.
            Reads::Dirty(ranges) if small => {
                let buffers = if to_read <= SPARSE_BYTES { &job.engine.sparse } else { &job.engine.small };
                let buffer = buffers.take(usize::MAX);
                let stopped = || BackupError::Stopped { why: "reading pages broke off".into(), passing: false };
                let request = SparseRead { source, offset, len, ranges, buffer, permit, predicted, how };
                let result = job.engine.readers.read(request).await.ok_or_else(stopped)?.map_err(failed)?;
                (Arc::new(result.bytes), result.permit, result.read, result.cut)
            }
            reads => {
                let buffer = job.engine.regions.take(len);
                let read = move || match reads {
                    Reads::All(data) => read_region(&*source, buffer, offset, data),
                    Reads::Dirty(ranges) => read_ranges(&*source, buffer, offset, len, ranges),
                };
                let (bytes, read) = job.engine.io.run(read).await.map_err(failed)?;
                let bytes = Arc::new(bytes);
                let region: Arc<RegionBytes> = bytes.clone();
                let cut = job.engine.cpu.run(move || cut_region(&region, &predicted, &how)).await;
                (bytes, permit, read, cut)
            }
        };
        count_read(read);
        if !by_list {
            guess.note(cut.unchanged);
        }
        let region = Region { offset, len: end - offset, unchanged: cut.unchanged, extents: cut.extents };
        let stored = job.run.store(&job, &lookups, bytes, cut.fresh).await?;
        drop(permit);
        remote.add(stored.remote.into_iter().map(|chunk| Pending { region: offset, chunk }).collect()).await;
        Ok(FinishedRegion { region, read, wanted: stored.wanted })
    }
}
