//! Removing what a backup made, in the one order that loses nothing and leaves nothing: the volume of our claim gets the policy
//! Delete; holder and claim go, each once the one before has let go of it; when the volume is gone, the twin, its content, and last the source and its snapshot.

use kube::ResourceExt;
use milkrun_resources::labels;
use serde_json::json;

use super::observe::Observed;
use crate::actions::{Action, Kind, Which};
use crate::attachments::is_attached;

/// What is to be removed next; nothing if all is gone.
pub(super) fn clean_up(seen: &Observed) -> Vec<Action> {
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
    for claim in claims {
        actions.extend(of_claim(claim, seen));
    }
    actions
}

/// The next action for one claim.
fn of_claim(claim: &str, seen: &Observed) -> Option<Action> {
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
            return Some(Action::Merge(Which::of(Kind::Volume, volume), patch));
        }
    }
    if let Some(pod) = seen.holders.get(claim) {
        return delete(Kind::Pod, pod);
    }
    // A provisioner that finds its volume attached waits longer and longer before it looks again.
    if volume.is_some_and(|volume| is_attached(volume, &seen.attached)) {
        return None;
    }
    if let Some(work) = seen.work_claims.get(claim) {
        return delete(Kind::Claim, work);
    }
    if volume.is_some() {
        // The provisioner removes it. Until then its storage needs the snapshot.
        return None;
    }
    if let Some(twin) = seen.twins.get(claim) {
        return delete(Kind::Snapshot, twin);
    }
    if let Some(content) = seen.twin_contents.get(claim) {
        return delete(Kind::Content, content);
    }
    if let Some(content) = seen.contents.get(claim)
        && content.spec.deletion_policy != "Delete"
    {
        return Some(Action::Merge(Which::of(Kind::Content, content), json!({"spec": {"deletionPolicy": "Delete"}})));
    }
    match (seen.snapshots.get(claim), seen.contents.get(claim)) {
        (Some(snapshot), _) => delete(Kind::Snapshot, snapshot),
        // Somebody else removed the snapshot, and its content stayed.
        (None, Some(content)) => delete(Kind::Content, content),
        (None, None) => None,
    }
}

fn delete<K: kube::Resource>(kind: Kind, object: &K) -> Option<Action> {
    // It is on its way already.
    object.meta().deletion_timestamp.is_none().then(|| Action::Delete(Which::of(kind, object)))
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
}
