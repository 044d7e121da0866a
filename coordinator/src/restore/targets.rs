//! The targets of one restore: each is opened and checked by its node's agent; once all are ready, and not before, they are
//! written, as many at once as the nodes take. A target whose agent is gone is prepared again when an agent is there again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::id::RunId;
use tokio::time::Instant;
use wire::from_agent::Message as FromAgent;
use wire::to_agent::Message as ToAgent;

use super::execute::{Order, TargetSpec, restore_volume};
use super::{RestoreError, Run};
use crate::Coordinator;
use crate::dispatch::Want;
use crate::runs::view::Feed;
use crate::runs::{Assigned, RunEvent};

/// How long a target waits for its node's agent.
const WAIT_MAX: Duration = Duration::from_secs(15 * 60);

/// All of them.
pub(super) struct Targets<'a> {
    coordinator: &'a Coordinator,
    order: &'a Order,
    run: &'a Arc<Run>,
    id: RunId,
    application: String,
    feed: &'a Feed,
    targets: BTreeMap<String, Target<'a>>,
    /// Every target was ready once: from then on they are written.
    writing: bool,
}

struct Target<'a> {
    spec: &'a TargetSpec,
    state: State,
    attempt: u32,
    /// It was told to write: what lies there is ours.
    begun: bool,
}

#[derive(Debug)]
enum State {
    /// There is no agent at its node.
    Absent(Instant),
    /// Its agent opens and checks it.
    Preparing(String),
    /// It waits for the others, or for its turn.
    Ready(String),
    /// It is written.
    Writing(String),
    /// It is done.
    Done(wire::Restored),
}

impl State {
    fn node(&self) -> Option<&str> {
        match self {
            Self::Preparing(node) | Self::Ready(node) | Self::Writing(node) => Some(node),
            Self::Absent(_) | Self::Done(_) => None,
        }
    }
}

impl<'a> Targets<'a> {
    pub(super) fn new(
        coordinator: &'a Coordinator,
        order: &'a Order,
        run: &'a Arc<Run>,
        id: RunId,
        application: String,
        feed: &'a Feed,
    ) -> Self {
        let fresh = |spec| Target { spec, state: State::Absent(Instant::now()), attempt: 0, begun: false };
        let targets = order.targets.iter().map(|spec| (spec.name.to_string(), fresh(spec))).collect();
        Self { coordinator, order, run, id, application, feed, targets, writing: false }
    }

    pub(super) fn all_done(&self) -> bool {
        self.targets.values().all(|t| matches!(t.state, State::Done(_)))
    }

    /// Prepares what has an agent now.
    pub(super) async fn prepare(&mut self) -> Result<(), RestoreError> {
        for (name, target) in &mut self.targets {
            let State::Absent(since) = target.state else { continue };
            let agents = &self.coordinator.agents;
            let node = match &target.spec.node {
                Some(node) => Some(node.clone()),
                None => agents.ready().into_iter().next().map(|(node, _)| node),
            };
            let Some((node, link)) = node.and_then(|node| agents.link(&node).map(|link| (node, link))) else {
                if since.elapsed() >= WAIT_MAX {
                    let node = target.spec.node.clone().unwrap_or_default();
                    return Err(RestoreError::NoNode { volume: name.clone(), node });
                }
                continue;
            };
            target.attempt += 1;
            let attempt = target.attempt;
            self.run.assign(name, Some(Assigned { attempt, node: node.clone() }));
            self.feed.volume(name, |v| {
                node.clone_into(&mut v.node);
                v.attempt = attempt;
            });
            // What an earlier attempt wrote is in nobody's way.
            let force = self.order.force || target.begun;
            let message = restore_volume(
                self.order,
                self.run,
                target.spec,
                assignment(self.coordinator, self.id, name, attempt),
                force,
            );
            if link.send(ToAgent::Restore(message)).await {
                target.state = State::Preparing(node);
            }
        }
        Ok(())
    }

    /// Those under way: name, attempt, node.
    pub(super) fn under_way(&self) -> Vec<(String, u32, String)> {
        let all = self.targets.iter();
        all.filter_map(|(name, t)| Some((name.clone(), t.attempt, t.state.node()?.to_owned()))).collect()
    }

    /// Applies one event.
    pub(super) async fn apply(&mut self, event: RunEvent) -> Result<(), RestoreError> {
        match event {
            RunEvent::Agent(node, message) => self.said(&node, message).await,
            RunEvent::Placed { volume, node } => {
                let Some(target) = self.targets.get_mut(&volume) else { return Ok(()) };
                match (&target.state, self.coordinator.agents.link(&node)) {
                    (State::Ready(at), Some(link)) if *at == node => {
                        target.begun = true;
                        link.send(ToAgent::Go(assignment(self.coordinator, self.id, &volume, target.attempt))).await;
                        target.state = State::Writing(node);
                    }
                    _ => self.coordinator.dispatcher.done(&self.id, &volume),
                }
                Ok(())
            }
            RunEvent::AgentGone(_) if self.coordinator.inventory.trusts_orders() => Err(RestoreError::AgentGone),
            RunEvent::AgentGone(node) => {
                for (name, target) in &mut self.targets {
                    if target.state.node() == Some(node.as_str()) {
                        tracing::warn!(run = %self.id, volume = name, node, "a target lost its agent");
                        target.state = State::Absent(Instant::now());
                        self.run.assign(name, None);
                        self.feed.volume(name, |v| v.node.clear());
                        self.coordinator.dispatcher.done(&self.id, name);
                    }
                }
                self.prepare().await
            }
            // A target is where it is: what is being written there ends first.
            RunEvent::Drained(_) | RunEvent::Finished(_) => Ok(()),
            RunEvent::Cancel => Err(RestoreError::Cancelled),
        }
    }

    async fn said(&mut self, node: &str, message: FromAgent) -> Result<(), RestoreError> {
        let a = match &message {
            FromAgent::Ready(r) => r.assignment.clone(),
            FromAgent::Restored(r) => r.assignment.clone(),
            FromAgent::Progress(p) => p.assignment.clone(),
            FromAgent::Failed(f) => f.assignment.clone(),
            _ => None,
        };
        let a = a.unwrap_or_default();
        let Some(target) = self.targets.get_mut(&a.volume) else { return Ok(()) };
        if target.attempt != a.attempt || target.state.node() != Some(node) {
            return Ok(());
        }
        match message {
            FromAgent::Ready(_) => {
                target.state = State::Ready(node.to_owned());
                self.write_when_ready();
                Ok(())
            }
            FromAgent::Restored(r) => {
                target.state = State::Done(r);
                self.run.assign(&a.volume, None);
                self.feed.volume(&a.volume, |v| v.done = true);
                self.coordinator.dispatcher.done(&self.id, &a.volume);
                Ok(())
            }
            FromAgent::Progress(p) => {
                self.feed.volume(&a.volume, |v| v.progress = p);
                Ok(())
            }
            FromAgent::Failed(f) => {
                target.state = State::Absent(Instant::now());
                self.run.assign(&a.volume, None);
                let kind = f.kind();
                Err(RestoreError::Volume { volume: a.volume, reason: f.reason, kind })
            }
            _ => Ok(()),
        }
    }

    /// Once every target was checked and is open: now, and not before, may anything be written.
    fn write_when_ready(&mut self) {
        let ready = |t: &Target<'_>| matches!(t.state, State::Ready(_) | State::Writing(_) | State::Done(_));
        self.writing |= self.targets.values().all(ready);
        if !self.writing {
            return;
        }
        for (name, target) in &self.targets {
            let State::Ready(node) = &target.state else { continue };
            let (run, volume, application) = (self.id, name.clone(), self.application.clone());
            // Somebody waits for a restore: it goes before all backups.
            let due = Some(milkrun_repository::clock::Moment::from_millis(0));
            self.coordinator.dispatcher.want_once(Want {
                run,
                volume,
                application,
                nodes: Some(vec![node.clone()]),
                due,
            });
        }
    }

    /// What was restored, by volume.
    pub(super) fn restored(&self) -> HashMap<String, wire::Restored> {
        let done = self.targets.iter().filter_map(|(name, t)| match &t.state {
            State::Done(r) => Some((name.clone(), r.clone())),
            _ => None,
        });
        done.collect()
    }
}

impl Drop for Targets<'_> {
    fn drop(&mut self) {
        self.coordinator.dispatcher.forget(&self.id);
    }
}

pub(super) fn assignment(coordinator: &Coordinator, run: RunId, volume: &str, attempt: u32) -> wire::Assignment {
    let epoch = coordinator.epoch;
    wire::Assignment { run: run.as_bytes().to_vec().into(), volume: volume.to_owned(), attempt, epoch }
}
