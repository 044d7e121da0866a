//! The agent's standing connection to the coordinator: it registers, takes assignments, reports.
//!
//! One owner of all state: `Session::next` selects an `Action`, `Session::apply` applies it. What takes long runs in
//! tasks of its own, which report as actions.

use std::collections::HashMap;
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
use milkrun_repository::store::{CreateError, GetError, Trouble};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::transport::Channel;
use tracing::Instrument;
use wire::failed::Kind as FailureKind;
use wire::from_agent::Message as Up;
use wire::to_agent::Message as Down;

use crate::backup::{BackupError, Counters, Engine, VolumeJob, image, lanes::RunPacks, stream};
use crate::budget::Budget;
use crate::buffer::{BufferPool, RangeBuffers};
use crate::device::{
    Source, SourceError, SourceOptions, StreamPartial, StreamTarget, TargetError, TargetOptions, VolumeTarget,
    open_source, open_stream,
};
use crate::restore::{RestoreError, RestoreJob, Tally};
use crate::rpc::{self, CallError, Coordinator};
use crate::workers::{StartError, Workers};

/// The version of the protocol that this agent speaks.
pub const PROTOCOL: u32 = 2;
/// Threads that wait for devices.
const IO_THREADS: usize = 16;

/// Opens volumes; tests script devices here.
pub type OpenSource = Arc<dyn Fn(&Path, SourceOptions) -> Result<Box<dyn Source>, SourceError> + Send + Sync>;

/// How an agent works.
#[derive(Clone)]
pub struct AgentOptions {
    /// Its node.
    pub node: String,
    /// Threads for CPU work.
    pub threads: usize,
    /// Bytes in flight.
    pub memory: u64,
    /// Volumes at once; 0: as many as come.
    pub volumes: u32,
    /// Uses grants.
    pub redeem: Arc<dyn Redeem>,
    /// Opens volumes.
    pub open: OpenSource,
}

impl AgentOptions {
    /// With as many threads as there are cores, and the default budget.
    pub fn new(node: impl Into<String>, redeem: Arc<dyn Redeem>) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            node: node.into(),
            threads,
            memory: crate::budget::DEFAULT,
            volumes: 0,
            redeem,
            open: Arc::new(open_source),
        }
    }
}

/// An agent.
#[derive(Clone)]
pub struct Agent {
    options: AgentOptions,
    engine: Arc<Engine>,
    connected: watch::Sender<bool>,
}

/// Why the session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The connection failed or was refused.
    #[error("the session with the coordinator ended")]
    Connection(#[from] CallError),
}

impl Agent {
    /// Starts its threads.
    ///
    /// # Errors
    /// [`StartError`] when the system refuses.
    pub fn new(options: AgentOptions) -> Result<Self, StartError> {
        let region_bytes = milkrun_repository::config::REGION_BYTES;
        let budget = Budget::new(options.memory);
        let engine = Engine {
            cpu: Workers::new("cpu", options.threads)?,
            io: Workers::new("io", IO_THREADS)?,
            regions: BufferPool::new(usize::try_from(region_bytes).unwrap_or(usize::MAX)),
            ranges: RangeBuffers::new(budget.pack_bytes()),
            budget,
            region_bytes,
        };
        Ok(Self { options, engine: Arc::new(engine), connected: watch::Sender::new(false) })
    }

    /// Whether a coordinator takes this agent now.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }

    /// Registers and serves until the session ends. Once `stop` is true it takes no more work, gives back what it has, and
    /// ends.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn run(&self, channel: Channel, stop: watch::Receiver<bool>) -> Result<(), SessionError> {
        let (up, outgoing) = mpsc::channel(256);
        let register = wire::Register {
            node: self.options.node.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            protocol: PROTOCOL,
            volumes: self.options.volumes,
        };
        // The queue is new and holds more than one.
        let _ = up.send(message(Up::Register(register))).await;
        let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
        let incoming = rpc::session_client(channel.clone()).attach(outgoing).await.map_err(CallError::from)?;
        let (reports, reported) = mpsc::channel(64);
        Session {
            agent: self.clone(),
            channel,
            incoming: incoming.into_inner(),
            up,
            reports,
            reported,
            tasks: HashMap::new(),
            runs: HashMap::new(),
            stop,
            leaving: None,
            heart: None,
        }
        .serve()
        .await
    }
}

fn message(m: Up) -> wire::FromAgent {
    wire::FromAgent { message: Some(m) }
}

/// What names an assignment within a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct AssignmentKey {
    run: Vec<u8>,
    volume: String,
}

impl AssignmentKey {
    fn of(a: &wire::Assignment) -> Self {
        Self { run: a.run.to_vec(), volume: a.volume.clone() }
    }
}

struct Task {
    handle: tokio::task::JoinHandle<()>,
    attempt: u32,
    go: Option<oneshot::Sender<()>>,
    /// Of a backup: what can send its run's packs on their way.
    job: Option<Arc<VolumeJob>>,
}

impl Task {
    /// Ends it. What it claimed and did not store falls to whoever begins anew.
    async fn end(self) {
        self.handle.abort();
        let _ = self.handle.await;
        if let Some(job) = self.job {
            job.run.fail(BackupError::Stopped { why: "another volume's attempt ended".into(), passing: true });
        }
    }
}

enum Action {
    Down(Down),
    /// A task of this attempt ended.
    Done(AssignmentKey, u32, Option<Up>),
    /// Somebody wants this agent to stop.
    Leave,
    Nothing,
    Ended,
}

/// How long an agent that is to stop waits for the coordinator to take its work back.
const LEAVE_LIMIT: Duration = Duration::from_secs(20);

struct Session {
    agent: Agent,
    channel: Channel,
    incoming: tonic::Streaming<wire::ToAgent>,
    up: mpsc::Sender<wire::FromAgent>,
    reports: mpsc::Sender<Report>,
    reported: mpsc::Receiver<Report>,
    tasks: HashMap<AssignmentKey, Task>,
    /// Open packs per run; gone when the run's last volume is.
    runs: HashMap<Vec<u8>, Arc<RunPacks>>,
    /// Whether somebody wants this agent to stop.
    stop: watch::Receiver<bool>,
    /// It is stopping, and until when it waits.
    leaving: Option<Instant>,
    /// Says that it is there.
    heart: Option<Heart>,
}

/// A task's end: which, its attempt, what the coordinator hears of it.
type Report = (AssignmentKey, u32, Option<Up>);

/// Beats until dropped.
struct Heart(tokio::task::JoinHandle<()>);

impl Drop for Heart {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Heart {
    fn start(up: mpsc::Sender<wire::FromAgent>, every: Duration) -> Self {
        Self(tokio::spawn(async move {
            let mut beat = tokio::time::interval(every);
            loop {
                beat.tick().await;
                if up.send(message(Up::Heartbeat(wire::Heartbeat {}))).await.is_err() {
                    return;
                }
            }
        }))
    }
}

impl Session {
    async fn serve(mut self) -> Result<(), SessionError> {
        let end = loop {
            #[expect(clippy::cast_precision_loss, reason = "a number of volumes")]
            metrics::gauge!("milkrun_agent_volumes").set(self.tasks.len() as f64);
            match self.next().await {
                Ok(Action::Ended) => break Ok(()),
                Ok(action) => self.apply(action).await,
                Err(e) => break Err(e.into()),
            }
            if self.leaving.is_some() && self.tasks.is_empty() {
                break Ok(());
            }
        };
        self.agent.connected.send_replace(false);
        metrics::gauge!("milkrun_agent_connected").set(0.0);
        for (_, task) in self.tasks.drain() {
            task.handle.abort();
        }
        for (_, run) in self.runs.drain() {
            run.abort().await;
        }
        end
    }

    async fn next(&mut self) -> Result<Action, CallError> {
        tokio::select! {
            received = self.incoming.message() => match received? {
                // A kind of message that is newer than this release looks empty.
                Some(m) => Ok(m.message.map_or(Action::Nothing, Action::Down)),
                None => Ok(Action::Ended),
            },
            // `self.reports` is kept, so that this never ends.
            Some((key, attempt, report)) = self.reported.recv() => Ok(Action::Done(key, attempt, report)),
            () = asked_to_stop(&mut self.stop), if self.leaving.is_none() => Ok(Action::Leave),
            () = tokio::time::sleep_until(self.leaving.unwrap_or_else(Instant::now)), if self.leaving.is_some() => {
                tracing::warn!(volumes = self.tasks.len(), "stopping although the coordinator has not taken all work back");
                Ok(Action::Ended)
            }
        }
    }

    async fn apply(&mut self, action: Action) {
        match action {
            Action::Down(Down::Backup(b)) => {
                self.supersede(b.assignment.as_ref()).await;
                self.start_backup(b);
            }
            Action::Down(Down::Restore(r)) => {
                self.supersede(r.assignment.as_ref()).await;
                self.start_restore(r);
            }
            Action::Down(Down::Go(a)) => {
                if let Some(go) = self.tasks.get_mut(&AssignmentKey::of(&a)).and_then(|t| t.go.take()) {
                    // Whoever waited may have failed meanwhile, and has said so.
                    let _ = go.send(());
                }
            }
            Action::Down(Down::Cancel(a)) => {
                milkrun_repository::crash::point("before stopping");
                let key = AssignmentKey::of(&a);
                if self.tasks.get(&key).is_some_and(|t| t.attempt <= a.attempt)
                    && let Some(task) = self.tasks.remove(&key)
                {
                    task.end().await;
                    self.forget_run(&key.run).await;
                }
                self.send(Up::Failed(failed(a, FailureKind::Cancelled, "cancelled".into()))).await;
            }
            Action::Down(Down::Welcome(w)) => {
                tracing::info!(epoch = w.epoch, "the coordinator takes this agent");
                self.agent.connected.send_replace(true);
                metrics::gauge!("milkrun_agent_connected").set(1.0);
                let every = Duration::from_secs(w.heartbeat_seconds.into());
                self.heart = (!every.is_zero()).then(|| Heart::start(self.up.clone(), every));
            }
            Action::Down(Down::Drain(out)) => {
                if out {
                    tracing::info!("this node is out of work until somebody takes it back");
                }
            }
            Action::Down(Down::Flush(run)) => {
                let job = self.tasks.iter().find(|(key, _)| key.run == run[..]).and_then(|(_, t)| t.job.clone());
                if let Some(job) = job {
                    tokio::spawn(async move { job.run.flush(&job).await });
                }
            }
            Action::Leave => {
                tracing::info!(volumes = self.tasks.len(), "stopping: work goes back to the coordinator");
                self.leaving = Some(Instant::now() + LEAVE_LIMIT);
                self.send(Up::Draining(true)).await;
            }
            Action::Nothing | Action::Ended => {}
            Action::Done(key, attempt, report) => {
                if self.tasks.get(&key).is_some_and(|t| t.attempt == attempt) {
                    self.tasks.remove(&key);
                    self.forget_run(&key.run).await;
                }
                if let Some(report) = report {
                    self.send(report).await;
                }
            }
        }
    }

    /// An attempt that is given again is over here.
    async fn supersede(&mut self, a: Option<&wire::Assignment>) {
        if let Some(task) = a.and_then(|a| self.tasks.remove(&AssignmentKey::of(a))) {
            task.end().await;
        }
    }

    async fn forget_run(&mut self, run: &[u8]) {
        if !self.tasks.keys().any(|k| k.run == run)
            && let Some(packs) = self.runs.remove(run)
        {
            packs.abort().await;
        }
    }

    async fn send(&self, m: Up) {
        // A closed session is noticed by `next`.
        let _ = self.up.send(message(m)).await;
    }

    fn start_backup(&mut self, b: wire::BackupVolume) {
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

    fn start_restore(&mut self, r: wire::RestoreVolume) {
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

/// Ends once somebody wants this agent to stop; never, if nobody can any more.
async fn asked_to_stop(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|&stop| stop).await.is_err() {
        std::future::pending().await
    }
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

fn failed(assignment: wire::Assignment, kind: FailureKind, reason: String) -> wire::Failed {
    wire::Failed { assignment: Some(assignment), reason, kind: kind.into() }
}

fn kind_of_trouble(trouble: Trouble) -> FailureKind {
    match trouble {
        Trouble::Unreachable | Trouble::Busy | Trouble::Garbled => FailureKind::Unreachable,
        Trouble::Short => FailureKind::Damaged,
        _ => FailureKind::Store,
    }
}

fn kind_of_call(e: &CallError) -> FailureKind {
    match e {
        CallError::Refused(status) if status.code() == tonic::Code::Unavailable => FailureKind::Unreachable,
        CallError::Refused(status) if status.code() == tonic::Code::DataLoss => FailureKind::Damaged,
        _ => FailureKind::Store,
    }
}

fn kind_of_backup(e: &BackupError) -> FailureKind {
    match e {
        BackupError::Source(_) | BackupError::Read { .. } => FailureKind::Source,
        BackupError::Call(e) => kind_of_call(e),
        BackupError::Store { source: CreateError::Failed(f), .. } => kind_of_trouble(f.trouble),
        BackupError::Store { .. } | BackupError::Pack(_) => FailureKind::Store,
        BackupError::Stopped { passing: true, .. } => FailureKind::Unreachable,
        BackupError::Stopped { .. } => FailureKind::Cancelled,
    }
}

fn kind_of_restore(e: &RestoreError) -> FailureKind {
    match e {
        RestoreError::Target(TargetError::Write { .. } | TargetError::Sync { .. }) | RestoreError::Setup(_) => {
            FailureKind::Source
        }
        RestoreError::Target(_) => FailureKind::Target,
        RestoreError::Call(e) => kind_of_call(e),
        RestoreError::Fetch { source: GetError::Failed(f), .. } => kind_of_trouble(f.trouble),
        RestoreError::Fetch { .. } | RestoreError::Damaged { .. } | RestoreError::Incomplete { .. } => {
            FailureKind::Damaged
        }
    }
}
