//! Removing what a restore made and nobody needs: all in the work namespace; and, if it failed, claims that wait for a volume
//! that does not come. A claim that has its volume stays.

use kube::ResourceExt;
use milkrun_resources::{RestoreStatus, labels};
use serde_json::json;

use super::observe::Observed;
use crate::actions::{Action, Kind, Which};

fn delete<K: kube::Resource>(kind: Kind, object: &K) -> Option<Action> {
    object.meta().deletion_timestamp.is_none().then(|| Action::Delete(Which::of(kind, object)))
}

/// What is to be removed next.
pub(super) fn clean_up(status: &RestoreStatus, uid: &str, seen: &Observed) -> Vec<Action> {
    let mut actions: Vec<Action> = seen.holders.values().filter_map(|pod| delete(Kind::Pod, pod)).collect();
    for (name, volume) in &status.volumes {
        let handed_over = seen.volumes.contains_key(name) || volume.final_volume.is_some();
        if handed_over || seen.holders.contains_key(&volume.group) {
            continue;
        }
        if let Some(written) = seen.written.get(name) {
            let policy = written.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
            if policy != Some("Delete") {
                let patch = json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}});
                actions.push(Action::Merge(Which::of(Kind::Volume, written), patch));
                continue;
            }
        }
        if let Some(claim) = seen.work_claims.get(name) {
            actions.extend(delete(Kind::Claim, claim));
        }
        let reserved = seen
            .claims
            .get(&volume.claim)
            .filter(|claim| claim.labels().get(labels::RUN).is_some_and(|run| run == uid));
        if let Some(claim) = reserved {
            actions.extend(delete(Kind::Claim, claim));
        }
    }
    actions
}

/// Whether nothing is left that nobody needs.
pub(super) fn is_clean(status: &RestoreStatus, uid: &str, seen: &Observed) -> bool {
    let waits = |name: &String| {
        let volume = &status.volumes[name];
        let handed_over = seen.volumes.contains_key(name) || volume.final_volume.is_some();
        let reserved = seen.claims.get(&volume.claim).and_then(|claim| claim.labels().get(labels::RUN));
        !handed_over && (seen.written.contains_key(name) || reserved.is_some_and(|run| run == uid))
    };
    seen.holders.is_empty() && seen.work_claims.is_empty() && !status.volumes.keys().any(waits)
}
