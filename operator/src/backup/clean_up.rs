//! Removing what a backup made, in the one order that loses nothing and leaves nothing: the volume of our claim gets the policy
//! Delete; holder and claim go, each once the one before has let go of it; when the volume is gone, the twin, its content, and last the source and its snapshot.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;
use milkrun_resources::backup::GroupStatus;
use milkrun_resources::{Backup, BackupStatus, labels};
use serde_json::json;

use super::group::{group_of, remove};
use super::observe::Observed;
use super::removal::{BEING_CREATED, delete_alone, delete_snapshot, goes_along, nudge, release};
use crate::actions::{Action, Kind, Which};
use crate::attachments::is_attached;

/// csi-provisioner puts this on a snapshot before it makes a volume from it, and leaves it there if that fails and the claim goes.
const SOURCE_PROTECTION: &str = "provisioner.storage.kubernetes.io/volumesnapshot-as-source-protection";
/// The snapshot controller was seen to keep this on a content for minutes, whose snapshot was gone a second after it was made.
const BOUND_PROTECTION: &str = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";

/// What is to be removed next; nothing if all is gone.
pub(super) fn clean_up(backup: &Backup, status: &BackupStatus, seen: &Observed, now: Timestamp) -> Vec<Action> {
    let mut actions = Vec::new();
    let claims = [
        seen.holders.keys().collect::<Vec<_>>(),
        seen.work_claims.keys().collect(),
        seen.work_volumes.keys().collect(),
        seen.twins.keys().collect(),
        seen.twin_contents.keys().collect(),
        seen.snapshots.keys().collect(),
        seen.contents.keys().collect(),
    ];
    let mut claims: Vec<&String> = claims.into_iter().flatten().collect();
    claims.sort();
    claims.dedup();
    for claim in claims.into_iter().filter(|claim| group_of(status, claim).is_none()) {
        actions.extend(of_claim(backup, claim, seen, now));
    }
    for (name, group) in &status.groups {
        actions.extend(of_group(backup, name, group, seen, now));
    }
    actions
}

/// Removes what offers the snapshot of a claim as a device, and leaves the snapshot itself.
///
/// # Errors
/// It is not gone yet: this is the next action, if there is one; else it is waited for.
pub(super) fn give_back(claim: &str, seen: &Observed) -> Result<(), Option<Action>> {
    let volume = seen.work_volumes.get(claim);
    if let Some(volume) = volume {
        let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
        if policy != Some("Delete") || !volume.labels().contains_key(labels::RUN) {
            let run = seen.work_claims.get(claim).and_then(|claim| claim.labels().get(labels::RUN)).cloned();
            let annotations = json!({labels::CLAIM: claim});
            let mut patch =
                json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}, "metadata": {"annotations": annotations}});
            if let Some(run) = run {
                patch["metadata"]["labels"] = json!({labels::RUN: run});
            }
            return Err(Some(Action::Merge(Which::of(Kind::Volume, volume), patch)));
        }
    }
    if let Some(pod) = seen.holders.get(claim) {
        return Err(Action::delete(Kind::Pod, pod));
    }
    // A provisioner that finds its volume attached waits longer and longer before it looks again.
    if volume.is_some_and(|volume| may_be_attached(volume, seen)) {
        return Err(None);
    }
    if let Some(work) = seen.work_claims.get(claim) {
        return Err(Action::delete(Kind::Claim, work));
    }
    if volume.is_some() {
        // The provisioner removes it. Until then its storage needs the snapshot.
        return Err(None);
    }
    if let Some(twin) = seen.twins.get(claim) {
        let gone = Action::delete(Kind::Snapshot, twin);
        return Err(gone.or_else(|| release(Kind::Snapshot, twin, SOURCE_PROTECTION)));
    }
    if let Some(content) = seen.twin_contents.get(claim) {
        let gone = Action::delete(Kind::Content, content);
        return Err(gone.or_else(|| release(Kind::Content, content, BOUND_PROTECTION)));
    }
    Ok(())
}

fn may_be_attached(volume: &PersistentVolume, seen: &Observed) -> bool {
    seen.attached.as_ref().is_none_or(|attached| is_attached(volume, attached))
}

/// The next action for one claim that is in no group.
fn of_claim(backup: &Backup, claim: &str, seen: &Observed, now: Timestamp) -> Option<Action> {
    if let Err(next) = give_back(claim, seen) {
        return next;
    }
    let content = seen.contents.get(claim);
    if let Some(next) = content.and_then(|content| goes_along(backup, claim, content)) {
        return Some(next);
    }
    match (seen.snapshots.get(claim), content) {
        (Some(snapshot), content) => {
            let nudged = || nudge(Kind::Content, content?, BEING_CREATED, now);
            delete_snapshot(snapshot).or_else(nudged)
        }
        // Somebody else removed the snapshot, and its content stayed.
        (None, Some(content)) => delete_alone(content, now),
        (None, None) => None,
    }
}

/// The next actions for the claims of a group: none of their snapshots goes before all volumes were given back.
fn of_group(backup: &Backup, name: &str, group: &GroupStatus, seen: &Observed, now: Timestamp) -> Vec<Action> {
    let held: Vec<Option<Action>> = group.claims.iter().filter_map(|claim| give_back(claim, seen).err()).collect();
    if held.is_empty() { remove(backup, name, group, seen, now) } else { held.into_iter().flatten().collect() }
}

/// What is still there, for people.
pub(super) fn left(seen: &Observed) -> String {
    let attached = seen.work_volumes.iter().find(|(_, volume)| may_be_attached(volume, seen));
    let what = match attached {
        Some((claim, _)) if !seen.holders.contains_key(claim) => format!("the volume of {claim} to be detached"),
        _ if !seen.holders.is_empty() => "holder pods to go".into(),
        _ if !seen.work_volumes.is_empty() => "volumes to go".into(),
        _ => "snapshots to go".into(),
    };
    format!("waits for {what}")
}

/// Whether nothing of the run is left.
pub(super) fn is_clean(seen: &Observed) -> bool {
    seen.holders.is_empty()
        && seen.work_claims.is_empty()
        && seen.work_volumes.is_empty()
        && seen.twins.is_empty()
        && seen.twin_contents.is_empty()
        && seen.snapshots.is_empty()
        && seen.contents.is_empty()
        && seen.groups.snapshots.is_empty()
        && seen.groups.contents.is_empty()
}
