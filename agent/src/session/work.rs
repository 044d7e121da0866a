//! What is done under one assignment, in a task of its own: a volume's backup, or its restore.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
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
use tracing::Instrument;
use wire::failed::Kind as FailureKind;
use wire::from_agent::Message as Up;

use super::failures::{failed, kind_of_backup, kind_of_restore};
use super::{AssignmentKey, OpenSource, Session, Task, message};
use crate::backup::{BackupError, Counters, Engine, VolumeJob, image, lanes::RunPacks, stream};
use crate::device::{SourceOptions, StreamPartial, StreamTarget, TargetOptions, VolumeTarget, open_stream};
use crate::restore::{RestoreError, RestoreJob, Tally};
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
        let open = self.agent.options.open.clone();
        let (up, reports) = (self.up.clone(), self.reports.clone());
        let (task_key, working) = (key.clone(), job.clone());
        let span = span_of("backup", &assignment);
        let work = async move {
            let job = working;
            let ticker = Ticker::start(up, assignment.clone(), backup_progress(job.counters.clone()));
            let result = back_up(&job, &b, open).await;
            drop(ticker);
            let report = match result {
                // `Finish` told the coordinator already.
                Ok(()) => None,
                Err(e) => {
                    // What it claimed and did not store would be waited for in vain.
                    job.run.fail(BackupError::Stopped { why: "another volume's attempt ended".into(), passing: true });
                    Some(Up::Failed(failed(assignment, kind_of_backup(&e), chain(&e))))
                }
            };
            let _ = reports.send((task_key, attempt, report)).await;
        };
        let handle = tokio::spawn(work.instrument(span));
        self.tasks.insert(key, Task { handle, attempt, go: None, job: Some(job) });
    }

    fn backup_job(&mut self, b: &wire::BackupVolume, assignment: &wire::Assignment) -> Option<VolumeJob> {
        let c = b.cutters.as_ref()?;
        let target = PackTarget {
            repository: RepositoryId::try_from(&b.repository[..]).ok()?,
            kind: PackKind::Data,
            recipient: HybridPublic::from_bytes(b.data_key[..].try_into().ok()?),
        };
        RunId::try_from(&assignment.run[..]).ok()?;
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
        // A run whose packs could not be stored from here begins anew here.
        if self.runs.get(&assignment.run[..]).is_some_and(|run| run.is_broken()) {
            self.runs.remove(&assignment.run[..]);
        }
        let run = self
            .runs
            .entry(assignment.run.to_vec())
            .or_insert_with(|| Arc::new(RunPacks::new(target, self.agent.options.redeem.clone())))
            .clone();
        Some(VolumeJob {
            engine: self.agent.engine.clone(),
            coordinator: Coordinator::new(self.channel.clone(), assignment.clone()),
            run,
            domain: DomainKey::from_bytes(b.domain_key[..].try_into().ok()?),
            pages,
            streams,
            level: Level::new(b.level).ok()?,
            has_parent: b.has_parent,
            resume_at: b.resume_at,
            counters: Arc::default(),
            uploads: watch::Sender::default(),
        })
    }

    pub(super) fn start_restore(&mut self, r: wire::RestoreVolume) {
        let Some(assignment) = r.assignment.clone() else { return };
        let key = AssignmentKey::of(&assignment);
        let (go, gone) = oneshot::channel();
        let (engine, redeem) = (self.agent.engine.clone(), self.agent.options.redeem.clone());
        let coordinator = Coordinator::new(self.channel.clone(), assignment.clone());
        let (up, reports) = (self.up.clone(), self.reports.clone());
        let (task_key, attempt) = (key.clone(), assignment.attempt);
        let span = span_of("restore", &assignment);
        let work = async move {
            let result = restore(engine, redeem, coordinator, &r, assignment.clone(), up, gone).await;
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
        self.tasks.insert(key, Task { handle, attempt, go: Some(go), job: None });
    }
}

/// What all that is logged about an assignment says of it.
fn span_of(work: &'static str, a: &wire::Assignment) -> tracing::Span {
    let run = RunId::try_from(&a.run[..]).map(|r| r.hex()).unwrap_or_default();
    tracing::info_span!("assignment", work, run, volume = a.volume, attempt = a.attempt, epoch = a.epoch)
}

async fn back_up(job: &Arc<VolumeJob>, b: &wire::BackupVolume, open: OpenSource) -> Result<(), BackupError> {
    let outcome = if b.kind() == wire::VolumeKind::Stream {
        let path = b.path.clone();
        // Opening a pipe waits for its other end.
        let file = job.engine.io.run(move || open_stream(&path)).await?;
        stream::back_up(job.clone(), file).await?
    } else {
        let options = SourceOptions { allow_mounted: b.allow_mounted, allow_changing: b.allow_changing };
        let path = std::path::PathBuf::from(&b.path);
        let source = job.engine.io.run(move || open(&path, options)).await?;
        image::back_up(job.clone(), source.into()).await?
    };
    // Those of other volumes too that went in this one's name: once it is done, nobody takes them any more.
    job.close_uploads().await;
    if let Some(e) = job.run.failed() {
        return Err(e);
    }
    let c = &job.counters;
    let (read, new, stored) = (Counters::get(&c.read), Counters::get(&c.new), Counters::get(&c.stored));
    Ok(job.coordinator.finish(&outcome, read, new, stored).await?)
}

async fn restore(
    engine: Arc<Engine>,
    redeem: Arc<dyn Redeem>,
    coordinator: Coordinator,
    r: &wire::RestoreVolume,
    assignment: wire::Assignment,
    up: mpsc::Sender<wire::FromAgent>,
    go: oneshot::Receiver<()>,
) -> Result<Arc<Tally>, RestoreError> {
    let nonsense = |what| RestoreError::Call(CallError::Nonsense(what));
    let job = Arc::new(RestoreJob {
        engine: engine.clone(),
        coordinator,
        redeem,
        repository: RepositoryId::try_from(&r.repository[..]).map_err(|_| nonsense("a repository id"))?,
        domain: DomainKey::from_bytes(r.domain_key[..].try_into().map_err(|_| nonsense("a domain key"))?),
        tally: Arc::default(),
        len: r.length,
    });
    let options = TargetOptions { force: r.force, discard_rest: r.discard_rest };
    let (path, len) = (r.path.clone(), r.length);
    let stream = r.kind() == wire::VolumeKind::Stream;
    enum Opened {
        Stream(StreamTarget, StreamPartial),
        Volume(VolumeTarget),
    }
    let opened = engine
        .io
        .run(move || {
            if stream {
                StreamTarget::open(&path, options).map(|(target, partial)| Opened::Stream(target, partial))
            } else {
                VolumeTarget::open(Path::new(&path), len, options).map(Opened::Volume)
            }
        })
        .await?;
    let ready = wire::Ready { assignment: Some(assignment.clone()) };
    let _ = up.send(message(Up::Ready(ready))).await;
    if go.await.is_err() {
        return Err(nonsense("to go"));
    }
    let ticker = Ticker::start(up, assignment, restore_progress(job.tally.clone(), len));
    match opened {
        Opened::Stream(target, partial) => job.clone().to_stream(target, partial).await?,
        Opened::Volume(target) => job.clone().to_volume(Arc::new(target)).await?,
    }
    drop(ticker);
    Ok(job.tally.clone())
}

/// Sends progress now and then, until dropped.
struct Ticker(tokio::task::JoinHandle<()>);

impl Drop for Ticker {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Ticker {
    fn start(
        up: mpsc::Sender<wire::FromAgent>,
        assignment: wire::Assignment,
        read: impl Fn(wire::Progress) -> wire::Progress + Send + 'static,
    ) -> Self {
        Self(tokio::spawn(async move {
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

fn restore_progress(t: Arc<Tally>, len: u64) -> impl Fn(wire::Progress) -> wire::Progress + Send + 'static {
    move |p| wire::Progress {
        done_bytes: t.written.load(Ordering::Relaxed) + t.holes.load(Ordering::Relaxed),
        total_bytes: len,
        ..p
    }
}
