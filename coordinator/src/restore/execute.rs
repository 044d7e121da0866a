//! A restore run: the point is found and opened, every target checked, and only then the first byte written.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use milkrun_proto::agent::v1 as wire;
use milkrun_proto::control::v1 as control;
use milkrun_repository::id::{RunId, VolumeName};
use milkrun_repository::point::Selector;
use milkrun_repository::point::catalog::FindError;
use milkrun_repository::point::root::VolumeKind;
use milkrun_repository::repository::PointError;
use tokio::sync::mpsc;
use wire::from_agent::Message as FromAgent;
use wire::to_agent::Message as ToAgent;

use super::{RestoreError, Run};
use crate::agents::Link;
use crate::runs::{self, RunEvent};
use crate::{Coordinator, EPOCH};

/// Bytes of manifests in one message.
const MANIFEST_PIECE: usize = 1 << 20;

/// What to restore.
#[derive(Clone, Debug)]
pub struct Order {
    /// Which point.
    pub selector: Selector,
    /// As it was written.
    pub selector_text: String,
    /// Where to.
    pub targets: Vec<TargetSpec>,
    /// Whether the manifests are wanted.
    pub manifests: bool,
    /// Over what is there.
    pub force: bool,
    /// Zero what a larger target has beyond the volume.
    pub discard_rest: bool,
}

/// A volume and where it goes.
#[derive(Clone, Debug)]
pub struct TargetSpec {
    /// The volume's name in the point.
    pub name: VolumeName,
    /// Where to.
    pub path: String,
    /// As a stream, in order.
    pub stream: bool,
}

/// The way to who ordered.
pub(crate) type Events = mpsc::Sender<Result<control::RestoreEvent, tonic::Status>>;

/// Runs a restore to its end.
///
/// # Errors
/// [`RestoreError`].
pub(crate) async fn execute(
    coordinator: &Coordinator,
    order: Order,
    events: &Events,
) -> Result<control::RestoreDone, RestoreError> {
    let began = tokio::time::Instant::now();
    let repository = &coordinator.repository;
    let found = repository.catalog().select(&order.selector, &repository.ring).await.map_err(|e| match e {
        FindError::Store(f) => RestoreError::Store(f),
        source => RestoreError::Find { selector: order.selector_text.clone(), source },
    })?;
    let point = repository.open_point(found).await.map_err(|e| match e {
        PointError::Placement(milkrun_repository::point::catalog::PlaceError::Store(f)) => RestoreError::Store(f),
        e => RestoreError::Point(e),
    })?;
    let names: Vec<String> = point.body.volumes.iter().map(|v| v.name.to_string()).collect();
    let wanted = check_targets(&order, &names)?;
    let manifests = if order.manifests { repository.manifests(&point).await? } else { Vec::new() };
    let id = point.found.root.id();
    let run_id = RunId::random();
    let run = Arc::new(Run {
        repository: repository.clone(),
        point,
        volumes: wanted.clone(),
        keys: tokio::sync::Mutex::default(),
        attempt: 1,
    });
    let mut inbox = coordinator.runs.begin(run_id, runs::Run::Restore(run.clone()));
    let mut left_out: Vec<String> = names.into_iter().filter(|n| !wanted.contains_key(n)).collect();
    if !order.manifests && run.point.body.manifests.is_some() {
        left_out.push("manifests".into());
    }
    let started = control::RestoreStarted { run: run_id.as_bytes().to_vec().into(), point: id.to_string(), left_out };
    tell(events, control::restore_event::Event::Started(started)).await;
    let moved = move_volumes(coordinator, &order, &run, run_id, &mut inbox, events).await;
    coordinator.runs.end(&run_id);
    let volumes = moved?;
    for piece in manifests.chunks(MANIFEST_PIECE) {
        tell(events, control::restore_event::Event::Manifests(piece.to_vec().into())).await;
    }
    Ok(control::RestoreDone {
        point: id.to_string(),
        duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        volumes,
    })
}

async fn tell(events: &Events, event: control::restore_event::Event) {
    // Who ordered may have stopped listening; the run goes on.
    let _ = events.send(Ok(control::RestoreEvent { event: Some(event) })).await;
}

fn check_targets(order: &Order, names: &[String]) -> Result<HashMap<String, usize>, RestoreError> {
    let known = || if names.is_empty() { "no volumes".to_owned() } else { names.join(", ") };
    if order.targets.is_empty() && !order.manifests {
        let what = format!(
            "say where to: the point has {} (--volume NAME=PATH, --stream NAME=PATH, --manifests DIR)",
            known()
        );
        return Err(RestoreError::Order(what));
    }
    let mut wanted = HashMap::new();
    let mut paths = HashSet::new();
    for target in &order.targets {
        let at = names.iter().position(|n| n == target.name.as_str());
        let at = at.ok_or_else(|| {
            RestoreError::Order(format!("the point has no volume {}; it has {}", target.name, known()))
        })?;
        if wanted.insert(target.name.to_string(), at).is_some() {
            return Err(RestoreError::Order(format!("volume {} is named twice", target.name)));
        }
        if !paths.insert(&target.path) {
            return Err(RestoreError::Order(format!("{} is the target of two volumes", target.path)));
        }
    }
    Ok(wanted)
}

async fn move_volumes(
    coordinator: &Coordinator,
    order: &Order,
    run: &Arc<Run>,
    run_id: RunId,
    inbox: &mut mpsc::UnboundedReceiver<RunEvent>,
    events: &Events,
) -> Result<Vec<control::VolumeRestored>, RestoreError> {
    if order.targets.is_empty() {
        return Ok(Vec::new());
    }
    let assignment = |volume: &str| wire::Assignment {
        run: run_id.as_bytes().to_vec().into(),
        volume: volume.to_owned(),
        attempt: run.attempt,
        epoch: EPOCH,
    };
    let agent = coordinator.agents.any().await;
    let mut state = State::default();
    for target in &order.targets {
        state.preparing.insert(target.name.to_string());
        let message = restore_volume(order, run, target, assignment(target.name.as_str()));
        if !agent.send(ToAgent::Restore(message)).await {
            return Err(RestoreError::AgentGone);
        }
    }
    let result = loop {
        let Some(event) = inbox.recv().await else { break Err(RestoreError::AgentGone) };
        match state.apply(event, events).await {
            Ok(Next::Wait) => {}
            // Every target is checked and open: now, and not before, may anything be written.
            Ok(Next::Go) => {
                for volume in &state.ready {
                    agent.send(ToAgent::Go(assignment(volume))).await;
                }
            }
            Ok(Next::Done) => break Ok(()),
            Err(e) => break Err(e),
        }
    };
    if let Err(e) = result {
        cancel(&agent, state.open().map(|v| assignment(v))).await;
        crate::runs::await_stopped(inbox, state.open().cloned().collect()).await;
        return Err(e);
    }
    let volumes = &run.point.body.volumes;
    let sizes = |name: &str| run.volumes.get(name).map_or(0, |&i| volumes[i].map.len);
    Ok(state
        .restored
        .into_iter()
        .map(|(name, r)| control::VolumeRestored {
            size_bytes: sizes(&name),
            name,
            written_bytes: r.written_bytes,
            hole_bytes: r.hole_bytes,
            fetched_bytes: r.fetched_bytes,
            requests: r.requests,
        })
        .collect())
}

async fn cancel(agent: &Link, assignments: impl Iterator<Item = wire::Assignment>) {
    for assignment in assignments {
        agent.send(ToAgent::Cancel(assignment)).await;
    }
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
        domain_key: repository.ring.domain(run.point.found.root.app).as_bytes().to_vec().into(),
        length: entry.map.len,
        force: order.force,
        discard_rest: order.discard_rest,
    }
}

/// Where the volumes of a restore are: preparing, ready, restored.
#[derive(Default)]
struct State {
    preparing: HashSet<String>,
    ready: HashSet<String>,
    restored: std::collections::BTreeMap<String, wire::Restored>,
}

enum Next {
    Wait,
    Go,
    Done,
}

impl State {
    fn open(&self) -> impl Iterator<Item = &String> {
        self.preparing.iter().chain(&self.ready)
    }

    async fn apply(&mut self, event: RunEvent, events: &Events) -> Result<Next, RestoreError> {
        let name = |a: Option<wire::Assignment>| a.map(|a| a.volume).unwrap_or_default();
        match event {
            RunEvent::Agent(FromAgent::Ready(r)) => {
                let volume = name(r.assignment);
                if self.preparing.remove(&volume) {
                    self.ready.insert(volume);
                }
                Ok(if self.preparing.is_empty() { Next::Go } else { Next::Wait })
            }
            RunEvent::Agent(FromAgent::Restored(r)) => {
                let volume = name(r.assignment.clone());
                self.ready.remove(&volume);
                self.restored.insert(volume, r);
                Ok(if self.ready.is_empty() { Next::Done } else { Next::Wait })
            }
            RunEvent::Agent(FromAgent::Progress(p)) => {
                let progress = control::VolumeProgress {
                    volume: name(p.assignment),
                    done_bytes: p.done_bytes,
                    total_bytes: p.total_bytes,
                    new_bytes: 0,
                    stored_bytes: 0,
                };
                tell(events, control::restore_event::Event::Progress(progress)).await;
                Ok(Next::Wait)
            }
            RunEvent::Agent(FromAgent::Failed(f)) => {
                let kind = f.kind();
                let volume = name(f.assignment);
                self.preparing.remove(&volume);
                self.ready.remove(&volume);
                Err(RestoreError::Volume { volume, reason: f.reason, kind })
            }
            RunEvent::Agent(_) | RunEvent::Finished(_) => Ok(Next::Wait),
            RunEvent::Cancel => Err(RestoreError::Cancelled),
            RunEvent::AgentGone => Err(RestoreError::AgentGone),
        }
    }
}
