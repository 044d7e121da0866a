//! What is under way, by run: the services find their run here, and agents' messages find their way to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::id::RunId;
use tokio::sync::mpsc;

use crate::{EPOCH, backup, restore};

/// What happens to a run, from outside.
#[derive(Debug)]
pub enum RunEvent {
    /// An agent said something.
    Agent(wire::from_agent::Message),
    /// A volume's map is complete.
    Finished(String),
    /// Somebody wants it stopped.
    Cancel,
    /// The agent that worked on it is gone.
    AgentGone,
}

/// A run under way.
#[derive(Clone)]
pub enum Run {
    /// A backup.
    Backup(Arc<backup::Run>),
    /// A restore.
    Restore(Arc<restore::Run>),
}

/// Why a call is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedCall {
    /// It names no run that is under way.
    #[error("the run is not under way")]
    NoRun,
    /// It names no volume of the run.
    #[error("the run has no volume {0:?}")]
    NoVolume(String),
    /// It comes from an older leader's time or an older attempt.
    #[error("the assignment was given to somebody else since")]
    Stale,
}

/// The table.
#[derive(Clone, Default)]
pub struct Runs {
    table: Arc<Mutex<HashMap<RunId, Entry>>>,
}

struct Entry {
    run: Run,
    inbox: mpsc::UnboundedSender<RunEvent>,
}

impl Runs {
    fn table(&self) -> MutexGuard<'_, HashMap<RunId, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run begins; what happens to it comes out of the receiver.
    pub fn begin(&self, id: RunId, run: Run) -> mpsc::UnboundedReceiver<RunEvent> {
        let (inbox, events) = mpsc::unbounded_channel();
        self.table().insert(id, Entry { run, inbox });
        events
    }

    /// A run ended.
    pub fn end(&self, id: &RunId) {
        self.table().remove(id);
    }

    /// Tells a run something. Returns whether it is under way.
    pub fn tell(&self, id: &RunId, event: RunEvent) -> bool {
        self.table().get(id).is_some_and(|e| e.inbox.send(event).is_ok())
    }

    /// Tells all runs that an agent is gone.
    pub fn agent_gone(&self) {
        for entry in self.table().values() {
            // A run that ended just now does not care.
            let _ = entry.inbox.send(RunEvent::AgentGone);
        }
    }

    fn find(&self, a: &Option<wire::Assignment>) -> Result<(Run, wire::Assignment), RefusedCall> {
        let a = a.clone().ok_or(RefusedCall::NoRun)?;
        if a.epoch != EPOCH {
            return Err(RefusedCall::Stale);
        }
        let id = RunId::try_from(&a.run[..]).map_err(|_| RefusedCall::NoRun)?;
        let run = self.table().get(&id).map(|e| e.run.clone()).ok_or(RefusedCall::NoRun)?;
        Ok((run, a))
    }

    /// The backup and volume of an assignment.
    ///
    /// # Errors
    /// [`RefusedCall`].
    pub fn backup(&self, a: &Option<wire::Assignment>) -> Result<(Arc<backup::Run>, String), RefusedCall> {
        match self.find(a)? {
            (Run::Backup(run), a) => run.check(&a).map(|()| (run.clone(), a.volume)),
            (Run::Restore(_), _) => Err(RefusedCall::NoRun),
        }
    }

    /// The restore and volume of an assignment.
    ///
    /// # Errors
    /// [`RefusedCall`].
    pub fn restore(&self, a: &Option<wire::Assignment>) -> Result<(Arc<restore::Run>, usize), RefusedCall> {
        match self.find(a)? {
            (Run::Restore(run), a) => run.check(&a).map(|i| (run.clone(), i)),
            (Run::Backup(_), _) => Err(RefusedCall::NoRun),
        }
    }
}

/// How long a stopped agent may take to let go of its devices and files.
const STOP_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

/// Waits until agents have let go of these volumes, which they were told to.
pub(crate) async fn await_stopped(
    inbox: &mut mpsc::UnboundedReceiver<RunEvent>,
    mut volumes: std::collections::HashSet<String>,
) {
    use wire::from_agent::Message as M;
    let stopped = async {
        while !volumes.is_empty() {
            match inbox.recv().await {
                Some(RunEvent::Agent(M::Failed(f))) => {
                    volumes.remove(&f.assignment.unwrap_or_default().volume);
                }
                Some(RunEvent::Agent(M::Restored(r))) => {
                    volumes.remove(&r.assignment.unwrap_or_default().volume);
                }
                Some(RunEvent::Finished(volume)) => {
                    volumes.remove(&volume);
                }
                None | Some(RunEvent::AgentGone) => return,
                Some(_) => {}
            }
        }
    };
    // One that does not answer holds nothing of ours: its assignment is over either way.
    let _ = tokio::time::timeout(STOP_LIMIT, stopped).await;
}

/// The run that an agent's message is about.
pub fn run_of(m: &wire::from_agent::Message) -> Option<RunId> {
    use wire::from_agent::Message as M;
    let a = match m {
        M::Progress(p) => &p.assignment,
        M::Ready(r) => &r.assignment,
        M::Failed(f) => &f.assignment,
        M::Restored(r) => &r.assignment,
        M::Register(_) | M::Heartbeat(_) => return None,
    };
    RunId::try_from(&a.as_ref()?.run[..]).ok()
}
