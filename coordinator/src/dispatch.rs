//! The queue of volumes of all runs. Whenever something changes, [`scheduler`](crate::scheduler) plans, and each run is told where
//! its volumes go.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use milkrun_repository::clock::Moment;
use milkrun_repository::id::RunId;

use crate::agents::Agents;
use crate::inventory::Inventory;
use crate::runs::{RunEvent, Runs};
use crate::scheduler::{Node, Running, Situation, Waiting, plan};

/// The queue.
#[derive(Clone)]
pub struct Dispatcher {
    state: Arc<Mutex<State>>,
    agents: Agents,
    runs: Runs,
    inventory: Arc<dyn Inventory>,
}

#[derive(Default)]
struct State {
    waiting: Vec<Waiting>,
    running: Vec<(RunId, String, Running)>,
    turn: u64,
}

/// A volume that wants a node.
#[derive(Clone, Debug)]
pub struct Waiter {
    /// Its run.
    pub run: RunId,
    /// Its name.
    pub volume: String,
    /// Its application.
    pub application: String,
    /// The nodes that reach it; `None`: any.
    pub nodes: Option<Vec<String>>,
    /// When its application's promise breaks.
    pub due: Option<Moment>,
}

impl Dispatcher {
    /// An empty queue for the volumes of these runs, over these agents.
    pub fn new(agents: Agents, runs: Runs, inventory: Arc<dyn Inventory>) -> Self {
        Self { state: Arc::default(), agents, runs, inventory }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A volume waits from now on. Its run gets [`RunEvent::Placed`] when it has a node.
    pub fn enqueue(&self, waiter: Waiter) {
        {
            let mut state = self.state();
            state.turn += 1;
            let Waiter { run, volume, application, nodes, due } = waiter;
            let turn = state.turn;
            state.waiting.push(Waiting { run, volume, application, nodes, due, turn });
        }
        self.replan();
    }

    /// As [`Self::enqueue`], unless the volume waits or runs already.
    pub fn enqueue_once(&self, waiter: Waiter) {
        let queued = {
            let state = self.state();
            let waits = state.waiting.iter().any(|w| w.run == waiter.run && w.volume == waiter.volume);
            waits || state.running.iter().any(|(run, volume, _)| *run == waiter.run && *volume == waiter.volume)
        };
        if !queued {
            self.enqueue(waiter);
        }
    }

    /// The nodes that reach a waiting volume have changed. It keeps its place in the queue.
    pub fn renew(&self, run: &RunId, volume: &str, nodes: Option<Vec<String>>) {
        if let Some(waiting) = self.state().waiting.iter_mut().find(|w| w.run == *run && w.volume == volume) {
            waiting.nodes = nodes;
        }
    }

    /// A volume no longer runs or waits: it is done, or its node is gone.
    pub fn done(&self, run: &RunId, volume: &str) {
        {
            let mut state = self.state();
            state.running.retain(|(r, v, _)| (r, v.as_str()) != (run, volume));
            state.waiting.retain(|w| (&w.run, w.volume.as_str()) != (run, volume));
        }
        self.replan();
    }

    /// A run ended: none of its volumes waits or runs any more.
    pub fn forget(&self, run: &RunId) {
        {
            let mut state = self.state();
            state.running.retain(|(r, ..)| r != run);
            state.waiting.retain(|w| &w.run != run);
        }
        self.replan();
    }

    /// Volumes under way on a node.
    pub fn load(&self, node: &str) -> usize {
        self.state().running.iter().filter(|(.., r)| r.node == node).count()
    }

    /// Plans anew: an agent came or went, or something changed here.
    pub fn replan(&self) {
        // Outside of the lock: the inventory may read a file or ask a cluster.
        let loads = match self.inventory.loads() {
            Ok(loads) => loads,
            Err(e) => {
                tracing::error!(error = %e, "nothing is placed");
                return;
            }
        };
        let mut state = self.state();
        #[expect(clippy::cast_precision_loss, reason = "numbers of volumes and agents")]
        let show = |state: &State| {
            metrics::gauge!("milkrun_volumes", "state" => "waiting").set(state.waiting.len() as f64);
            metrics::gauge!("milkrun_volumes", "state" => "running").set(state.running.len() as f64);
            metrics::gauge!("milkrun_agents").set(self.agents.list().len() as f64);
        };
        show(&state);
        if state.waiting.is_empty() {
            return;
        }
        let limits = |name: &str| match &loads.nodes {
            Some(nodes) => nodes.get(name).map(|l| l.volumes),
            None => Some(usize::MAX),
        };
        let nodes = self.agents.ready().into_iter().filter_map(|(name, own)| {
            // The inventory and the agent both limit it.
            let volumes_max = limits(&name)?.min(own.unwrap_or(usize::MAX));
            Some(Node { name, volumes_max })
        });
        let situation = Situation {
            nodes: nodes.collect(),
            waiting: state.waiting.clone(),
            running: state.running.iter().map(|(.., r)| r.clone()).collect(),
            volumes_max: loads.store.volumes,
        };
        for placed in plan(&situation, Moment::now()) {
            let at = state.waiting.iter().position(|w| w.run == placed.run && w.volume == placed.volume);
            let Some(waiting) = at.map(|at| state.waiting.remove(at)) else { continue };
            tracing::debug!(%placed, "placed");
            let running = Running { application: waiting.application, node: placed.node.clone() };
            state.running.push((placed.run, placed.volume.clone(), running));
            self.runs.tell(&placed.run, RunEvent::Placed { volume: placed.volume, node: placed.node });
        }
        show(&state);
    }
}
