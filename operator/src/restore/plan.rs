//! What a restore does next: a function of what was observed, without I/O.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use milkrun_proto::control::v1 as control;
use milkrun_resources::restore::RestoreStep;
use milkrun_resources::{Restore, RestoreStatus, labels};

use super::admission::Admission;
use super::check::check;
use super::clean_up::{clean_up, is_clean, is_given};
use super::data::{reserve, work_claim, work_holder};
use super::hand_over::{Progress, hand_over};
use super::observe::{Observed, PointSeen};
use super::swap::{keep, keep_no_more, tell_way_back};
use super::waves;
use crate::Settings;
use crate::actions::Action;
use crate::coordinator::progress;
use crate::holder::{Around, Stuck, reach};
use crate::run::{Call, Going};
use crate::steps::{begin, conclude, count_again, lasted, pause, time};

const LATER: Duration = Duration::from_secs(2);

/// What to do next.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What to do in the cluster.
    pub actions: Vec<Action>,
    /// What to ask of the coordinator.
    pub calls: Vec<Call>,
    /// The status from now on. It is written before the actions are done.
    pub status: RestoreStatus,
    /// The run that is followed before the next look: what happens next happens at the coordinator.
    pub follow: Option<Vec<u8>>,
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
    plan.again = Some(pause(lasted(&plan.status.steps, &plan.status.step, now)));
    if restore.metadata.deletion_timestamp.is_some() && plan.status.step < RestoreStep::CleanUp {
        plan.status.failure.get_or_insert_with(|| "the Restore was deleted".into());
    }
    if plan.status.failure.is_none() {
        begin(&mut plan.status.steps, &plan.status.step, now);
        step(restore, seen, settings, now, &mut plan);
    }
    if plan.status.failure.is_some() && plan.status.step < RestoreStep::CleanUp {
        plan.actions.clear();
        let run = plan.status.run.as_deref().and_then(|run| hex::decode(run).ok());
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
    match (check(restore, detail, seen, settings), &seen.admission) {
        (Err(problems), _) => plan.status.failure = Some(problems.join("; ")),
        (Ok(_), Admission::Unknown) => {}
        (Ok(_), Admission::Away(why)) => {
            plan.status.message.clone_from(why);
            plan.again = Some(LATER);
        }
        (Ok(_), Admission::Refused(problems)) => plan.status.failure = Some(problems.join("; ")),
        (Ok(volumes), Admission::Granted) => {
            plan.status.volumes = volumes.into_iter().collect();
            waves::divide(&mut plan.status.volumes, settings.exposed_max);
            plan.status.message.clear();
            plan.status.step = if restore.spec.dry_run { RestoreStep::CleanUp } else { RestoreStep::Reserve };
        }
    }
}

fn reserve_claims(restore: &Restore, seen: &Observed, plan: &mut Plan) {
    let mut all = true;
    let uid = restore.metadata.uid.as_ref();
    for name in plan.status.volumes.iter().filter(|(_, volume)| volume.replaces.is_some()).map(|(name, _)| name) {
        if let Some(action) = keep(name, seen) {
            all = false;
            plan.actions.push(action);
        }
    }
    for (name, volume) in plan.status.volumes.iter_mut().filter(|(_, volume)| volume.replaces.is_none()) {
        match seen.claims.get(&volume.claim) {
            // Somebody else made it since the check.
            Some(claim) if claim.labels().get(labels::RUN) != uid => {
                plan.status.failure = Some(format!("there is another claim {} meanwhile", volume.claim));
                return;
            }
            Some(claim) => volume.claim_uid.clone_from(&claim.metadata.uid),
            None => {
                all = false;
                plan.actions.push(reserve(restore, name, volume, None));
            }
        }
    }
    if all {
        plan.status.step = RestoreStep::Data;
    }
}

fn data(restore: &Restore, seen: &Observed, settings: &Settings, now: Timestamp, plan: &mut Plan) {
    let run = match seen.run.going() {
        Going::On(run) => run,
        Going::NotOpened => return,
        Going::Unknown(why) => {
            why.clone_into(&mut plan.status.message);
            plan.again = Some(LATER);
            return;
        }
        Going::Failed(why) => {
            plan.status.failure = Some(why.to_owned());
            return;
        }
    };
    plan.status.run = Some(hex::encode(&run.run));
    let over = run.state() == control::run::State::Done;
    if over || count_again(plan.status.counted.as_ref(), now) {
        for (name, (done, _)) in progress(run) {
            if let Some(volume) = plan.status.volumes.get_mut(&name) {
                volume.done = Some(done);
                plan.status.counted = Some(time(now));
            }
        }
    }
    if over && !waves::is_last(&plan.status) {
        waves::next(seen, plan);
        return;
    }
    if over {
        plan.status.message.clear();
        plan.status.step = RestoreStep::HandOver;
        return;
    }
    // It knows its volumes once it has begun: from then on it takes no targets.
    if !run.volumes.is_empty() {
        plan.status.message.clear();
        plan.follow = Some(run.run.to_vec());
        return;
    }
    let mut waits = Vec::new();
    for name in &waves::present(&plan.status) {
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
        plan.follow = Some(run.run.to_vec());
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
        if !seen.may_expose {
            return Ok(Some(format!("its slot: {} volumes are held at once", settings.exposed_max)));
        }
        plan.actions.push(work_claim(restore, name, volume, settings));
        return Ok(Some("its work claim".into()));
    };
    let (group, consumer) = (volume.group.clone(), volume.consumer.clone());
    let Some(pod) = seen.holders.get(&group) else {
        let members: Vec<String> =
            plan.status.volumes.iter().filter(|(_, v)| v.group == group).map(|(n, _)| n.clone()).collect();
        // One pod for all of the group, once all its claims are there.
        if members.first().is_some_and(|first| first == name)
            && members.iter().all(|n| seen.work_claims.contains_key(n))
        {
            plan.actions.push(work_holder(restore, &group, &members, consumer.as_ref(), seen, settings));
        }
        return Ok(Some("its holder pod".into()));
    };
    let since = &*volume.waits_since.get_or_insert_with(|| time(now));
    let around = Around { warnings: &seen.warnings, nodes: seen.nodes.as_deref(), settings, since, now };
    let held = match reach(pod, claim, around) {
        Ok(held) => held,
        Err(Stuck::Waits(why)) => return Ok(Some(why)),
        Err(Stuck::Failed(why)) => return Err(why),
    };
    // What is missing later is waited for anew.
    volume.waits_since = None;
    volume.written_volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
    volume.node = Some(held.node.clone());
    let run = plan.status.run.as_deref().and_then(|run| hex::decode(run).ok()).unwrap_or_default();
    let target = control::Target { name: name.to_owned(), path: held.path, stream: false, node: held.node };
    // Adding it twice changes nothing, and after a failover of the coordinator it must be added again.
    plan.calls.push(Call::AddTarget(Box::new(control::AddTargetRequest { run: run.into(), target: Some(target) })));
    Ok(None)
}

fn hand_over_all(restore: &Restore, seen: &Observed, plan: &mut Plan) {
    let mut waits = Vec::new();
    let mut noted = Vec::new();
    let mut open = false;
    for (name, volume) in plan.status.volumes.clone() {
        match hand_over(restore, &name, &volume, seen) {
            Progress::Done => continue,
            Progress::Next(action) => plan.actions.push(*action),
            Progress::Waits(why) => waits.push(format!("{name} waits for {why}")),
            Progress::Note(next) => noted.push((name, *next)),
            Progress::Lost(why) => {
                plan.status.failure.get_or_insert_with(|| format!("volume {name}: {why}"));
                continue;
            }
        }
        open = true;
    }
    // What one volume is ready for is void if another one is lost.
    if plan.status.failure.is_none() {
        plan.status.volumes.extend(noted);
    }
    plan.status.message = waits.join("; ");
    if !open && plan.status.failure.is_none() {
        plan.status.step = RestoreStep::CleanUp;
    }
}

fn end(restore: &Restore, seen: &Observed, now: Timestamp, plan: &mut Plan) {
    let uid = restore.metadata.uid.clone().unwrap_or_default();
    // What is given away half is given away, whatever else failed: its data is whole, and nobody else knows of it.
    let mut goes_on = Vec::new();
    let mut waits = Vec::new();
    for (name, volume) in &mut plan.status.volumes {
        let begun = is_given(name, volume, seen) || volume.replaces.as_ref().is_some_and(|before| before.removable);
        if !begun || volume.final_volume.is_none() {
            // From here on its storage is removed: that its work claim is gone must not be taken for a hand-over.
            volume.final_volume = None;
            plan.actions.extend(keep_no_more(name, volume, seen));
            plan.actions.extend(tell_way_back(restore, name, volume, seen));
            continue;
        }
        match hand_over(restore, name, volume, seen) {
            Progress::Next(action) => plan.actions.push(*action),
            Progress::Waits(why) => waits.push(format!("{name} waits for {why}")),
            Progress::Note(noted) => *volume = *noted,
            Progress::Lost(why) => {
                plan.status.failure.get_or_insert_with(|| format!("volume {name}: {why}"));
                if !is_given(name, volume, seen) {
                    volume.final_volume = None;
                }
                continue;
            }
            Progress::Done => continue,
        }
        goes_on.push(name.clone());
    }
    plan.actions.extend(clean_up(&plan.status, &uid, seen, &goes_on));
    plan.status.message = waits.join("; ");
    let open = !goes_on.is_empty() || !plan.actions.is_empty();
    if open || !is_clean(&plan.status, &uid, seen) {
        return;
    }
    let failure = plan.status.failure.clone();
    let generation = restore.metadata.generation;
    let complete = if restore.spec.dry_run { "Checked" } else { "Complete" };
    conclude(&mut plan.status.conditions, failure.as_deref(), complete, generation, now);
    plan.status.message = failure.unwrap_or_default();
    plan.status.step = RestoreStep::Done;
    plan.again = None;
}

#[cfg(test)]
mod tests;
