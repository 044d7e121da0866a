//! What a policy does next: a function of what was observed, without I/O.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};
use milkrun_resources::backup::BackupStep;
use milkrun_resources::condition::{COMPLETE, Conditions, READY};
use milkrun_resources::{Backup, BackupPolicy, BackupPolicyStatus, labels};

use super::schedule::{Schedule, delay};
use crate::steps::time;

/// How many backups that are over are kept where the policy does not say.
const HISTORY: usize = 3;
/// The longest time until the next look: clocks are put right.
const LOOK_AT_LEAST: Duration = Duration::from_secs(3600);
/// The shortest.
const LOOK_AT_MOST: Duration = Duration::from_millis(200);
/// The longest name of an object.
const NAME_MAX: usize = 253;

/// What to do next.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The backup to make; status says that it was made.
    pub make: Option<Backup>,
    /// Backups to remove.
    pub remove: Vec<Backup>,
    /// The status from now on.
    pub status: BackupPolicyStatus,
    /// When to look again; `None`: when something changes.
    pub again: Option<Duration>,
}

fn is_over(backup: &Backup) -> bool {
    backup.status.as_ref().is_some_and(|status| status.step == BackupStep::Done)
}

fn went_well(backup: &Backup) -> bool {
    is_over(backup) && backup.status.as_ref().is_some_and(|status| status.conditions.is_true(COMPLETE))
}

/// Plans. `made`: the backups that the policy has made and that are still there.
#[must_use]
pub fn plan(policy: &BackupPolicy, mut made: Vec<Backup>, now: Timestamp) -> Plan {
    // The names of one policy are in the order of their moments.
    made.sort_by_key(ResourceExt::name_any);
    let mut plan = Plan { status: policy.status.clone().unwrap_or_default(), ..Plan::default() };
    plan.status.observed_generation = policy.metadata.generation;
    if policy.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let point = made.iter().rev().find(|backup| went_well(backup)).and_then(|b| b.status.as_ref()?.point.clone());
    plan.status.last_point = point.or(plan.status.last_point);
    plan.remove = outdated(policy, &made);
    let own = policy.uid().unwrap_or_default();
    let schedule = match Schedule::read(&policy.spec.schedule, policy.spec.time_zone.as_deref(), &own) {
        Ok(schedule) => schedule,
        Err(why) => {
            let why = why.to_string();
            let generation = policy.metadata.generation;
            plan.status.conditions.set(READY, false, "Schedule", &why, generation, time(now));
            (plan.status.message, plan.status.next) = (why, None);
            return plan;
        }
    };
    plan.status.conditions.set(READY, true, "Schedule", "", policy.metadata.generation, time(now));
    plan.status.message.clear();
    if policy.spec.suspend {
        (plan.status.message, plan.status.next) = ("suspended".into(), None);
        return plan;
    }
    let begun = policy.metadata.creation_timestamp.as_ref().map_or(now, |created| created.0);
    let since = plan.status.last_schedule.as_ref().map_or(begun, |last| last.0);
    let jitter = policy.spec.jitter_seconds.unwrap_or_default().unsigned_abs();
    let starts = |moment: Timestamp| moment.checked_add(delay(&own, moment, jitter)).unwrap_or(moment);
    // Of those that were missed, the last one alone; one whose delay is not over is not missed.
    let surely = now.checked_sub(SignedDuration::from_secs(jitter.into())).unwrap_or(since);
    let recent = schedule.between(since.max(surely), now).filter(|moment| starts(*moment) <= now).last();
    let due = recent.or_else(|| schedule.last_before(since, surely));
    if let Some(moment) = due {
        let backup = backup(policy, moment);
        // An operator that was killed may have made it, and not said so.
        let is_made = made.iter().any(|made| made.name_any() == backup.name_any());
        match made.iter().find(|backup| !is_over(backup)) {
            Some(active) if !is_made => {
                plan.status.message = format!("the next one waits for Backup {}", active.name_any())
            }
            _ => {
                plan.status.last_backup = Some(backup.name_any());
                plan.status.last_schedule = Some(time(moment));
                plan.make = (!is_made).then_some(backup);
            }
        }
    }
    let next = schedule.next_after(due.unwrap_or(since)).map(starts);
    plan.status.next = next.map(time);
    let pause = next.and_then(|next| Duration::try_from(next.duration_since(now)).ok());
    plan.again = Some(pause.unwrap_or(LOOK_AT_MOST).clamp(LOOK_AT_MOST, LOOK_AT_LEAST));
    plan
}

/// Backups that are over, but for the newest, and the last that went well.
fn outdated(policy: &BackupPolicy, made: &[Backup]) -> Vec<Backup> {
    let kept = policy.spec.history.map_or(HISTORY, |history| usize::try_from(history).unwrap_or(HISTORY));
    let over = made.iter().rev().filter(|backup| is_over(backup) && backup.metadata.deletion_timestamp.is_none());
    let good = made.iter().rev().find(|backup| went_well(backup)).map(ResourceExt::name_any);
    over.skip(kept).filter(|backup| Some(backup.name_any()) != good).cloned().collect()
}

/// The backup of a moment. Its name is the moment's, so that it is not made twice.
fn backup(policy: &BackupPolicy, moment: Timestamp) -> Backup {
    let stamp = moment.strftime("%Y%m%dt%H%Mz").to_string();
    let mut name = policy.name_any();
    name.truncate(NAME_MAX - stamp.len() - 1);
    let mut backup = Backup::new(&format!("{name}-{stamp}"), policy.spec.backup.clone());
    backup.metadata = ObjectMeta {
        namespace: policy.namespace(),
        labels: Some([(labels::POLICY.to_owned(), policy.uid().unwrap_or_default())].into()),
        owner_references: policy.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..backup.metadata
    };
    backup
}

#[cfg(test)]
mod tests;
