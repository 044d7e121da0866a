//! Giving a written volume to the application's claim. The order matters, and each step waits until the one before is seen:
//!
//! 1. the written volume gets the policy Retain;
//! 2. its holder goes, and no node and no attachment knows the volume any more;
//! 3. the whole volume to come is written into status;
//! 4. a claim that is replaced goes, and is made anew ([`swap`]);
//! 5. the work claim goes, then the written volume: some drivers forget a disk when a second volume of it goes;
//! 6. the new volume is made for the claim, which is looked at again and bound;
//! 7. it gets the reclaim policy of its class, and the claim its wanted size.
//!
//! A claim that somebody removes meanwhile has lost its volume, as always when a claim is removed: the new volume is made all
//! the same, and goes as its reclaim policy says.

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use kube::api::ObjectMeta;
use milkrun_resources::restore::RestoredVolume;
use milkrun_resources::{Restore, labels};
use serde_json::json;

use super::observe::{Observed, run_of, target};
use super::swap::swap;
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
    /// The volume of status from now on. It must be there before anything is removed.
    Note(Box<RestoredVolume>),
    /// All is done.
    Done,
    /// It can't go on.
    Lost(String),
}

pub(super) fn next(action: Action) -> Progress {
    Progress::Next(Box::new(action))
}

/// The claim that this run made for the application.
pub(super) fn own_claim<'a>(
    restore: &Restore,
    volume: &RestoredVolume,
    seen: &'a Observed,
) -> Option<&'a PersistentVolumeClaim> {
    let claim = seen.claims.get(&volume.claim)?;
    let ours = match &volume.claim_uid {
        Some(uid) => claim.metadata.uid.as_ref() == Some(uid),
        None => claim.labels().get(labels::RUN) == restore.metadata.uid.as_ref(),
    };
    ours.then_some(claim)
}

fn lost(volume: &RestoredVolume) -> Progress {
    Progress::Lost(format!("somebody removed the claim {}", volume.claim))
}

/// What is next for one volume.
pub(super) fn hand_over(restore: &Restore, name: &str, volume: &RestoredVolume, seen: &Observed) -> Progress {
    let claim = own_claim(restore, volume, seen);
    match seen.volumes.get(name) {
        Some(_) if !volume.made => return Progress::Note(Box::new(RestoredVolume { made: true, ..volume.clone() })),
        Some(made) => {
            return claim.map_or_else(|| let_go(volume, made), |claim| finish(volume, claim, made));
        }
        None if volume.made => return lost(volume),
        None => {}
    }
    let Some(kept) = &volume.final_volume else {
        return match (claim, &volume.replaces) {
            (None, None) => lost(volume),
            _ => prepare(restore, name, volume, seen),
        };
    };
    let work = seen.work_claims.get(name);
    match (claim, &volume.replaces) {
        (None, Some(before)) if volume.claim_uid.is_none() => return swap(restore, name, volume, before, seen),
        (Some(claim), Some(_)) if volume.claim_uid.is_none() => {
            let claim_uid = claim.metadata.uid.clone();
            return Progress::Note(Box::new(RestoredVolume { claim_uid, ..volume.clone() }));
        }
        // Nothing is given away yet.
        (None, _) if work.is_some_and(|work| work.metadata.deletion_timestamp.is_none()) => return lost(volume),
        _ => {}
    }
    if let Some(work) = work {
        return remove(Kind::Claim, work, "its work claim");
    }
    if let Some(written) = seen.written.get(name) {
        return remove(Kind::Volume, written, "the written volume");
    }
    match serde_json::from_str::<PersistentVolume>(kept) {
        Ok(mut made) => {
            let of = made.spec.as_mut().and_then(|spec| spec.claim_ref.as_mut());
            if let Some(of) = of {
                of.uid.clone_from(&volume.claim_uid);
            }
            next(Action::create(Kind::Volume, &made))
        }
        Err(e) => Progress::Lost(format!("status holds no volume: {e}")),
    }
}

fn remove<K: kube::Resource>(kind: Kind, object: &K, what: &str) -> Progress {
    Action::delete(kind, object).map_or_else(|| Progress::Waits(format!("{what} to go")), next)
}

/// Until the written volume is free, and its successor is in status.
fn prepare(restore: &Restore, name: &str, volume: &RestoredVolume, seen: &Observed) -> Progress {
    let Some(written) = seen.written.get(name) else { return Progress::Lost("the written volume is gone".into()) };
    if policy(written) != Some("Retain") {
        return next(with_policy(written, "Retain"));
    }
    if let Some(pod) = seen.holders.get(&volume.group) {
        return remove(Kind::Pod, pod, "its holder pod");
    }
    if is_attached(written, &seen.attached) {
        return Progress::Waits("its volume to be detached".into());
    }
    match successor(restore, name, volume, written) {
        Some(made) => {
            let final_volume = Some(serde_json::to_string(&made).unwrap_or_default());
            Progress::Note(Box::new(RestoredVolume { final_volume, ..volume.clone() }))
        }
        None => Progress::Lost("the written volume is of no CSI driver".into()),
    }
}

pub(super) fn policy(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.persistent_volume_reclaim_policy.as_deref()
}

pub(super) fn with_policy(volume: &PersistentVolume, policy: &str) -> Action {
    Action::Merge(Which::of(Kind::Volume, volume), json!({"spec": {"persistentVolumeReclaimPolicy": policy}}))
}

/// The volume that the claim gets: the same storage, as the application wants it. The claim's UID is filled in when it is made.
pub(super) fn successor(
    restore: &Restore,
    name: &str,
    volume: &RestoredVolume,
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
    if policy(made) != Some(&volume.reclaim_policy) {
        return next(with_policy(made, &volume.reclaim_policy));
    }
    let asked = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"));
    let asked = asked.and_then(|asked| bytes(&asked.0)).unwrap_or(0);
    if bytes(&volume.size).is_some_and(|wanted| wanted > asked) {
        let patch = json!({"spec": {"resources": {"requests": {"storage": volume.size}}}});
        return next(Action::Merge(Which::of(Kind::Claim, claim), patch));
    }
    Progress::Done
}

/// The volume is made, and its claim is gone: the volume goes as its class says.
fn let_go(volume: &RestoredVolume, made: &PersistentVolume) -> Progress {
    if policy(made) != Some(&volume.reclaim_policy) {
        return next(with_policy(made, &volume.reclaim_policy));
    }
    if volume.reclaim_policy == "Delete" {
        return Progress::Waits("its volume to go: its claim was removed".into());
    }
    Progress::Lost(format!("somebody removed the claim {}; its volume {} is kept", volume.claim, made.name_any()))
}
