//! Giving a written volume to the application's claim. The order matters, and each step waits until the one before is seen:
//!
//! 1. the written volume gets the policy Retain;
//! 2. its holder goes, and no node and no attachment knows the volume any more;
//! 3. the whole volume to come is written into status;
//! 4. the work claim goes, then the written volume: some drivers forget a disk when a second volume of it goes;
//! 5. the new volume is made for the claim, which is looked at again and bound;
//! 6. it gets the reclaim policy of its class, and the claim its wanted size.

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use kube::api::ObjectMeta;
use milkrun_resources::Restore;
use milkrun_resources::restore::RestoredVolume;
use serde_json::json;

use super::observe::{Observed, run_of, target};
use crate::actions::{Action, Kind, Which};
use crate::attachments::is_attached;
use crate::claim_facts::bytes;

/// The annotation that makes the volume controller look at a claim again.
const LOOK_AGAIN: &str = "milkrun.dev/handed-over";
/// The annotation by which the provisioner knows volumes that are its own: it deletes no other.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// How a volume's hand-over goes on.
pub(super) enum Progress {
    /// This is next.
    Next(Box<Action>),
    /// It waits for this.
    Waits(String),
    /// The volume to come, as JSON: it must be in status before anything is removed.
    Keep(String),
    /// All is done.
    Done,
    /// It can't go on.
    Lost(String),
}

fn next(action: Action) -> Progress {
    Progress::Next(Box::new(action))
}

/// What is next for one volume.
pub(super) fn hand_over(restore: &Restore, name: &str, volume: &RestoredVolume, seen: &Observed) -> Progress {
    let Some(claim) = seen.claims.get(&volume.claim) else {
        return Progress::Lost(format!("the claim {} was removed", volume.claim));
    };
    if let Some(made) = seen.volumes.get(name) {
        return finish(volume, claim, made);
    }
    let Some(kept) = &volume.final_volume else {
        return prepare(restore, name, volume, claim, seen);
    };
    if let Some(work) = seen.work_claims.get(name) {
        return remove(Kind::Claim, work, "its work claim");
    }
    if let Some(written) = seen.written.get(name) {
        return remove(Kind::Volume, written, "the written volume");
    }
    match serde_json::from_str::<PersistentVolume>(kept) {
        Ok(made) => next(Action::create(Kind::Volume, &made)),
        Err(e) => Progress::Lost(format!("status holds no volume: {e}")),
    }
}

fn remove<K: kube::Resource>(kind: Kind, object: &K, what: &str) -> Progress {
    match object.meta().deletion_timestamp {
        None => next(Action::Delete(Which::of(kind, object))),
        Some(_) => Progress::Waits(format!("{what} to go")),
    }
}

/// Until the written volume is free, and its successor is in status.
fn prepare(
    restore: &Restore,
    name: &str,
    volume: &RestoredVolume,
    claim: &PersistentVolumeClaim,
    seen: &Observed,
) -> Progress {
    let Some(written) = seen.written.get(name) else { return Progress::Lost("the written volume is gone".into()) };
    let policy = written.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    if policy != Some("Retain") {
        let patch = json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}});
        return next(Action::Merge(Which::of(Kind::Volume, written), patch));
    }
    if let Some(pod) = seen.holders.get(&volume.group) {
        return remove(Kind::Pod, pod, "its holder pod");
    }
    if is_attached(written, &seen.attached) {
        return Progress::Waits("its volume to be detached".into());
    }
    match successor(restore, name, volume, claim, written) {
        Some(made) => Progress::Keep(serde_json::to_string(&made).unwrap_or_default()),
        None => Progress::Lost("the written volume is of no CSI driver".into()),
    }
}

/// The volume that the claim gets: the same storage, as the application wants it.
fn successor(
    restore: &Restore,
    name: &str,
    volume: &RestoredVolume,
    claim: &PersistentVolumeClaim,
    written: &PersistentVolume,
) -> Option<PersistentVolume> {
    let mut spec = written.spec.clone()?;
    let csi = spec.csi.as_mut()?;
    csi.fs_type.clone_from(&volume.file_system);
    spec.access_modes = Some(volume.access_modes.clone());
    spec.claim_ref = Some(ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("PersistentVolumeClaim".into()),
        name: Some(volume.claim.clone()),
        namespace: Some(target(restore)),
        uid: claim.metadata.uid.clone(),
        ..ObjectReference::default()
    });
    spec.persistent_volume_reclaim_policy = Some("Retain".into());
    spec.volume_mode = Some(volume.mode.clone());
    let mut metadata: ObjectMeta = run_of(restore).metadata(None, name, "restored");
    let by = written.annotations().get_key_value(PROVISIONED_BY);
    metadata.annotations.get_or_insert_default().extend(by.map(|(key, value)| (key.clone(), value.clone())));
    metadata.labels.get_or_insert_default().extend(written.labels().clone());
    Some(PersistentVolume { metadata, spec: Some(spec), status: None })
}

/// Once the volume is made: bound, its policy, its size.
fn finish(volume: &RestoredVolume, claim: &PersistentVolumeClaim, made: &PersistentVolume) -> Progress {
    let of = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
    if of != made.metadata.name {
        return Progress::Lost(format!("the claim {} has another volume", volume.claim));
    }
    let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    if !bound {
        if claim.annotations().contains_key(LOOK_AGAIN) {
            return Progress::Waits("its claim to be bound".into());
        }
        let patch = json!({"metadata": {"annotations": {LOOK_AGAIN: made.name_any()}}});
        return next(Action::Merge(Which::of(Kind::Claim, claim), patch));
    }
    let policy = made.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    if policy != Some(&volume.reclaim_policy) {
        let patch = json!({"spec": {"persistentVolumeReclaimPolicy": volume.reclaim_policy}});
        return next(Action::Merge(Which::of(Kind::Volume, made), patch));
    }
    let asked = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"));
    let asked = asked.and_then(|asked| bytes(&asked.0)).unwrap_or(0);
    if bytes(&volume.size).is_some_and(|wanted| wanted > asked) {
        let patch = json!({"spec": {"resources": {"requests": {"storage": volume.size}}}});
        return next(Action::Merge(Which::of(Kind::Claim, claim), patch));
    }
    Progress::Done
}
