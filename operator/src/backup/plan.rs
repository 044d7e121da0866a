//! What a backup does next: a function of what was observed, without I/O. Status is what it returns; it says which step the
//! backup is in, and since when.

use std::time::Duration;

use jiff::Timestamp;
use milkrun_proto::control::v1 as control;
use milkrun_resources::Backup;
use milkrun_resources::backup::{BackupStep, FreezeStatus};

use super::clean_up::{clean_up, is_clean, left};
use super::cut::cut;
use super::freeze::{Next, frozen, is_held, limit, of_another, thawed};
use super::group;
use super::moving::{count, give_back_done, move_volumes};
use super::observe::Observed;
use super::planned::{PROMPTLY, Plan, QUICKLY};
use super::select::select;
use crate::Settings;
use crate::run::{Call, RunSeen};
use crate::steps::{begin, conclude, lasted, pause};

/// How long it may take until all agents that are to freeze are there.
const FREEZE_MAX: Duration = Duration::from_secs(600);
/// How long it may take to learn how a freeze ended, beyond the time that it may last.
const THAW_MAX: Duration = Duration::from_secs(60);
/// For how long a group is looked at quickly.
const QUICK_FOR: Duration = Duration::from_secs(10);

/// Plans.
#[must_use]
pub fn plan(backup: &Backup, seen: &Observed, settings: &Settings, now: Timestamp) -> Plan {
    let mut plan = Plan { status: backup.status.clone().unwrap_or_default(), ..Plan::default() };
    plan.status.observed_generation = backup.metadata.generation;
    if plan.status.step == BackupStep::Done {
        return plan;
    }
    let writers_wait = plan.status.freeze.as_ref().is_some_and(is_held);
    let waited = lasted(&plan.status.steps, &plan.status.step, now);
    plan.again = Some(pause(if writers_wait { Duration::ZERO } else { waited }));
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
    if group::is_under_way(&plan.status, seen) && lasted(&plan.status.steps, &plan.status.step, now) < QUICK_FOR {
        plan.again = plan.again.map(|again| again.min(QUICKLY));
    }
    plan
}

fn step(backup: &Backup, seen: &Observed, settings: &Settings, now: Timestamp, plan: &mut Plan) {
    match plan.status.step {
        BackupStep::Select => select_claims(backup, seen, plan),
        BackupStep::Open => open(backup, seen, plan),
        BackupStep::Freeze => freeze(seen, settings, now, plan),
        BackupStep::Snapshot => cut(backup, seen, settings, now, plan),
        BackupStep::Thaw => thaw(backup, seen, settings, now, plan),
        BackupStep::Move => move_volumes(backup, seen, settings, now, plan),
        BackupStep::Commit => commit(backup, seen, now, plan),
        BackupStep::CleanUp => end(backup, seen, now, plan),
        BackupStep::Done => {}
    }
}

fn cancel(plan: &mut Plan) {
    let run = plan.status.run.as_deref().and_then(|run| hex::decode(run).ok());
    plan.calls = run.map(Call::Cancel).into_iter().collect();
    plan.actions.clear();
    if plan.status.freeze.as_ref().is_some_and(is_held) {
        // It is thawed at the next look.
        plan.again = Some(PROMPTLY);
    }
}

fn select_claims(backup: &Backup, seen: &Observed, plan: &mut Plan) {
    let selected = select(backup, seen);
    let name = backup.spec.application.clone().or_else(|| backup.metadata.namespace.clone());
    plan.status.application = name;
    plan.status.skipped = selected.skipped;
    if selected.refused.is_empty() {
        plan.status.groups = group::choose(backup, &selected.volumes, seen);
        plan.status.volumes = selected.volumes;
        plan.status.step = BackupStep::Open;
    } else {
        plan.status.failure = Some(selected.refused.join("; "));
    }
}

fn open(backup: &Backup, seen: &Observed, plan: &mut Plan) {
    if let RunSeen::Opened(run) = &seen.run {
        plan.status.run = Some(hex::encode(&run.run));
    }
    if plan.going(seen).is_some() {
        match group::label(backup, &plan.status, seen) {
            Ok(labels) if labels.is_empty() => {}
            Ok(labels) => {
                plan.actions = labels;
                plan.again = Some(PROMPTLY);
                return;
            }
            Err(why) => {
                plan.status.failure = Some(why);
                return;
            }
        }
        plan.status.message.clear();
        let freezes = backup.spec.freeze_seconds.is_some();
        plan.status.step = if freezes { BackupStep::Freeze } else { BackupStep::Snapshot };
    }
}

/// Notes what is to be frozen, and by whom; once that is written, it is frozen.
fn freeze(seen: &Observed, settings: &Settings, now: Timestamp, plan: &mut Plan) {
    if plan.going(seen).is_none() {
        return;
    }
    let Some(freeze) = &plan.status.freeze else {
        let mounts = seen.mounts.clone();
        if mounts.is_empty() {
            plan.status.step = BackupStep::Snapshot;
        }
        plan.status.freeze = Some(FreezeStatus { by: settings.process.clone(), mounts, ..FreezeStatus::default() });
        plan.again = Some(PROMPTLY);
        return;
    };
    let next = of_another(freeze, &settings.process).map_or_else(|| frozen(&seen.frozen), Next::Failed);
    let waited = lasted(&plan.status.steps, &BackupStep::Freeze, now);
    follow(next.unless(waited > FREEZE_MAX), BackupStep::Snapshot, plan);
}

fn thaw(backup: &Backup, seen: &Observed, settings: &Settings, now: Timestamp, plan: &mut Plan) {
    if plan.going(seen).is_none() {
        return;
    }
    let waited = lasted(&plan.status.steps, &BackupStep::Thaw, now);
    let next = plan.status.freeze.as_mut().map_or(Next::On, |freeze| match of_another(freeze, &settings.process) {
        Some(why) => Next::Failed(why),
        None => thawed(freeze, &seen.thawed),
    });
    // Without an answer, the agent has thawed by itself by now.
    follow(next.unless(waited > limit(backup) + THAW_MAX), BackupStep::Move, plan);
}

fn follow(next: Next, step: BackupStep, plan: &mut Plan) {
    match next {
        Next::On => {
            plan.status.message.clear();
            plan.status.step = step;
        }
        Next::Waits(why) => plan.status.message = why,
        Next::Failed(why) => plan.status.failure = Some(why),
    }
}

fn commit(backup: &Backup, seen: &Observed, now: Timestamp, plan: &mut Plan) {
    let Some(run) = plan.going(seen) else { return };
    plan.tidying.extend(group::sweep(backup, &mut plan.status, seen));
    count(run, now, plan);
    give_back_done(run, seen, plan);
    if run.state() == control::run::State::Done {
        plan.status.point = Some(run.point.clone());
        plan.status.step = BackupStep::CleanUp;
        return;
    }
    let skipped = plan.status.skipped.iter();
    let skipped = skipped.map(|(name, reason)| control::Skipped { name: name.clone(), reason: reason.clone() });
    let order = control::FinishOrder { run: run.run.clone(), manifest_objects: 0, skipped: skipped.collect() };
    plan.calls.push(Call::Finish(order));
    plan.follow = Some(run.run.to_vec());
}

fn end(backup: &Backup, seen: &Observed, now: Timestamp, plan: &mut Plan) {
    plan.actions = group::sweep(backup, &mut plan.status, seen);
    plan.actions.extend(clean_up(backup, &plan.status, seen, now));
    let waited = lasted(&plan.status.steps, &BackupStep::CleanUp, now);
    if let Some(freeze) = plan.status.freeze.as_mut().filter(|freeze| is_held(freeze))
        && let Next::Waits(why) = thawed(freeze, &seen.thawed)
        && waited <= limit(backup) + THAW_MAX
    {
        plan.status.message = why;
        return;
    }
    if !is_clean(seen) {
        plan.status.message = left(seen);
        return;
    }
    if plan.status.groups.values().any(|group| !group.swept) {
        plan.status.message = "waits for labels of claims to go".into();
        return;
    }
    let failure = plan.status.failure.clone();
    let generation = backup.metadata.generation;
    conclude(&mut plan.status.conditions, failure.as_deref(), "Complete", generation, now);
    plan.status.message = failure.unwrap_or_default();
    plan.status.step = BackupStep::Done;
    plan.again = None;
}

#[cfg(test)]
mod tests;
