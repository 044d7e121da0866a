//! What a restore does next: a function of what was observed, without I/O.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use milkrun_proto::control::v1 as control;
use milkrun_resources::condition::{COMPLETE, Conditions, FAILED, READY};
use milkrun_resources::restore::RestoreStep;
use milkrun_resources::{Restore, RestoreStatus, labels};

use super::check::check;
use super::clean_up::{clean_up, is_clean};
use super::data::{reserve, work_claim, work_holder};
use super::hand_over::{Progress, hand_over};
use super::observe::{Observed, PointSeen};
use crate::Settings;
use crate::actions::Action;
use crate::backup::RunSeen;
use crate::holder::{held, trouble};
use crate::steps::{begin, since, time};

/// How long a node may be without an agent.
const AGENT_MAX: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_millis(500);
const LATER: Duration = Duration::from_secs(2);

/// A call to the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// Adds a target.
    AddTarget(Box<control::AddTargetRequest>),
    /// Says that all are added: it begins to write.
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
    /// The status from now on. It is written before the actions are done.
    pub status: RestoreStatus,
    /// When to look again; `None`: all is done.
    pub again: Option<Duration>,
}

/// Plans.
#[must_use]
pub fn plan(restore: &Restore, seen: &Observed, settings: &Settings, now: Timestamp) -> Plan {
    let mut plan = Plan { status: restore.status.clone().unwrap_or_default(), ..Plan::default() };
    plan.status.observed_generation = restore.metadata.generation;
    if plan.status.step == RestoreStep::Done {
        return plan;
    }
    plan.again = Some(SOON);
    if restore.metadata.deletion_timestamp.is_some() && plan.status.step < RestoreStep::CleanUp {
        plan.status.failure.get_or_insert_with(|| "the Restore was deleted".into());
    }
    if plan.status.failure.is_none() {
        begin(&mut plan.status.steps, &plan.status.step, now);
        step(restore, seen, settings, now, &mut plan);
    }
    if plan.status.failure.is_some() && plan.status.step < RestoreStep::CleanUp {
        plan.actions.clear();
        let run = plan.status.run.as_deref().and_then(crate::steps::from_hex);
        plan.calls = run.map(Call::Cancel).into_iter().collect();
        plan.status.step = RestoreStep::CleanUp;
    }
    begin(&mut plan.status.steps, &plan.status.step, now);
    if plan.status.step == RestoreStep::CleanUp {
        end(restore, seen, now, &mut plan);
    }
    plan
}

fn step(restore: &Restore, seen: &Observed, settings: &Settings, now: Timestamp, plan: &mut Plan) {
    match plan.status.step {
        RestoreStep::Check => look(restore, seen, settings, plan),
        RestoreStep::Reserve => reserve_claims(restore, seen, plan),
        RestoreStep::Data => data(restore, seen, settings, now, plan),
        RestoreStep::HandOver => hand_over_all(restore, seen, plan),
        RestoreStep::CleanUp | RestoreStep::Done => {}
    }
}

fn look(restore: &Restore, seen: &Observed, settings: &Settings, plan: &mut Plan) {
    let detail = match &seen.point {
        PointSeen::Unknown => return,
        PointSeen::Away(why) => {
            plan.status.message = why.clone();
            plan.again = Some(LATER);
            return;
        }
        PointSeen::Refused(why) => {
            plan.status.failure = Some(why.clone());
            return;
        }
        PointSeen::Found(detail) => detail,
    };
    plan.status.point = detail.point.as_ref().map(|point| point.point.clone());
    match check(restore, detail, seen, settings) {
        Err(problems) => plan.status.failure = Some(problems.join("; ")),
        Ok(volumes) => {
            plan.status.volumes = volumes.into_iter().collect();
            plan.status.message.clear();
            plan.status.step = if restore.spec.dry_run { RestoreStep::CleanUp } else { RestoreStep::Reserve };
        }
    }
}

fn reserve_claims(restore: &Restore, seen: &Observed, plan: &mut Plan) {
    let mut all = true;
    let uid = restore.metadata.uid.as_ref();
    for (name, volume) in &mut plan.status.volumes {
        match seen.claims.get(&volume.claim) {
            // Somebody else made it since the check.
            Some(claim) if claim.labels().get(labels::RUN) != uid => {
                plan.status.failure = Some(format!("there is another claim {} meanwhile", volume.claim));
                return;
            }
            Some(claim) => volume.claim_uid.clone_from(&claim.metadata.uid),
            None => {
                all = false;
                plan.actions.push(reserve(restore, name, volume));
            }
        }
    }
    if all {
        plan.status.step = RestoreStep::Data;
    }
}

fn data(restore: &Restore, seen: &Observed, settings: &Settings, now: Timestamp, plan: &mut Plan) {
    let run = match &seen.run {
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
    };
    let Some(run) = run else { return };
    plan.status.run = Some(crate::steps::to_hex(&run.run));
    if run.state() == control::run::State::Done {
        plan.status.message.clear();
        plan.status.step = RestoreStep::HandOver;
        return;
    }
    // It knows its volumes once it has begun: from then on it takes no targets.
    if !run.volumes.is_empty() {
        plan.status.message.clear();
        return;
    }
    let names: Vec<String> = plan.status.volumes.keys().cloned().collect();
    let mut waits = Vec::new();
    for name in &names {
        match offer(restore, name, seen, settings, now, plan) {
            Ok(None) => {}
            Ok(Some(why)) => waits.push(format!("{name} waits for {why}")),
            Err(why) => {
                plan.status.failure = Some(format!("volume {name}: {why}"));
                return;
            }
        }
    }
    plan.status.message = waits.join("; ");
    if waits.is_empty() {
        let order = control::FinishOrder { run: run.run.clone(), ..control::FinishOrder::default() };
        plan.calls.push(Call::Finish(order));
    }
}

/// Makes the next object for a volume, or names it as a target. Returns what it waits for.
fn offer(
    restore: &Restore,
    name: &str,
    seen: &Observed,
    settings: &Settings,
    now: Timestamp,
    plan: &mut Plan,
) -> Result<Option<String>, String> {
    let Some(volume) = plan.status.volumes.get_mut(name) else { return Ok(None) };
    let Some(claim) = seen.work_claims.get(name) else {
        plan.actions.push(work_claim(restore, name, volume, settings));
        return Ok(Some("its work claim".into()));
    };
    let group = volume.group.clone();
    let Some(pod) = seen.holders.get(&group) else {
        let members: Vec<String> =
            plan.status.volumes.iter().filter(|(_, v)| v.group == group).map(|(n, _)| n.clone()).collect();
        // One pod for all of the group, once all its claims are there.
        if members.first().is_some_and(|first| first == name)
            && members.iter().all(|n| seen.work_claims.contains_key(n))
        {
            plan.actions.push(work_holder(restore, &group, &members, settings));
        }
        return Ok(Some("its holder pod".into()));
    };
    if let Some(why) = trouble(pod, now) {
        return Err(why);
    }
    let Some(held) = held(pod, claim, settings) else { return Ok(Some("its holder pod to run".into())) };
    volume.written_volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
    volume.node = Some(held.node.clone());
    if !seen.nodes.contains(&held.node) {
        let age = pod.metadata.creation_timestamp.as_ref().map_or(Duration::ZERO, |made| since(made, now));
        let why = format!("an agent on node {}", held.node);
        return if age > AGENT_MAX { Err(format!("there is no agent on node {}", held.node)) } else { Ok(Some(why)) };
    }
    let run = plan.status.run.as_deref().and_then(crate::steps::from_hex).unwrap_or_default();
    let target = control::Target { name: name.to_owned(), path: held.path, stream: false, node: held.node };
    // Adding it twice changes nothing, and after a failover of the coordinator it must be added again.
    plan.calls.push(Call::AddTarget(Box::new(control::AddTargetRequest { run: run.into(), target: Some(target) })));
    Ok(None)
}

fn hand_over_all(restore: &Restore, seen: &Observed, plan: &mut Plan) {
    let names: Vec<String> = plan.status.volumes.keys().cloned().collect();
    let mut waits = Vec::new();
    let mut open = false;
    for name in names {
        let Some(volume) = plan.status.volumes.get_mut(&name) else { continue };
        match hand_over(restore, &name, volume, seen) {
            Progress::Done => continue,
            Progress::Next(action) => plan.actions.push(*action),
            Progress::Waits(why) => waits.push(format!("{name} waits for {why}")),
            Progress::Keep(made) => volume.final_volume = Some(made),
            Progress::Lost(why) => {
                plan.status.failure.get_or_insert_with(|| format!("volume {name}: {why}"));
                continue;
            }
        }
        open = true;
    }
    plan.status.message = waits.join("; ");
    if !open && plan.status.failure.is_none() {
        plan.status.step = RestoreStep::CleanUp;
    }
}

fn end(restore: &Restore, seen: &Observed, now: Timestamp, plan: &mut Plan) {
    let uid = restore.metadata.uid.clone().unwrap_or_default();
    plan.actions = clean_up(&plan.status, &uid, seen);
    // A volume whose hand-over has begun is handed over, whatever else failed: its data is whole, and nobody else knows of it.
    let mut open = false;
    for (name, volume) in plan.status.volumes.clone() {
        if volume.final_volume.is_none() {
            continue;
        }
        match hand_over(restore, &name, &volume, seen) {
            Progress::Next(action) => {
                plan.actions.push(*action);
                open = true;
            }
            Progress::Waits(_) | Progress::Keep(_) => open = true,
            Progress::Done | Progress::Lost(_) => {}
        }
    }
    if open || !is_clean(&plan.status, &uid, seen) {
        return;
    }
    let generation = restore.metadata.generation;
    let failure = plan.status.failure.clone();
    let (complete, failed) = (failure.is_none(), failure.is_some());
    let reason = match (failed, restore.spec.dry_run) {
        (true, _) => "Failed",
        (false, true) => "Checked",
        (false, false) => "Complete",
    };
    let text = failure.unwrap_or_default();
    let conditions = &mut plan.status.conditions;
    conditions.set(COMPLETE, complete, reason, &text, generation, time(now));
    conditions.set(FAILED, failed, reason, &text, generation, time(now));
    conditions.set(READY, complete, reason, &text, generation, time(now));
    plan.status.message = text;
    plan.status.step = RestoreStep::Done;
    plan.again = None;
}
