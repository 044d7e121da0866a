//! The runs that are under way, by id. Agents' messages are passed to their run here, and people see it. The services find their
//! run in [`working`].

pub mod inbox;
pub(crate) mod queue;
pub mod view;
pub mod working;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::id::RunId;
use milkrun_repository::point::journal::Complete;
use tokio::sync::mpsc;

use crate::inventory::SourceSpec;
use crate::restore::TargetSpec;

pub(crate) use inbox::Inbox;
use inbox::Room;
use view::Feed;

/// Something that happens to a run from outside.
#[derive(Debug)]
pub enum RunEvent {
    /// The agent of a node sent a message.
    Agent(String, wire::from_agent::Message, Room),
    /// A volume's map is complete.
    Finished(String),
    /// A volume gets its turn, on this node.
    Placed {
        /// Which.
        volume: String,
        /// Where.
        node: String,
    },
    /// Somebody cancels the run.
    Cancel,
    /// A run that was opened gets a source.
    AddSource(Box<SourceSpec>, Reply),
    /// A restore that was opened gets a target.
    AddTarget(Box<TargetSpec>, Reply),
    /// A run that was opened gets no more sources or targets.
    Complete(Box<Complete>, Reply),
    /// A node's agent is gone.
    AgentGone(String),
    /// A node is taken out of work: its volumes of the run go on elsewhere.
    Drained(String),
}

/// Sends the result back to the one who asked.
pub type Reply = tokio::sync::oneshot::Sender<Result<(), String>>;

/// How long a run that was opened may stay unfinished: snapshots may be ready, and claims bound, hours later.
pub(crate) const OPEN_MAX: Duration = Duration::from_secs(24 * 3600);

/// How many ended runs can still be seen.
const KEPT: usize = 256;

/// The table of runs.
#[derive(Clone, Default)]
pub struct Runs {
    table: Arc<Mutex<Table>>,
    turns: queue::Turns,
}

#[derive(Default)]
struct Table {
    running: HashMap<RunId, mpsc::UnboundedSender<RunEvent>>,
    /// Runs that were ordered and have not begun.
    announced: HashMap<RunId, mpsc::UnboundedSender<RunEvent>>,
    /// The targets of restores.
    reserved: HashMap<RunId, Vec<Place>>,
    feeds: VecDeque<Feed>,
}

impl Table {
    fn show(&mut self, feed: Feed) {
        self.feeds.push_back(feed);
        while self.feeds.len() > KEPT {
            let ended = self.feeds.iter().position(|f| f.now().outcome.is_some());
            // More runs than that are under way at once: all of them are shown.
            let Some(at) = ended else { break };
            self.feeds.remove(at);
        }
    }
}

/// A target: node (`None`: any agent that is connected) and path.
type Place = (Option<String>, String);

impl Runs {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a run from now on.
    pub fn show(&self, feed: Feed) {
        let mut table = self.table();
        table.show(feed);
    }

    /// As [`Self::show`], unless a run of this id is shown already: then that one is returned.
    pub fn show_once(&self, feed: Feed) -> Result<(), Feed> {
        // Checked and shown under one lock: of two calls at once, the second gets the feed of the first.
        let known = {
            let mut table = self.table();
            let id = feed.now().run;
            let known = table.feeds.iter().find(|f| f.now().run == id).cloned();
            if known.is_none() {
                table.show(feed);
            }
            known
        };
        known.map_or(Ok(()), Err)
    }

    /// All runs that can be seen, oldest first.
    pub fn feeds(&self) -> Vec<Feed> {
        self.table().feeds.iter().cloned().collect()
    }

    /// One run, if it can be seen.
    pub fn feed(&self, id: &RunId) -> Option<Feed> {
        self.table().feeds.iter().find(|f| f.now().run == *id).cloned()
    }

    /// A run begins. Its events come out of the receiver.
    pub(crate) fn begin(&self, id: RunId, inbox: Inbox) -> mpsc::UnboundedReceiver<RunEvent> {
        let mut table = self.table();
        table.announced.remove(&id);
        table.running.insert(id, inbox.sender);
        inbox.receiver
    }

    /// Reserves these targets for this restore until it ends. If another restore has one of them, returns that path and that
    /// restore.
    ///
    /// # Errors
    /// The path and the other restore.
    pub(crate) fn reserve(&self, id: RunId, targets: Vec<Place>) -> Result<(), (String, RunId)> {
        let mut table = self.table();
        for (other, theirs) in &table.reserved {
            if let Some((_, path)) = targets.iter().find(|t| theirs.contains(t)) {
                return Err((path.clone(), *other));
            }
        }
        table.reserved.insert(id, targets);
        Ok(())
    }

    /// A run ended.
    pub fn end(&self, id: &RunId) {
        let mut table = self.table();
        table.running.remove(id);
        table.reserved.remove(id);
    }

    /// Whether a run is under way, or about to be.
    pub(crate) fn is_under_way(&self, id: &RunId) -> bool {
        let table = self.table();
        table.running.contains_key(id) || table.announced.contains_key(id)
    }

    /// Sends an event to a run. Returns whether the run is under way, or about to be.
    pub fn tell(&self, id: &RunId, event: RunEvent) -> bool {
        let table = self.table();
        let inbox = table.running.get(id).or_else(|| table.announced.get(id));
        inbox.is_some_and(|inbox| inbox.send(event).is_ok())
    }

    /// Sends an event about a node to all runs.
    pub fn tell_all(&self, event: impl Fn() -> RunEvent) {
        for inbox in self.table().running.values() {
            // A run that ended just now does not need it.
            let _ = inbox.send(event());
        }
    }
}

/// How long a stopped agent may take to let go of its devices and files.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Waits until the agents, which were told to stop, have let go of these volumes (each with its node).
pub(crate) async fn await_stopped(inbox: &mut mpsc::UnboundedReceiver<RunEvent>, mut volumes: HashMap<String, String>) {
    use wire::from_agent::Message as M;
    let stopped = async {
        while !volumes.is_empty() {
            match inbox.recv().await {
                Some(RunEvent::Agent(_, M::Failed(f), _)) => {
                    volumes.remove(&f.assignment.unwrap_or_default().volume);
                }
                Some(RunEvent::Agent(_, M::Restored(r), _)) => {
                    volumes.remove(&r.assignment.unwrap_or_default().volume);
                }
                Some(RunEvent::Finished(volume)) => {
                    volumes.remove(&volume);
                }
                Some(RunEvent::AgentGone(node)) => volumes.retain(|_, at| *at != node),
                None => return,
                Some(_) => {}
            }
        }
    };
    // An agent that does not answer holds nothing that is needed: its assignment is over either way.
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
        M::Reached(r) => &r.assignment,
        M::Register(_) | M::Heartbeat(_) | M::Draining(_) | M::Freeze(_) => return None,
    };
    RunId::try_from(&a.as_ref()?.run[..]).ok()
}
