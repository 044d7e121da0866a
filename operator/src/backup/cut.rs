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
    let claims: Vec<String> = plan.status.volumes.keys().cloned().collect();
    let alone = || claims.iter().filter(|claim| !groups.values().any(|group| group.claims.contains(claim)));
    let cut = groups.iter().try_for_each(|(name, group)| cut_group(backup, name, group, seen, plan));
    if let Err(why) = cut.and_then(|()| alone().try_for_each(|claim| cut_alone(backup, claim, seen, plan))) {
        plan.status.failure = Some(why);
        return;
    }
    let is_late = |claim: &&String| plan.status.volumes.get(*claim).is_none_or(|volume| volume.moment.is_none());
    let late: Vec<&str> = claims.iter().filter(is_late).map(String::as_str).collect();
    if late.is_empty() {
        plan.status.message.clear();
        plan.status.step = if held.is_some() { BackupStep::Thaw } else { BackupStep::Move };
        if held.is_some() {
            plan.again = Some(PROMPTLY);
        }
        return;
    }
    let of_groups = groups.iter().filter(|(_, group)| group.claims.iter().any(|claim| is_late(&claim)));
    let of_groups = of_groups.filter_map(|(name, group)| error_of_group(name, group, seen));
    let of_claim =
        |claim: &String| Some(format!("the snapshot of claim {claim}: {}", seen.snapshots.get(claim)?.error()?));
    let error = of_groups.chain(alone().filter(is_late).filter_map(of_claim)).next();
    let waited = lasted(&plan.status.steps, &BackupStep::Snapshot, now);
    match error {
        Some(why) if waited > ERROR_AFTER => plan.status.failure = Some(why),
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
///
/// # Errors
/// In words: it is gone.
fn cut_alone(backup: &Backup, claim: &str, seen: &Observed, plan: &mut Plan) -> Result<(), String> {
    let Some(volume) = plan.status.volumes.get_mut(claim) else { return Ok(()) };
    match seen.snapshots.get(claim) {
        Some(found) => volume.moment = found.status.as_ref().and_then(|status| status.creation_time.clone()),
        None if volume.moment.is_some() => return Err(format!("claim {claim}: somebody removed its snapshot")),
        None => plan.actions.push(with_class(snapshot(backup, claim), seen, seen.volumes.get(claim))),
    }
    Ok(())
}
