//! The targets of one restore. Each is opened and checked by its node's agent. Once all are ready, and not before, they are
//! written, as many at once as the nodes take. A target whose agent is gone is prepared again when an agent is connected again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::id::RunId;
use milkrun_repository::point::journal::Record;
use milkrun_repository::point::journal::restore::Work;
use milkrun_repository::point::root::VolumeKind;
use tokio::time::Instant;
use wire::from_agent::Message as FromAgent;
use wire::to_agent::Message as ToAgent;

use super::order::{Order, TargetSpec};
use super::progress::{Progress, Reached};
use super::{RestoreError, Run};
use crate::Coordinator;
use crate::assignment::Assigned;
use crate::dispatch::Waiter;
use crate::runs::RunEvent;
use crate::runs::view::Feed;

/// How long a target waits for its node's agent.
const WAIT_MAX: Duration = Duration::from_secs(15 * 60);

/// The most bytes of a tag that is kept.
const TAG_MAX: usize = 512;

/// All targets of a restore.
pub(super) struct Targets<'a> {
    coordinator: &'a Coordinator,
    order: &'a Order,
    run: &'a Arc<Run>,
    id: RunId,
    application: String,
    feed: &'a Feed,
    targets: BTreeMap<String, Target<'a>>,
    /// Every target was ready once: from then on targets are written.
    writing: bool,
    progress: &'a Progress,
}

struct Target<'a> {
    spec: &'a TargetSpec,
    state: State,
    attempt: u32,
    /// Its progress.
    reached: Reached,
    /// The work of earlier attempts, which counts if this attempt goes on from there.
    before: Work,
}

#[derive(Debug)]
enum State {
    /// No agent is connected on its node.
    Absent(Instant),
    /// The agent of this node opens and checks it.
    Preparing(String),
    /// It waits for the others, or for its turn on this node.
    Ready(String),
    /// The agent of this node writes it.
    Writing(String),
    /// It is done.
    Done(Work),
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
        progress: &'a Progress,
    ) -> Self {
        let fresh = |spec: &'a TargetSpec| {
            let left = progress.left(spec.name.as_str());
            let state = if left.whole { State::Done(left.work) } else { State::Absent(Instant::now()) };
            Target { spec, state, attempt: 0, before: Work::default(), reached: left }
        };
        let targets: BTreeMap<String, Target<'a>> =
            order.targets.iter().map(|spec| (spec.name.to_string(), fresh(spec))).collect();
        for (name, _) in targets.iter().filter(|(_, t)| matches!(t.state, State::Done(_))) {
            feed.whole(name, run.len_of(name));
        }
        Self { coordinator, order, run, id, application, feed, targets, writing: false, progress }
    }

    pub(super) fn all_done(&self) -> bool {
        self.targets.values().all(|t| matches!(t.state, State::Done(_)))
    }

    /// Prepares the targets whose agents are connected now.
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
            // Data that an earlier attempt wrote is no obstacle: the agent recognizes it by the tag.
            let Reached { offset: resume_at, tag: resume_tag, work, .. } = target.reached.clone();
            target.before = work;
            if resume_at > 0 {
                tracing::warn!(run = %self.id, volume = name, node, attempt, resume_at, "a target goes on");
            }
            let message = wire::RestoreVolume {
                resume_at,
                resume_tag,
                resumable: self.progress.is_kept(),
                ..restore_volume(
                    self.order,
                    self.run,
                    target.spec,
                    assignment(self.coordinator, self.id, name, attempt),
                )
            };
            if link.send(ToAgent::Restore(message)).await {
                target.state = State::Preparing(node);
            }
        }
        Ok(())
    }

    /// The targets under way: name, attempt, node.
    pub(super) fn under_way(&self) -> Vec<(String, u32, String)> {
        let all = self.targets.iter();
        all.filter_map(|(name, t)| Some((name.clone(), t.attempt, t.state.node()?.to_owned()))).collect()
    }

    /// Applies one event.
    pub(super) async fn apply(&mut self, event: RunEvent) -> Result<(), RestoreError> {
        match event {
            RunEvent::Agent(node, message, _room) => self.said(&node, message).await,
            RunEvent::Placed { volume, node } => {
                let Some(target) = self.targets.get_mut(&volume) else { return Ok(()) };
                match (&target.state, self.coordinator.agents.link(&node)) {
                    (State::Ready(at), Some(link)) if *at == node => {
                        // Recorded before a byte is written: from now on, data on the target may be this restore's.
                        self.progress.reached(&target.spec.name, &target.reached).await?;
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
            RunEvent::AddSource(_, reply) => {
                drop(reply.send(Err("the run is a restore: it has no sources".into())));
                Ok(())
            }
            RunEvent::AddTarget(target, reply) => {
                // If it is the same target again, the client did not get the answer before.
                let known = self.targets.get(target.name.as_str()).is_some_and(|t| *t.spec == *target);
                drop(reply.send(if known { Ok(()) } else { Err("the restore has begun to write".into()) }));
                Ok(())
            }
            RunEvent::Complete(_, reply) => {
                drop(reply.send(Ok(())));
                Ok(())
            }
            // A target can't go to another node: its agent is left to finish it.
            RunEvent::Drained(_) | RunEvent::Finished(_) => Ok(()),
            RunEvent::Cancel => Err(RestoreError::Cancelled),
        }
    }

    async fn said(&mut self, node: &str, message: FromAgent) -> Result<(), RestoreError> {
        let a = match &message {
            FromAgent::Ready(r) => r.assignment.clone(),
            FromAgent::Restored(r) => r.assignment.clone(),
            FromAgent::Reached(r) => r.assignment.clone(),
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
            FromAgent::Ready(r) => {
                // An agent that can't go on from there begins anew, with another tag.
                if (r.tag != target.reached.tag || r.from < target.reached.offset) && r.tag.len() <= TAG_MAX {
                    target.reached = Reached { tag: r.tag, ..Reached::default() };
                    target.before = Work::default();
                }
                target.state = State::Ready(node.to_owned());
                self.write_when_ready();
                Ok(())
            }
            FromAgent::Reached(r) => {
                let so_far = Work {
                    written_bytes: r.written_bytes,
                    hole_bytes: r.hole_bytes,
                    fetched_bytes: r.fetched_bytes,
                    requests: r.requests,
                };
                // A report counts only if it has the present tag, goes further, and stays within the volume.
                let len = self.run.len_of(&a.volume);
                if r.tag != target.reached.tag || r.offset <= target.reached.offset || r.offset > len {
                    return Ok(());
                }
                target.reached = Reached { offset: r.offset, work: target.before + so_far, ..target.reached.clone() };
                self.progress.reached(&target.spec.name, &target.reached).await
            }
            FromAgent::Restored(r) => {
                let so_far = Work {
                    written_bytes: r.written_bytes,
                    hole_bytes: r.hole_bytes,
                    fetched_bytes: r.fetched_bytes,
                    requests: r.requests,
                };
                let work = target.before + so_far;
                target.state = State::Done(work);
                self.progress.note(Record::Restored { volume: target.spec.name.clone(), work }).await?;
                self.run.assign(&a.volume, None);
                self.feed.whole(&a.volume, self.run.len_of(&a.volume));
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

    /// Begins to write once every target was checked and is open, and not before.
    fn write_when_ready(&mut self) {
        let ready = |t: &Target<'_>| matches!(t.state, State::Ready(_) | State::Writing(_) | State::Done(_));
        self.writing |= self.targets.values().all(ready);
        if !self.writing {
            return;
        }
        for (name, target) in &self.targets {
            let State::Ready(node) = &target.state else { continue };
            let (run, volume, application) = (self.id, name.clone(), self.application.clone());
            // Somebody waits for a restore, so it goes before all backups.
            let due = Some(milkrun_repository::clock::Moment::from_millis(0));
            self.coordinator.dispatcher.enqueue_once(Waiter {
                run,
                volume,
                application,
                nodes: Some(vec![node.clone()]),
                due,
            });
        }
    }

    /// The work done for each volume.
    pub(super) fn restored(&self) -> BTreeMap<String, Work> {
        let done = self.targets.iter().filter_map(|(name, t)| match &t.state {
            State::Done(work) => Some((name.clone(), *work)),
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

fn restore_volume(order: &Order, run: &Run, target: &TargetSpec, assignment: wire::Assignment) -> wire::RestoreVolume {
    let entry = &run.point.body.volumes[run.volumes[target.name.as_str()]];
    let stream = target.stream || entry.kind == VolumeKind::Stream;
    let kind = if stream { wire::VolumeKind::Stream } else { wire::VolumeKind::Image };
    let repository = &run.repository;
    wire::RestoreVolume {
        assignment: Some(assignment),
        kind: kind.into(),
        path: target.path.clone(),
        repository: repository.config.id.as_bytes().to_vec().into(),
        domain_key: run.point.domain.chunks().as_bytes().to_vec().into(),
        length: entry.map.len,
        force: order.force,
        discard_rest: order.discard_rest,
        ..Default::default()
    }
}
