//! Removing what a restore made and nobody needs: all in the work namespace; and, if it failed, claims that wait for a volume
//! that does not come. A claim that has its volume stays.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use milkrun_resources::restore::RestoredVolume;
use milkrun_resources::{RestoreStatus, labels};

use super::hand_over::{policy, with_policy};
use super::observe::Observed;
use crate::actions::{Action, Kind};

/// Whether the storage has been given to the application's claim, or is about to be: then it is not ours to remove.
pub(super) fn is_given(name: &str, volume: &RestoredVolume, seen: &Observed) -> bool {
    let work_goes = seen.work_claims.get(name).is_none_or(|claim| claim.metadata.deletion_timestamp.is_some());
    // A claim that is to be replaced, and is not yet, is given nothing.
    let has_claim = volume.replaces.is_none() || volume.claim_uid.is_some();
    seen.volumes.contains_key(name) || volume.final_volume.is_some() && work_goes && has_claim
}

/// What is to be removed next. Volumes of `goes_on` are still handed over.
pub(super) fn clean_up(status: &RestoreStatus, uid: &str, seen: &Observed, goes_on: &[String]) -> Vec<Action> {
    let held = |pod: &Pod| Action::delete(Kind::Pod, pod);
    let mut actions: Vec<Action> = seen.holders.values().filter_map(held).collect();
    for (name, volume) in &status.volumes {
        if goes_on.contains(name) || is_given(name, volume, seen) || seen.holders.contains_key(&volume.group) {
            continue;
        }
        if let Some(written) = seen.written.get(name)
            && policy(written) != Some("Delete")
        {
            actions.push(with_policy(written, "Delete"));
            continue;
        }
        if let Some(claim) = seen.work_claims.get(name) {
            actions.extend(Action::delete(Kind::Claim, claim));
        }
        if let Some(claim) = reserved(volume, uid, seen) {
            actions.extend(Action::delete(Kind::Claim, claim));
        }
    }
    actions
}

/// The claim that waits for its volume, if this run made it.
fn reserved<'a>(volume: &RestoredVolume, uid: &str, seen: &'a Observed) -> Option<&'a PersistentVolumeClaim> {
    let claim = seen.claims.get(&volume.claim)?;
    claim.labels().get(labels::RUN).is_some_and(|run| run == uid).then_some(claim)
}

/// Whether nothing is left that nobody needs.
pub(super) fn is_clean(status: &RestoreStatus, uid: &str, seen: &Observed) -> bool {
    let waits = |(name, volume): (&String, &RestoredVolume)| {
        !is_given(name, volume, seen) && (seen.written.contains_key(name) || reserved(volume, uid, seen).is_some())
    };
    seen.holders.is_empty() && seen.work_claims.is_empty() && !status.volumes.iter().any(waits)
}
