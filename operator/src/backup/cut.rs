//! Taking the snapshots, of groups and of single claims, until each is cut. It need not be ready then.

use std::time::Duration;

use jiff::Timestamp;
use milkrun_resources::Backup;
use milkrun_resources::backup::BackupStep;

use super::expose::{snapshot, with_class};
use super::freeze::{is_held, limit, mounted_since, of_another};
use super::group::{cut_group, error_of_group};
use super::observe::Observed;
use super::planned::{PROMPTLY, Plan};
use crate::Settings;
use crate::steps::lasted;

/// How long a snapshot may take until it is cut.
const CUT_MAX: Duration = Duration::from_secs(600);
/// A snapshot's error is believed when it stays: the controller tries again by itself.
const ERROR_AFTER: Duration = Duration::from_secs(60);

/// Takes them all at once.
pub(super) fn cut(backup: &Backup, seen: &Observed, settings: &Settings, now: Timestamp, plan: &mut Plan) {
    if plan.going(seen).is_none() {
        return;
    }
    let freeze = plan.status.freeze.clone();
    let held = freeze.as_ref().filter(|freeze| is_held(freeze));
    let void = held.and_then(|freeze| of_another(freeze, &settings.process));
    let void = void.or_else(|| mounted_since(freeze.as_ref()?, &seen.mounts));
    if void.is_some() {
        plan.status.failure = void;
        return;
    }
    let groups = plan.status.groups.clone();
    if let Err(why) = groups.iter().try_for_each(|(name, group)| cut_group(backup, name, group, seen, plan)) {
        plan.status.failure = Some(why);
        return;
    }
    let claims: Vec<String> = plan.status.volumes.keys().cloned().collect();
    let alone = || claims.iter().filter(|claim| !groups.values().any(|group| group.claims.contains(claim)));
    alone().for_each(|claim| cut_alone(backup, claim, seen, plan));

    let of_group = groups.iter().filter_map(|(name, group)| error_of_group(name, group, seen));
    let of_claim =
        |claim: &String| Some(format!("the snapshot of claim {claim}: {}", seen.snapshots.get(claim)?.error()?));
    let error = of_group.chain(alone().filter_map(of_claim)).next();
    let waited = lasted(&plan.status.steps, &BackupStep::Snapshot, now);
    let late: Vec<&str> =
        claims.iter().filter(|claim| plan.status.volumes[*claim].moment.is_none()).map(String::as_str).collect();
    match error {
        Some(why) if waited > ERROR_AFTER => plan.status.failure = Some(why),
        _ if late.is_empty() => {
            plan.status.message.clear();
            plan.status.step = if held.is_some() { BackupStep::Thaw } else { BackupStep::Move };
            if held.is_some() {
                plan.again = Some(PROMPTLY);
            }
        }
        _ if waited > CUT_MAX || held.is_some() && waited > limit(backup) => {
            plan.status.failure = Some(format!("no snapshot of {} after {} s", late.join(", "), waited.as_secs()));
        }
        error => {
            let error = error.map(|why| format!(": {why}")).unwrap_or_default();
            plan.status.message = format!("waits for the snapshot of {}{error}", late.join(", "));
        }
    }
}

/// Takes the snapshot of a claim that is in no group, and notes when it was cut.
fn cut_alone(backup: &Backup, claim: &str, seen: &Observed, plan: &mut Plan) {
    let Some(found) = seen.snapshots.get(claim) else {
        plan.actions.push(with_class(snapshot(backup, claim), seen, seen.volumes.get(claim)));
        return;
    };
    if let Some(volume) = plan.status.volumes.get_mut(claim) {
        volume.moment = found.status.as_ref().and_then(|status| status.creation_time.clone());
    }
}
