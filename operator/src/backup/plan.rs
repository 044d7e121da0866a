//! What a backup does next: a function of what was observed, without I/O. Status is what it returns; it says which step the
//! backup is in, and since when.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use milkrun_proto::control::v1 as control;
use milkrun_resources::backup::BackupStep;
use milkrun_resources::condition::{COMPLETE, Conditions, FAILED, READY};
use milkrun_resources::{Backup, BackupStatus};

use super::clean_up::{clean_up, is_clean};
use super::expose::{expose, snapshot, with_class};
use super::observe::{Observed, RunSeen};
use super::select::select;
use crate::Settings;
use crate::actions::Action;
use crate::claim_facts::{ClaimFacts, bytes};
use crate::coordinator::{Run, progress};
use crate::holder::{held, trouble};
use crate::snapshots::VolumeSnapshot;
use crate::steps::{begin, from_hex, lasted, time, to_hex};

/// How long a snapshot may take until it is cut.
const CUT_MAX: Duration = Duration::from_secs(600);
/// A snapshot's error is believed when it stays: the controller tries again by itself.
const SNAPSHOT_ERROR_AFTER: Duration = Duration::from_secs(60);
/// How long all snapshots may take until volumes can be made from them. Some storages upload them first.
const READY_MAX: Duration = Duration::from_secs(24 * 3600);
/// How long a node may be without an agent.
const AGENT_MAX: Duration = Duration::from_secs(120);
/// How soon to look again.
const SOON: Duration = Duration::from_millis(500);
const LATER: Duration = Duration::from_secs(2);

/// A call to the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// Adds a volume.
    AddSource(Box<control::AddSourceRequest>),
    /// Says that all are added.
    Finish(control::FinishOrder),
    /// Stops the run.
    Cancel(Vec<u8>),
}

/// What to do next.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What to do in the cluster.
    pub actions: Vec<Action>,
    /// What to ask of the coordinator.
    pub calls: Vec<Call>,
    /// The status from now on.
    pub status: BackupStatus,
    /// When to look again; `None`: all is done.
    pub again: Option<Duration>,
}

/// Plans.
#[must_use]
pub fn plan(backup: &Backup, seen: &Observed, settings: &Settings, now: Timestamp) -> Plan {
    let mut plan = Plan { status: backup.status.clone().unwrap_or_default(), ..Plan::default() };
    plan.status.observed_generation = backup.metadata.generation;
    if plan.status.step == BackupStep::Done {
        return plan;
    }
    plan.again = Some(SOON);
    let deleted = backup.metadata.deletion_timestamp.is_some();
    if deleted && plan.status.step < BackupStep::CleanUp {
        plan.status.failure.get_or_insert_with(|| "the Backup was deleted".into());
    }
    // A step that is over at once needs no other look.
    loop {
        let before = plan.status.step;
        if plan.status.failure.is_some() && plan.status.step < BackupStep::CleanUp {
            cancel(&mut plan);
            plan.status.step = BackupStep::CleanUp;
        }
        begin(&mut plan.status.steps, &plan.status.step, now);
        step(backup, seen, settings, now, &mut plan);
        if plan.status.step == before && plan.status.failure.is_none() || plan.status.step >= BackupStep::CleanUp {
            break;
        }
    }
    begin(&mut plan.status.steps, &plan.status.step, now);
    plan
}

fn step(backup: &Backup, seen: &Observed, settings: &Settings, now: Timestamp, plan: &mut Plan) {
    match plan.status.step {
        BackupStep::Select => select_claims(backup, seen, plan),
        BackupStep::Open => open(seen, plan),
        BackupStep::Snapshot => cut(backup, seen, now, plan),
        BackupStep::Move => move_volumes(backup, seen, settings, now, plan),
        BackupStep::Commit => commit(seen, plan),
        BackupStep::CleanUp => end(backup, seen, now, plan),
        BackupStep::Done => {}
    }
}

fn cancel(plan: &mut Plan) {
    let run = plan.status.run.as_deref().and_then(from_hex);
    plan.calls = run.map(Call::Cancel).into_iter().collect();
    plan.actions.clear();
}

fn select_claims(backup: &Backup, seen: &Observed, plan: &mut Plan) {
    let selected = select(backup, seen);
    let name = backup.spec.application.clone().or_else(|| backup.metadata.namespace.clone());
    plan.status.application = name;
    plan.status.skipped = selected.skipped;
    if selected.refused.is_empty() {
        plan.status.volumes = selected.volumes;
        plan.status.step = BackupStep::Open;
    } else {
        plan.status.failure = Some(selected.refused.join("; "));
    }
}

/// The run, if it goes on. Otherwise status says why not.
fn going<'a>(seen: &'a Observed, plan: &mut Plan) -> Option<&'a Run> {
    match &seen.run {
        RunSeen::NotOpened => None,
        RunSeen::Away(why) => {
            plan.status.message = why.clone();
            plan.again = Some(LATER);
            None
        }
        RunSeen::Refused(why) => {
            plan.status.failure = Some(why.clone());
            None
        }
        RunSeen::Opened(run) if run.state() == control::run::State::Failed => {
            plan.status.failure = Some(run.reason.clone());
            None
        }
        RunSeen::Opened(run) => Some(run),
    }
}

fn open(seen: &Observed, plan: &mut Plan) {
    let Some(run) = going(seen, plan) else { return };
    plan.status.run = Some(to_hex(&run.run));
    if run.waiting {
        plan.status.message = "another backup of the application is under way".into();
        plan.again = Some(LATER);
    } else {
        plan.status.message.clear();
        plan.status.step = BackupStep::Snapshot;
    }
}

fn cut(backup: &Backup, seen: &Observed, now: Timestamp, plan: &mut Plan) {
    if going(seen, plan).is_none() {
        return;
    }
    let claims: Vec<String> = plan.status.volumes.keys().cloned().collect();
    let waited = lasted(&plan.status.steps, &BackupStep::Snapshot, now);
    for claim in &claims {
        match seen.snapshots.get(claim) {
            None => {
                let action = with_class(snapshot(backup, claim), seen, seen.volumes.get(claim));
                plan.actions.push(action);
            }
            Some(found) => {
                let cut = found.status.as_ref().and_then(|status| status.creation_time.clone());
                if let Some(volume) = plan.status.volumes.get_mut(claim) {
                    volume.moment = cut;
                }
                if let Some(why) = snapshot_error(found).filter(|_| waited > SNAPSHOT_ERROR_AFTER) {
                    plan.status.failure = Some(format!("the snapshot of claim {claim}: {why}"));
                    return;
                }
            }
        }
    }
    let late: Vec<String> = claims.into_iter().filter(|c| plan.status.volumes[c].moment.is_none()).collect();
    if late.is_empty() {
        plan.status.message.clear();
        plan.status.step = BackupStep::Move;
    } else if waited > CUT_MAX {
        plan.status.failure = Some(format!("no snapshot of {} after {} s", late.join(", "), CUT_MAX.as_secs()));
    } else {
        let errors = seen.snapshots.values().find_map(snapshot_error).unwrap_or_default();
        plan.status.message = format!("waits for the snapshot of {} {errors}", late.join(", ")).trim_end().to_owned();
    }
}

fn snapshot_error(snapshot: &VolumeSnapshot) -> Option<String> {
    snapshot.status.as_ref()?.error.as_ref()?.message.clone()
}

fn move_volumes(backup: &Backup, seen: &Observed, settings: &Settings, now: Timestamp, plan: &mut Plan) {
    let Some(run) = going(seen, plan) else { return };
    let waited = lasted(&plan.status.steps, &BackupStep::Move, now);
    let done = progress(run);
    let claims: Vec<String> = plan.status.volumes.keys().cloned().collect();
    let mut waits = Vec::new();
    for claim in &claims {
        let known = done.get(claim);
        if let Some(volume) = plan.status.volumes.get_mut(claim) {
            // The run knows a source once it was added, also under another operator.
            volume.offered |= known.is_some();
            if let Some((done, size)) = known {
                (volume.done, volume.size) = (Some(*done), Some(*size));
            }
        }
        if plan.status.volumes[claim].offered {
            continue;
        }
        match offer(backup, claim, seen, settings, now, plan) {
            Ok(()) => {}
            Err(Stuck::Waits(why)) => waits.push(format!("{claim} waits for {why}")),
            Err(Stuck::Failed(why)) => {
                plan.status.failure = Some(format!("claim {claim}: {why}"));
                return;
            }
        }
    }
    if waits.is_empty() && plan.status.volumes.values().all(|volume| volume.offered) {
        plan.status.message.clear();
        plan.status.step = BackupStep::Commit;
    } else if waited > READY_MAX {
        plan.status.failure = Some(format!("after {} h: {}", READY_MAX.as_secs() / 3600, waits.join("; ")));
    } else {
        plan.status.message = waits.join("; ");
    }
}

/// Why a volume is not offered yet.
enum Stuck {
    Waits(String),
    Failed(String),
}

/// Makes the next object for a volume, or offers it to the run.
fn offer(
    backup: &Backup,
    claim: &str,
    seen: &Observed,
    settings: &Settings,
    now: Timestamp,
    plan: &mut Plan,
) -> Result<(), Stuck> {
    let snapshot = seen.snapshots.get(claim);
    let snapshot = snapshot.ok_or_else(|| Stuck::Failed("somebody removed its snapshot".into()))?;
    if seen.contents.contains_key(claim) && !seen.volumes.contains_key(claim) {
        return Err(Stuck::Failed("its volume is gone".into()));
    }
    if let Some(action) = expose(backup, claim, seen, settings) {
        plan.actions.push(action);
    }
    let Some(pod) = seen.holders.get(claim) else {
        let ready = snapshot.status.as_ref().is_some_and(|status| status.ready_to_use == Some(true));
        let error = snapshot_error(snapshot).map(|why| format!(": {why}")).unwrap_or_default();
        return Err(Stuck::Waits(if ready { "its twin".into() } else { format!("its snapshot to be ready{error}") }));
    };
    if let Some(why) = trouble(pod, now) {
        return Err(Stuck::Failed(why));
    }
    let work = seen.work_claims.get(claim);
    let held = work.and_then(|work| held(pod, work, settings)).ok_or_else(|| Stuck::Waits("its holder pod".into()))?;
    if !seen.nodes.contains(&held.node) {
        let why = format!("an agent on node {}", held.node);
        let age =
            pod.metadata.creation_timestamp.as_ref().map_or(Duration::ZERO, |made| crate::steps::since(made, now));
        let late = age > AGENT_MAX;
        return Err(if late {
            Stuck::Failed(format!("there is no agent on node {}", held.node))
        } else {
            Stuck::Waits(why)
        });
    }
    let Some(volume) = plan.status.volumes.get_mut(claim) else { return Ok(()) };
    volume.node = Some(held.node.clone());
    let moment = volume.moment.as_ref().map_or(0, |moment| moment.0.as_millisecond());
    let source = control::Source {
        name: claim.to_owned(),
        moment_ms: moment,
        claim: facts(claim, seen),
        ..control::Source::default()
    };
    let run = plan.status.run.as_deref().and_then(from_hex).unwrap_or_default();
    plan.calls.push(Call::AddSource(Box::new(control::AddSourceRequest {
        run: run.into(),
        source: Some(source),
        size: work.and_then(size).unwrap_or(0),
        at: vec![control::Place { node: held.node, path: held.path }],
        skip_free: false,
    })));
    Err(Stuck::Waits("the coordinator".into()))
}

fn facts(claim: &str, seen: &Observed) -> String {
    let volume = seen.volumes.get(claim).cloned().unwrap_or_default();
    // What the application's claim says is found in its volume too, and the claim may be gone by now.
    let of = volume.spec.clone().unwrap_or_default();
    let spec = k8s_openapi::api::core::v1::PersistentVolumeClaimSpec {
        access_modes: of.access_modes,
        storage_class_name: of.storage_class_name,
        volume_mode: of.volume_mode,
        resources: Some(k8s_openapi::api::core::v1::VolumeResourceRequirements {
            requests: of.capacity,
            ..Default::default()
        }),
        ..Default::default()
    };
    let facts = ClaimFacts::of(&PersistentVolumeClaim { spec: Some(spec), ..Default::default() }, &volume);
    ClaimFacts { pod: seen.pods.get(claim).cloned(), ..facts }.to_json()
}

fn size(claim: &PersistentVolumeClaim) -> Option<u64> {
    let capacity = claim.status.as_ref()?.capacity.as_ref()?.get("storage")?;
    bytes(&capacity.0).and_then(|bytes| u64::try_from(bytes).ok())
}

fn commit(seen: &Observed, plan: &mut Plan) {
    let Some(run) = going(seen, plan) else { return };
    for (claim, (done, size)) in progress(run) {
        if let Some(volume) = plan.status.volumes.get_mut(&claim) {
            (volume.done, volume.size) = (Some(done), Some(size));
        }
    }
    if run.state() == control::run::State::Done {
        plan.status.point = Some(run.point.clone());
        plan.status.step = BackupStep::CleanUp;
        return;
    }
    let skipped = plan.status.skipped.iter();
    let skipped = skipped.map(|(name, reason)| control::Skipped { name: name.clone(), reason: reason.clone() });
    let order = control::FinishOrder { run: run.run.clone(), manifest_objects: 0, skipped: skipped.collect() };
    plan.calls.push(Call::Finish(order));
}

fn end(backup: &Backup, seen: &Observed, now: Timestamp, plan: &mut Plan) {
    plan.actions = clean_up(seen);
    // What was just cancelled may still be read: its claims wait for the agent to let go.
    if !is_clean(seen) {
        if plan.actions.is_empty() {
            plan.again = Some(SOON);
        }
        return;
    }
    let generation = backup.metadata.generation;
    let failure = plan.status.failure.clone();
    let (complete, failed) = (failure.is_none(), failure.is_some());
    let reason = if failed { "Failed" } else { "Complete" };
    let text = failure.unwrap_or_default();
    let conditions = &mut plan.status.conditions;
    conditions.set(COMPLETE, complete, reason, &text, generation, time(now));
    conditions.set(FAILED, failed, reason, &text, generation, time(now));
    conditions.set(READY, complete, reason, &text, generation, time(now));
    plan.status.message = text;
    plan.status.step = BackupStep::Done;
    plan.again = None;
}

#[cfg(test)]
mod tests;
