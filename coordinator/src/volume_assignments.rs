//! The volumes of one run: waiting for a node, assigned under an attempt, or done. An agent loses its volumes when it is gone (its
//! stream closed, or it was silent for 20 seconds), when its node is drained, or when it can't reach the store. The volumes wait
//! again, and go on under a higher attempt, from the last region that was checkpointed. Calls of an older attempt are refused, also
//! those that were waiting for the volume's lock when it was assigned again.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::clock::Moment;
use milkrun_repository::id::RunId;
use tokio::time::Instant;
use wire::failed::Kind as FailureKind;

use crate::Coordinator;
use crate::agents::Link;
use crate::dispatch::Waiter;
use crate::inventory::Reach;
use crate::runs::view::Feed;

/// How long a volume waits for a node that reaches it. The time in a queue does not count; a node that never connects does.
const WAIT_MAX: Duration = Duration::from_secs(15 * 60);
/// How many attempts of a volume may fail because its node can't reach the store. Other nodes may reach it, or it may come back.
const FAILURES_MAX: u32 = 5;

/// The volumes of one run.
pub(crate) struct VolumeAssignments<'a> {
    coordinator: &'a Coordinator,
    run: RunId,
    application: String,
    due: Option<Moment>,
    feed: &'a Feed,
    volumes: BTreeMap<String, VolumeState>,
}

struct VolumeState {
    reach: Vec<Reach>,
    state: State,
    attempt: u32,
    failures: u32,
    /// The node where it failed last: other nodes are tried first.
    failed_at: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Waiting(Instant),
    At(String),
    Done,
}

/// A volume that has just got a node.
pub(crate) struct Assignment {
    /// The device, file or pipe on the node.
    pub(crate) path: String,
    /// The number of the attempt.
    pub(crate) attempt: u32,
    /// The channel to the node's agent.
    pub(crate) link: Link,
}

/// What a reported failure means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is about an attempt that is over: it is ignored.
    Stale,
    /// The volume waits again.
    Again,
    /// The run fails.
    Final,
}

impl<'a> VolumeAssignments<'a> {
    /// All of these wait from now on.
    pub(crate) fn begin(
        coordinator: &'a Coordinator,
        run: RunId,
        application: String,
        due: Option<Moment>,
        feed: &'a Feed,
        volumes: impl IntoIterator<Item = (String, Vec<Reach>)>,
    ) -> Self {
        let fresh = |reach| VolumeState { reach, state: State::Done, attempt: 0, failures: 0, failed_at: None };
        let volumes: BTreeMap<String, VolumeState> =
            volumes.into_iter().map(|(name, reach)| (name, fresh(reach))).collect();
        let names: Vec<String> = volumes.keys().cloned().collect();
        let mut moves = Self { coordinator, run, application, due, feed, volumes };
        for name in names {
            moves.wait(&name);
        }
        moves
    }

    /// Adds a volume, which waits from now on.
    pub(crate) fn add(&mut self, name: &str, reach: Vec<Reach>) {
        let fresh = VolumeState { reach, state: State::Done, attempt: 0, failures: 0, failed_at: None };
        self.volumes.insert(name.to_owned(), fresh);
        self.wait(name);
    }

    fn wait(&mut self, name: &str) {
        self.coordinator.admission.over(&self.run, name);
        let Some(m) = self.volumes.get_mut(name) else { return };
        m.state = State::Waiting(Instant::now());
        let nodes = nodes_for(self.coordinator, m);
        self.feed.volume(name, |v| v.node.clear());
        let (run, volume, application) = (self.run, name.to_owned(), self.application.clone());
        self.coordinator.dispatcher.enqueue(Waiter { run, volume, application, nodes, due: self.due });
    }

    /// Looks again which nodes the waiting volumes could go to.
    pub(crate) fn renew(&self) {
        let waiting = self.volumes.iter().filter(|(_, m)| matches!(m.state, State::Waiting(_)));
        for (name, m) in waiting {
            self.coordinator.dispatcher.renew(&self.run, name, nodes_for(self.coordinator, m));
        }
        self.coordinator.dispatcher.replan();
    }

    /// A volume gets its turn on a node. `None` if it no longer waits, or if the node's agent has just gone.
    pub(crate) fn placed(&mut self, volume: &str, node: &str) -> Option<Assignment> {
        let m = self.volumes.get_mut(volume).filter(|m| matches!(m.state, State::Waiting(_)))?;
        let reach = m.reach.iter().find(|r| r.node.as_deref().is_none_or(|n| n == node));
        let (Some(reach), Some(link)) = (reach, self.coordinator.agents.link(node)) else {
            self.coordinator.dispatcher.done(&self.run, volume);
            self.wait(volume);
            return None;
        };
        m.attempt += 1;
        m.state = State::At(node.to_owned());
        let (path, attempt) = (reach.path.clone(), m.attempt);
        self.feed.volume(volume, |v| {
            node.clone_into(&mut v.node);
            v.attempt = attempt;
        });
        Some(Assignment { path, attempt, link })
    }

    /// Volumes that are assigned to a node, with their attempts.
    pub(crate) fn at(&self, node: &str) -> Vec<(String, u32)> {
        let at = self.volumes.iter().filter(|(_, m)| matches!(&m.state, State::At(n) if n == node));
        at.map(|(name, m)| (name.clone(), m.attempt)).collect()
    }

    /// Volumes under way, with their attempts and nodes.
    pub(crate) fn under_way(&self) -> Vec<(String, u32, String)> {
        let at = self.volumes.iter().filter_map(|(name, m)| match &m.state {
            State::At(node) => Some((name.clone(), m.attempt, node.clone())),
            _ => None,
        });
        at.collect()
    }

    /// A volume's attempt is over; the volume waits for another attempt.
    pub(crate) fn again(&mut self, volume: &str) {
        self.coordinator.dispatcher.done(&self.run, volume);
        self.wait(volume);
    }

    /// A node reports that a volume's attempt failed.
    pub(crate) fn failed(&mut self, node: &str, attempt: u32, volume: &str, kind: FailureKind) -> Verdict {
        let Some(m) = self.volumes.get_mut(volume) else { return Verdict::Stale };
        if m.attempt != attempt || !matches!(&m.state, State::At(n) if n == node) {
            return Verdict::Stale;
        }
        m.failures += 1;
        m.failed_at = Some(node.to_owned());
        // In the embedded mode no node is named. That agent is this process, which has already tried for as long as it makes sense.
        let named = m.reach.iter().all(|r| r.node.is_some());
        if kind == FailureKind::Unreachable && named && m.failures < FAILURES_MAX {
            Verdict::Again
        } else {
            Verdict::Final
        }
    }

    /// Whether a message about a volume belongs to its present attempt.
    pub(crate) fn is_present(&self, node: &str, a: Option<&wire::Assignment>) -> bool {
        let Some(a) = a else { return false };
        let m = self.volumes.get(&a.volume);
        m.is_some_and(|m| m.attempt == a.attempt && matches!(&m.state, State::At(n) if n == node))
    }

    /// A volume is done.
    pub(crate) fn done(&mut self, volume: &str) {
        if let Some(m) = self.volumes.get_mut(volume) {
            m.state = State::Done;
        }
        self.feed.volume(volume, |v| v.done = true);
        self.coordinator.dispatcher.done(&self.run, volume);
    }

    /// Whether all volumes are done.
    pub(crate) fn all_done(&self) -> bool {
        self.volumes.values().all(|m| m.state == State::Done)
    }

    /// A volume that has waited too long although no queue holds it up, with the nodes that reach it.
    pub(crate) fn forsaken(&mut self) -> Option<(String, String)> {
        let ready = self.coordinator.agents.ready();
        for (name, m) in &mut self.volumes {
            let State::Waiting(since) = &mut m.state else { continue };
            let nodes: Option<Vec<&str>> = m.reach.iter().map(|r| r.node.as_deref()).collect();
            let there = nodes.as_ref().is_none_or(|nodes| ready.iter().any(|(node, _)| nodes.contains(&node.as_str())));
            if there {
                *since = Instant::now();
            } else if since.elapsed() >= WAIT_MAX {
                return Some((name.clone(), nodes.unwrap_or_default().join(", ")));
            }
        }
        None
    }
}

/// The nodes that reach a volume, without the one where it failed last if there is any other.
fn nodes_for(coordinator: &Coordinator, m: &VolumeState) -> Option<Vec<String>> {
    let nodes: Vec<String> = m.reach.iter().map(|r| r.node.clone()).collect::<Option<_>>()?;
    let others: Vec<String> = nodes.iter().filter(|n| Some(*n) != m.failed_at.as_ref()).cloned().collect();
    let ready = coordinator.agents.ready();
    let elsewhere = others.iter().any(|o| ready.iter().any(|(node, _)| node == o));
    Some(if elsewhere { others } else { nodes })
}

impl Drop for VolumeAssignments<'_> {
    fn drop(&mut self) {
        self.coordinator.dispatcher.forget(&self.run);
        self.coordinator.admission.ended(&self.run);
    }
}

/// Volumes and their nodes, as [`crate::runs::await_stopped`] takes them.
pub(crate) fn by_node(under_way: &[(String, u32, String)]) -> HashMap<String, String> {
    under_way.iter().map(|(volume, _, node)| (volume.clone(), node.clone())).collect()
}
