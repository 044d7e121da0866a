//! Replacing a claim in place: the claim goes once no pod uses it, and is made anew for the restored volume. The volume of
//! before is kept from the beginning, whatever its policy was: whoever scales down may remove its claim, too. Status, and an
//! annotation of that volume, say how to go back to it.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::ObjectMeta;
use milkrun_resources::restore::{ReplacedClaim, RestoredVolume};
use milkrun_resources::{Restore, RestoreStatus};
use serde_json::json;

use super::data::{reserve, uses};
use super::hand_over::{Progress, next, own_claim, policy, with_policy};
use super::observe::{Observed, target};
use crate::actions::{Action, Kind, Which};

/// Annotations that Kubernetes writes itself.
const OF_KUBERNETES: [&str; 3] = ["pv.kubernetes.io/", "volume.kubernetes.io/", "volume.beta.kubernetes.io/"];
/// The annotation of the volume of before with the command that goes back to it.
const UNDO: &str = "milkrun.dev/undo";

/// What is kept of a claim, so that it can be made again with the same volume.
pub(super) fn replaced(claim: &PersistentVolumeClaim, reclaim_policy: &str) -> Option<ReplacedClaim> {
    let spec = claim.spec.clone()?;
    let volume = spec.volume_name.clone()?;
    let mut annotations = claim.annotations().clone();
    annotations.retain(|key, _| !OF_KUBERNETES.iter().any(|prefix| key.starts_with(prefix)));
    // A claim of a pod goes with that pod, and no pod is there when it is made again.
    let mut owners = claim.metadata.owner_references.clone().unwrap_or_default();
    owners.retain(|owner| owner.kind != "Pod");
    let metadata = ObjectMeta {
        name: claim.metadata.name.clone(),
        namespace: claim.metadata.namespace.clone(),
        labels: claim.metadata.labels.clone(),
        annotations: Some(annotations),
        owner_references: Some(owners).filter(|owners| !owners.is_empty()),
        ..ObjectMeta::default()
    };
    let again = PersistentVolumeClaim { metadata, spec: Some(spec), status: None };
    Some(ReplacedClaim {
        uid: claim.uid()?,
        volume,
        reclaim_policy: reclaim_policy.to_owned(),
        removable: false,
        claim: serde_json::to_string(&again).ok()?,
    })
}

/// Keeps the volume of before; nothing, if it is kept.
pub(super) fn keep(name: &str, seen: &Observed) -> Option<Action> {
    let kept = seen.replaced.get(name).filter(|kept| policy(kept) != Some("Retain"))?;
    Some(with_policy(kept, "Retain"))
}

/// Gives the volume of before its policy back, where its claim still has it and stays as it is.
pub(super) fn keep_no_more(name: &str, volume: &RestoredVolume, seen: &Observed) -> Option<Action> {
    let before = volume.replaces.as_ref().filter(|before| !before.removable)?;
    let there = seen.claims.get(&volume.claim).is_some_and(|claim| claim.uid().as_ref() == Some(&before.uid));
    let kept = seen.replaced.get(name).filter(|kept| policy(kept) != Some(&before.reclaim_policy))?;
    there.then(|| with_policy(kept, &before.reclaim_policy))
}

/// Somebody removed a claim that was to be replaced, and the restore has failed: its volume is kept, and this is the way back.
pub(super) fn tell_way_back(
    restore: &Restore,
    name: &str,
    volume: &mut RestoredVolume,
    seen: &Observed,
) -> Option<Action> {
    let before = volume.replaces.as_ref().filter(|_| !seen.claims.contains_key(&volume.claim))?;
    let kept = seen.replaced.get(name)?;
    if volume.undo.is_none() {
        volume.undo = Some(undo(restore, volume, before));
    }
    note_undo(kept, volume)
}

/// What is next for a claim that is replaced, until the new one is there.
pub(super) fn swap(
    restore: &Restore,
    name: &str,
    volume: &RestoredVolume,
    before: &ReplacedClaim,
    seen: &Observed,
) -> Progress {
    if let Some(action) = keep(name, seen) {
        return next(action);
    }
    let claim = seen.claims.get(&volume.claim);
    if claim.is_some_and(|claim| claim.uid().as_ref() != Some(&before.uid)) {
        return Progress::Lost(format!("there is another claim {} meanwhile; {}", volume.claim, way_back(volume)));
    }
    let namespace = seen.namespace.as_ref();
    if claim.is_none() && namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
        return Progress::Lost(format!("the namespace of the claim {} goes; {}", volume.claim, way_back(volume)));
    }
    let kept = seen.replaced.get(name);
    if !before.removable {
        if claim.is_some() && kept.is_none() {
            return Progress::Lost(format!("the volume {} of the claim {} is gone", before.volume, volume.claim));
        }
        if let Some(why) = restore.status.as_ref().and_then(|status| not_yet(restore, status, seen)) {
            return why;
        }
        // As the claim is now.
        let now = claim.and_then(|claim| replaced(claim, &before.reclaim_policy)).unwrap_or_else(|| before.clone());
        let undo = kept.map(|_| undo(restore, volume, &now));
        let replaces = Some(ReplacedClaim { removable: true, ..now });
        return Progress::Note(Box::new(RestoredVolume { replaces, undo, ..volume.clone() }));
    }
    if let Some(action) = kept.and_then(|kept| note_undo(kept, volume)) {
        return next(action);
    }
    let Some(claim) = claim else {
        let again = serde_json::from_str::<PersistentVolumeClaim>(&before.claim).unwrap_or_default();
        return next(reserve(restore, name, volume, Some(again.metadata)));
    };
    match Action::delete(Kind::Claim, claim) {
        Some(action) => next(action),
        None => Progress::Waits(format!("the claim {} to go", volume.claim)),
    }
}

/// Why no claim may be replaced yet: those that belong together are replaced together, or none is.
fn not_yet(restore: &Restore, status: &RestoreStatus, seen: &Observed) -> Option<Progress> {
    if let Some((name, other)) = status.volumes.iter().find(|(_, other)| other.final_volume.is_none()) {
        return Some(Progress::Waits(format!("{name} ({}) to be ready, too", other.claim)));
    }
    for other in status.volumes.values() {
        let Some(before) = &other.replaces else {
            if own_claim(restore, other, seen).is_none() {
                return Some(Progress::Lost(format!("somebody removed the claim {}", other.claim)));
            }
            continue;
        };
        let there = seen.claims.get(&other.claim);
        if there.is_some_and(|claim| claim.uid().as_ref() != Some(&before.uid)) {
            return Some(Progress::Lost(format!("there is another claim {} meanwhile", other.claim)));
        }
        if let Some(pod) = seen.pods.iter().find(|pod| uses(pod, &other.claim)) {
            return Some(Progress::Waits(format!("{} to let go of the claim {}", who(pod), other.claim)));
        }
    }
    None
}

/// Writes the way back where it stays when the `Restore` is deleted.
fn note_undo(kept: &PersistentVolume, volume: &RestoredVolume) -> Option<Action> {
    let undo = volume.undo.as_ref().filter(|undo| kept.annotations().get(UNDO) != Some(undo))?;
    Some(Action::Merge(Which::of(Kind::Volume, kept), json!({"metadata": {"annotations": {UNDO: undo}}})))
}

/// A pod, and what would make it again.
fn who(pod: &Pod) -> String {
    let owner = pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    match owner {
        Some(owner) => format!("pod {} (scale down its {} {})", pod.name_any(), owner.kind, owner.name),
        None => format!("pod {}", pod.name_any()),
    }
}

fn way_back(volume: &RestoredVolume) -> String {
    volume.undo.as_ref().map(|undo| format!("the way back: {undo}")).unwrap_or_default()
}

/// The command that brings the volume of before back. The claim must be used by no pod then, too. First the volume is kept: if it is
/// gone, nothing is removed, and the command may be run twice.
fn undo(restore: &Restore, volume: &RestoredVolume, before: &ReplacedClaim) -> String {
    let namespace = target(restore);
    let policy = |policy: &str| json!({"spec": {"persistentVolumeReclaimPolicy": policy}});
    // It stays meant for this claim, and is free to be bound by the one that is made anew.
    let free = json!({"spec": {"claimRef": {"uid": null, "resourceVersion": null}}});
    // A quote must not end the shell's.
    let claim = before.claim.replace('\'', "\\u0027");
    format!(
        "kubectl patch pv {volume} --type=merge -p '{keep}' && \
         kubectl -n {namespace} delete pvc {claim_name} --wait --ignore-not-found && \
         kubectl patch pv {volume} --type=merge -p '{free}' && \
         printf '%s' '{claim}' | kubectl create -f - && \
         kubectl -n {namespace} wait --for=jsonpath='{{.status.phase}}'=Bound pvc/{claim_name} --timeout=120s && \
         kubectl patch pv {volume} --type=merge -p '{policy}'",
        keep = policy("Retain"),
        policy = policy(&before.reclaim_policy),
        claim_name = volume.claim,
        volume = before.volume,
    )
}
