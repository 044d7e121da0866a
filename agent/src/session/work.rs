//! The work under one assignment, in a task of its own: the backup or the restore of a volume.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::chunk::codec::Level;
use milkrun_repository::chunk::page_cutter::PageCutter;
use milkrun_repository::chunk::stream_cutter::StreamCutter;
use milkrun_repository::id::{RepositoryId, RunId};
use milkrun_repository::keys::DomainKey;
use milkrun_repository::keys::hybrid::HybridPublic;
use milkrun_repository::pack::{PackKind, PackTarget};
use milkrun_repository::point::catalog::chain;
use milkrun_repository::store::grant::Redeem;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;
use wire::failed::Kind as FailureKind;
use wire::from_agent::Message as Up;

use super::failures::{failed, kind_of_backup, kind_of_restore};
use super::{AssignmentKey, Open, Session, Task, message};
use crate::backup::{
    BackupError, Counters, Engine, VolumeJob, adaptive_level::LevelControl, image, open_packs::RunPacks, stream,
};
use crate::device::allowed::AllowedPaths;
use crate::device::changes::Changes;
use crate::device::expected::check_file_system;
use crate::device::free_space;
use crate::device::{
    Attempt, SourceError, SourceOptions, StreamPartial, StreamTarget, TargetError, TargetOptions, VolumeTarget,
};
use crate::restore::{Listener, Reached, RestoreError, RestoreJob, Tally};
use crate::rpc::{CallError, Coordinator};

impl Session {
    pub(super) fn start_backup(&mut self, b: wire::BackupVolume) {
        let Some(assignment) = b.assignment.clone() else { return };
        let key = AssignmentKey::of(&assignment);
        let attempt = assignment.attempt;
        let Some(job) = self.backup_job(&b, &assignment) else {
            let report = Up::Failed(failed(assignment, FailureKind::Source, "the assignment makes no sense".into()));
            let reports = self.reports.clone();
            tokio::spawn(async move { reports.send((key, attempt, Some(report))).await });
            return;
        };
        let job = Arc::new(job);
        let (open, allowed) = (self.agent.options.open.clone(), self.agent.options.allowed.clone());
        let (up, reports) = (self.up.clone(), self.reports.clone());
        let (task_key, task_job) = (key.clone(), job.clone());
        let span = span_of("backup", &assignment);
        let work = async move {
            let job = task_job;
            let ticker = tick(up, assignment.clone(), backup_progress(job.counters.clone()));
            let result = match may_read(&allowed, &b) {
                Ok(()) => back_up(&job, &b, open).await,
                Err(e) => Err(e.into()),
            };
            drop(ticker);
            let report = match result {
                // `Finish` told the coordinator already.
                Ok(()) => None,
                Err(e) => {
                    // Other volumes would wait in vain for the chunks that it claimed and did not store.
                    job.run.fail(BackupError::Stopped { why: "another volume's attempt ended".into(), passing: true });
                    Some(Up::Failed(failed(assignment, kind_of_backup(&e), chain(&e))))
                }
            };
            let _ = reports.send((task_key, attempt, report)).await;
        };
        let handle = tokio::spawn(work.instrument(span));
        self.tasks.insert(key, Task { handle, attempt, go: None, job: Some(job), keep: Arc::default() });
    }

    fn backup_job(&mut self, b: &wire::BackupVolume, assignment: &wire::Assignment) -> Option<VolumeJob> {
        let c = b.cutters.as_ref()?;
        let target = PackTarget {
            repository: RepositoryId::try_from(&b.repository[..]).ok()?,
            kind: PackKind::Data,
            recipient: HybridPublic::from_bytes(b.data_key[..].try_into().ok()?),
        };
        RunId::try_from(&assignment.run[..]).ok()?;
        let level = LevelControl::new(Level::new(b.level).ok()?, b.adapt_level);
        let pages = PageCutter {
            min_pages: c.min_pages,
            avg_pages: c.avg_pages,
            max_pages: c.max_pages,
            hole_pages: c.hole_pages,
        };
        let streams = StreamCutter { min: c.stream_min, avg: c.stream_avg, max: c.stream_max };
        pages.check().and(streams.check()).ok()?;
        if b.region_bytes != self.agent.engine.region_bytes {
            return None;
        }
        // If the run's packs could not be stored from here before, the run begins anew on this agent.
        if self.runs.get(&assignment.run[..]).is_some_and(|run| run.is_broken()) {
            self.runs.remove(&assignment.run[..]);
        }
        let run = self
            .runs
            .entry(assignment.run.to_vec())
            .or_insert_with(|| Arc::new(RunPacks::new(target, self.agent.options.redeem.clone(), level)))
            .clone();
        Some(VolumeJob {
            engine: self.agent.engine.clone(),
            coordinator: Coordinator::new(self.channel.clone(), assignment.clone()),
            run,
            domain: DomainKey::from_bytes(b.domain_key[..].try_into().ok()?),
            pages,
            streams,
            has_parent: b.has_parent,
            parent: b.parent.clone(),
            whole_chunks: b.whole_chunks,
            may_keep: b.may_keep,
            resume_at: b.resume_at,
            counters: Arc::default(),
            uploads: watch::Sender::default(),
        })
    }

    pub(super) fn start_restore(&mut self, r: wire::RestoreVolume) {
        let Some(assignment) = r.assignment.clone() else { return };
        let key = AssignmentKey::of(&assignment);
        let (go, may_write) = oneshot::channel();
        let reports = self.reports.clone();
        // A stream always begins anew, and a restore within one process is not resumed.
        let keep = Arc::new(AtomicBool::new(r.resumable && r.kind() != wire::VolumeKind::Stream));
        let restoring = Restoring {
            engine: self.agent.engine.clone(),
            redeem: self.agent.options.redeem.clone(),
            coordinator: Coordinator::new(self.channel.clone(), assignment.clone()),
            up: self.up.clone(),
            assignment: assignment.clone(),
            allowed: self.agent.options.allowed.clone(),
            sync_every: self.agent.options.sync_every,
            keep: keep.clone(),
        };
        let (task_key, attempt) = (key.clone(), assignment.attempt);
        let span = span_of("restore", &assignment);
        let finished = self.agent.finished.clone();
        let work = async move {
            let result = if finished.contains(&assignment.run, &assignment.volume) {
                finished_before(restoring, &r, may_write).await
            } else {
                restore(restoring, &r, may_write).await
            };
            if result.is_ok() {
                finished.add(&assignment.run, &assignment.volume);
            }
            let report = match result {
                Ok(tally) => Up::Restored(wire::Restored {
                    assignment: Some(assignment),
                    written_bytes: tally.written.load(Ordering::Relaxed),
                    hole_bytes: tally.holes.load(Ordering::Relaxed),
                    fetched_bytes: tally.fetched.load(Ordering::Relaxed),
                    requests: tally.requests.load(Ordering::Relaxed),
                }),
                Err(e) => Up::Failed(failed(assignment, kind_of_restore(&e), chain(&e))),
            };
            let _ = reports.send((task_key, attempt, Some(report))).await;
        };
        let handle = tokio::spawn(work.instrument(span));
        self.tasks.insert(key, Task { handle, attempt, go: Some(go), job: None, keep });
    }
}

/// The span whose fields each log line about an assignment has.
fn span_of(work: &'static str, a: &wire::Assignment) -> tracing::Span {
    let run = RunId::try_from(&a.run[..]).map(|r| r.hex()).unwrap_or_default();
    tracing::info_span!("assignment", work, run, volume = a.volume, attempt = a.attempt, epoch = a.epoch)
}

/// Whether this agent opens what it shall read.
fn may_read(allowed: &AllowedPaths, b: &wire::BackupVolume) -> Result<(), SourceError> {
    let stream = b.kind() == wire::VolumeKind::Stream;
    match allowed {
        all if all.volumes_only() && stream => Err(SourceError::VolumesOnly("stream")),
        all if all.volumes_only() && !b.changed_from.is_empty() => Err(SourceError::VolumesOnly("list of changes")),
        _ if stream => Ok(()),
        all => Ok(all.check(Path::new(&b.path))?),
    }
}

async fn back_up(job: &Arc<VolumeJob>, b: &wire::BackupVolume, open: Open) -> Result<(), BackupError> {
    let options = SourceOptions { allow_mounted: b.allow_mounted, allow_changing: b.allow_changing };
    let outcome = if b.kind() == wire::VolumeKind::Stream {
        let path = b.path.clone();
        // Opening a pipe blocks until its other end is open.
        let source = job.engine.io.run(move || (open.stream)(&path, options)).await?;
        stream::back_up(job.clone(), source).await?
    } else {
        let path = std::path::PathBuf::from(&b.path);
        let list = Some(b.changed_from.clone()).filter(|p| !p.is_empty());
        let skip_free = b.skip_free;
        let expected = b.expected_file_system.clone();
        let turn = if skip_free { free_space::turn().await } else { None };
        let opened = job.engine.io.run(move || {
            let changes = list.map(|p| Changes::read(Path::new(&p))).transpose()?;
            let source = (open.volume)(&path, options)?;
            if !expected.is_empty() {
                check_file_system(&path, source.len(), &expected).map_err(SourceError::from)?;
            }
            let (source, doubt) = if skip_free { free_space::leave_out(source, &path) } else { (source.into(), None) };
            Ok::<_, BackupError>((source, doubt, changes))
        });
        let (source, doubt, changes) = opened.await?;
        drop(turn);
        let mut outcome = image::back_up(job.clone(), source, changes).await?;
        outcome.notes.extend(doubt);
        outcome
    };
    // This includes packs with other volumes' chunks that are uploaded under this assignment: once it is finished, the
    // coordinator does not accept them any more.
    job.close_uploads().await;
    if let Some(e) = job.run.failed() {
        return Err(e);
    }
    let c = &job.counters;
    let (read, new, stored) = (Counters::get(&c.read), Counters::get(&c.new), Counters::get(&c.stored));
    Ok(job.coordinator.finish(&outcome, read, new, stored).await?)
}

/// What a restore works with.
struct Restoring {
    engine: Arc<Engine>,
    redeem: Arc<dyn Redeem>,
    coordinator: Coordinator,
    up: mpsc::Sender<wire::FromAgent>,
    assignment: wire::Assignment,
    /// Which targets are opened.
    allowed: AllowedPaths,
    /// Bytes between two syncs of the target.
    sync_every: u64,
    /// Whether an unfinished file stays for another attempt.
    keep: Arc<AtomicBool>,
}

enum Opened {
    Stream(StreamTarget, StreamPartial),
    Volume(Arc<VolumeTarget>),
}

/// Reports once more that a volume is restored, and touches nothing: the target may hold newer data by now. Returns
/// empty counters.
async fn finished_before(
    restoring: Restoring,
    r: &wire::RestoreVolume,
    go: oneshot::Receiver<()>,
) -> Result<Arc<Tally>, RestoreError> {
    tracing::warn!(path = r.path, "is restored again, though this agent finished it: it is left as it is");
    let (tag, from) = (r.resume_tag.clone(), r.resume_at);
    let ready = wire::Ready { assignment: Some(restoring.assignment), tag, from };
    let _ = restoring.up.send(message(Up::Ready(ready))).await;
    go.await.map_err(|_| RestoreError::Call(CallError::Nonsense("to go")))?;
    Ok(Arc::default())
}

async fn restore(
    restoring: Restoring,
    r: &wire::RestoreVolume,
    go: oneshot::Receiver<()>,
) -> Result<Arc<Tally>, RestoreError> {
    let nonsense = |what| RestoreError::Call(CallError::Nonsense(what));
    let Restoring { engine, redeem, coordinator, up, assignment, allowed, sync_every, keep } = restoring;
    let repository = RepositoryId::try_from(&r.repository[..]).map_err(|_| nonsense("a repository id"))?;
    let domain = DomainKey::from_bytes(r.domain_key[..].try_into().map_err(|_| nonsense("a domain key"))?);
    let run = RunId::try_from(&assignment.run[..]).map_err(|_| nonsense("a run id"))?.hex();
    if r.resume_at > r.length {
        return Err(nonsense("where to go on from"));
    }
    let name = format!("{run}-{:x}-{}", assignment.epoch, assignment.attempt);
    let attempt = Attempt { name, before: r.resume_tag.clone(), keep: keep.clone() };
    let options = TargetOptions { force: r.force, discard_rest: r.discard_rest };
    let (path, len) = (r.path.clone(), r.length);
    let stream = r.kind() == wire::VolumeKind::Stream;
    match &allowed {
        all if all.volumes_only() && stream => return Err(TargetError::VolumesOnly("stream").into()),
        _ if stream => {}
        all => all.check(Path::new(&path)).map_err(TargetError::from)?,
    }
    let opened = engine
        .io
        .run(move || {
            if stream {
                StreamTarget::open(&path, options, &attempt).map(|(target, partial)| Opened::Stream(target, partial))
            } else {
                VolumeTarget::open(Path::new(&path), len, options, &attempt).map(|t| Opened::Volume(Arc::new(t)))
            }
        })
        .await?;
    let (from, tag) = match &opened {
        Opened::Volume(target) if target.resumed() => (r.resume_at, target.tag().to_owned()),
        Opened::Volume(target) => (0, target.tag().to_owned()),
        Opened::Stream(..) => (0, String::new()),
    };
    let listener = match &opened {
        Opened::Volume(_) if r.resumable => {
            let (reports, reached) = mpsc::channel(4);
            tokio::spawn(report_reached(reached, up.clone(), assignment.clone(), tag.clone()));
            Some(Listener { reports, every: sync_every })
        }
        _ => None,
    };
    let tally: Arc<Tally> = Arc::default();
    let (engine, len) = (engine.clone(), r.length);
    let job =
        RestoreJob { engine, coordinator, redeem, repository, domain, tally: tally.clone(), len, from, listener, keep };
    let job = Arc::new(job);
    let ready = wire::Ready { assignment: Some(assignment.clone()), tag, from };
    let _ = up.send(message(Up::Ready(ready))).await;
    if go.await.is_err() {
        return Err(nonsense("to go"));
    }
    let ticker = tick(up, assignment, restore_progress(tally.clone(), from, len));
    match opened {
        Opened::Stream(target, partial) => job.to_stream(target, partial).await?,
        Opened::Volume(target) => job.to_volume(target).await?,
    }
    drop(ticker);
    Ok(tally)
}

/// Reports the durable offset of a target to the coordinator, until the attempt is over.
async fn report_reached(
    mut reports: mpsc::Receiver<Reached>,
    up: mpsc::Sender<wire::FromAgent>,
    assignment: wire::Assignment,
    tag: String,
) {
    while let Some(r) = reports.recv().await {
        let reached = wire::Reached {
            assignment: Some(assignment.clone()),
            offset: r.offset,
            written_bytes: r.written,
            hole_bytes: r.holes,
            fetched_bytes: r.fetched,
            requests: r.requests,
            tag: tag.clone(),
        };
        if up.send(message(Up::Reached(reached))).await.is_err() {
            return;
        }
    }
}

/// Sends progress now and then, until what it returns is dropped.
fn tick(
    up: mpsc::Sender<wire::FromAgent>,
    assignment: wire::Assignment,
    read: impl Fn(wire::Progress) -> wire::Progress + Send + 'static,
) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        loop {
            tick.tick().await;
            let progress = read(wire::Progress { assignment: Some(assignment.clone()), ..Default::default() });
            if up.send(message(Up::Progress(progress))).await.is_err() {
                return;
            }
        }
    }))
}

fn backup_progress(c: Arc<Counters>) -> impl Fn(wire::Progress) -> wire::Progress + Send + 'static {
    move |p| wire::Progress {
        done_bytes: Counters::get(&c.done),
        total_bytes: Counters::get(&c.total),
        new_bytes: Counters::get(&c.new),
        stored_bytes: Counters::get(&c.stored),
        ..p
    }
}

fn restore_progress(t: Arc<Tally>, from: u64, len: u64) -> impl Fn(wire::Progress) -> wire::Progress + Send + 'static {
    move |p| wire::Progress {
        done_bytes: from + t.written.load(Ordering::Relaxed) + t.holes.load(Ordering::Relaxed),
        total_bytes: len,
        ..p
    }
}
