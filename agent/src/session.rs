//! The agent's standing connection to the coordinator: the agent registers, takes assignments and reports.
//!
//! All state has one owner: `Session::next` selects an `Action`, `Session::apply` applies it. Long work runs in tasks
//! of its own, which report by actions.

mod failures;
mod freezing;
mod options;
mod work;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::clock::entropy;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;
use wire::failed::Kind as FailureKind;
use wire::from_agent::Message as Up;
use wire::to_agent::Message as Down;

use crate::backup::{
    BackupError, Engine, IN_FLIGHT, SMALL_BYTES, SPARSE_BYTES, VolumeJob, open_packs::RunPacks, sparse_read::Readers,
};
use crate::budget::Budget;
use crate::buffer::{BufferPool, RangeBuffers};
use crate::restore::finished::Finished;
use crate::rpc::{self, CallError};
use crate::workers::{StartError, Workers};
use failures::failed;
pub use options::{AgentOptions, Open, OpenSource, OpenStream};

/// The version of the protocol that this agent speaks.
pub const PROTOCOL: u32 = 2;
/// Threads that wait for devices.
const IO_THREADS: usize = 16;

/// Idle small buffers that are kept. Only the parts of them that were ever filled take memory: 32 MiB at most.
const SMALL_IDLE: usize = 32;

/// An agent.
#[derive(Clone)]
pub struct Agent {
    options: AgentOptions,
    engine: Arc<Engine>,
    connected: watch::Sender<bool>,
    /// The restores that it has finished.
    finished: Finished,
    /// Distinguishes this process from another agent of the same node.
    instance: [u8; 16],
}

/// Why the session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The connection failed or was refused.
    #[error("the session with the coordinator ended")]
    Connection(#[from] CallError),
}

impl Agent {
    /// Starts the agent's threads.
    ///
    /// # Errors
    /// [`StartError`] when the system refuses.
    pub fn new(options: AgentOptions) -> Result<Self, StartError> {
        let region_bytes = milkrun_repository::config::REGION_BYTES;
        let budget = Budget::new(options.memory);
        let io = Arc::new(Workers::new("io", IO_THREADS)?);
        let engine = Engine {
            cpu: Workers::new("cpu", options.threads)?,
            readers: Readers::start(&io)?,
            io,
            regions: BufferPool::new(usize::try_from(region_bytes).unwrap_or(usize::MAX)),
            small: BufferPool::new(usize::try_from(SMALL_BYTES).unwrap_or(usize::MAX)).keeping(SMALL_IDLE),
            sparse: BufferPool::new(usize::try_from(SPARSE_BYTES).unwrap_or(usize::MAX)).keeping(IN_FLIGHT),
            ranges: RangeBuffers::new(budget.pack_bytes()),
            budget,
            region_bytes,
        };
        Ok(Self {
            options,
            engine: Arc::new(engine),
            connected: watch::Sender::new(false),
            finished: Finished::default(),
            instance: entropy(),
        })
    }

    /// Whether a coordinator has accepted this agent, and the session lasts.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }

    /// Registers and serves until the session ends. Once `stop` is true, the agent takes no more work, gives back what
    /// it has, and ends.
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
            instance: self.instance.to_vec().into(),
            freezes: self.options.freezer.can_freeze(),
        };
        // This does not wait: the queue is new, and holds more than one message.
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
            heartbeat: None,
        }
        .serve()
        .await
    }
}

fn message(m: Up) -> wire::FromAgent {
    wire::FromAgent { message: Some(m) }
}

/// What identifies an assignment within a session.
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
    /// For a backup: its job, which can flush the run's packs.
    job: Option<Arc<VolumeJob>>,
    /// For a restore: whether an unfinished file stays for another attempt.
    keep: Arc<AtomicBool>,
}

impl Task {
    /// Ends the task. Chunks that it claimed and did not store are stored by a later attempt.
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
    /// This agent is asked to stop.
    Leave,
    Nothing,
    Ended,
}

/// How long a stopping agent waits for the coordinator to take its work back.
const LEAVE_LIMIT: Duration = Duration::from_secs(20);
/// How long the work of a session that is over may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);

struct Session {
    agent: Agent,
    channel: Channel,
    incoming: tonic::Streaming<wire::ToAgent>,
    up: mpsc::Sender<wire::FromAgent>,
    reports: mpsc::Sender<Report>,
    reported: mpsc::Receiver<Report>,
    tasks: HashMap<AssignmentKey, Task>,
    /// Open packs per run. An entry is removed with the run's last volume.
    runs: HashMap<Vec<u8>, Arc<RunPacks>>,
    /// Whether this agent is asked to stop.
    stop: watch::Receiver<bool>,
    /// If the agent is stopping: until when it waits.
    leaving: Option<Instant>,
    /// Sends heartbeats.
    heartbeat: Option<AbortOnDropHandle<()>>,
}

/// The end of a task: the assignment, its attempt, and the report to the coordinator.
type Report = (AssignmentKey, u32, Option<Up>);

/// Sends heartbeats until dropped.
fn heartbeat(up: mpsc::Sender<wire::FromAgent>, every: Duration) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut beat = tokio::time::interval(every);
        loop {
            beat.tick().await;
            if up.send(message(Up::Heartbeat(wire::Heartbeat {}))).await.is_err() {
                return;
            }
        }
    }))
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
        let tasks: Vec<Task> = self.tasks.drain().map(|(_, task)| task).collect();
        for task in &tasks {
            task.handle.abort();
        }
        // The next session may open the same target again, so no task of this one may still write to it. But a device
        // that hangs must not keep this agent from its coordinator: the wait is limited.
        let ended = async {
            for task in tasks {
                let _ = task.handle.await;
            }
        };
        let _ = tokio::time::timeout(END_LIMIT, ended).await;
        for (_, run) in self.runs.drain() {
            run.abort().await;
        }
        end
    }

    async fn next(&mut self) -> Result<Action, CallError> {
        tokio::select! {
            received = self.incoming.message() => match received? {
                // A message of a kind that this release does not know looks empty.
                Some(m) => Ok(m.message.map_or(Action::Nothing, Action::Down)),
                None => Ok(Action::Ended),
            },
            // This channel never closes: `self.reports` keeps a sender.
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
                    // The task may have failed meanwhile; it has reported that itself.
                    let _ = go.send(());
                }
            }
            Action::Down(Down::Cancel(a)) => {
                milkrun_repository::crash::point("before stopping");
                let key = AssignmentKey::of(&a);
                if self.tasks.get(&key).is_some_and(|t| t.attempt <= a.attempt)
                    && let Some(task) = self.tasks.remove(&key)
                {
                    task.keep.store(false, Ordering::SeqCst);
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
                self.heartbeat = (!every.is_zero()).then(|| heartbeat(self.up.clone(), every));
            }
            Action::Down(Down::Drain(out)) => {
                if out {
                    tracing::info!("this node is out of work until somebody takes it back");
                }
            }
            Action::Down(Down::Freeze(asked)) => self.freeze(asked),
            Action::Down(Down::Thaw(asked)) => self.thaw(asked),
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

    /// Ends an earlier attempt of an assignment that is assigned again.
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
        // An error means that the session is closed, which `next` notices.
        let _ = self.up.send(message(m)).await;
    }
}

/// Returns once this agent is asked to stop; never, if nobody can ask any more.
async fn asked_to_stop(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|&stop| stop).await.is_err() {
        std::future::pending().await
    }
}
