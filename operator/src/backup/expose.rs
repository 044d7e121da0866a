//! Offering a snapshot as a device: a twin of it in the work namespace, a claim from the twin, and a pod that holds it.

use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec, TypedLocalObjectReference,
    VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use milkrun_resources::Backup;
use serde_json::json;

use super::observe::{Observed, run_of};
use super::removal::ours;
use super::select::{driver_of, snapshot_class};
use crate::Settings;
use crate::actions::{Action, Kind, Which};
use crate::claim_facts::bytes;
use crate::holder::{Placement, holder};
use crate::snapshots::{
    VolumeSnapshot, VolumeSnapshotContent, VolumeSnapshotContentSource, VolumeSnapshotContentSpec,
    VolumeSnapshotSource, VolumeSnapshotSpec,
};

/// Lets a claim of mode Block be made from the snapshot of a claim of mode Filesystem.
const MODE_CHANGE: &str = "snapshot.storage.kubernetes.io/allow-volume-mode-change";
/// Annotations and labels of a content that its twin needs too: secrets, and which node's snapshotter is in charge.
const SECRETS: &str = "snapshot.storage.kubernetes.io/deletion-secret-";
const SNAPSHOTTER: &str = "snapshot.storage.kubernetes.io/managed-by";

/// Tells GitOps tools that a snapshot in their namespace is none of their business.
pub(super) const GITOPS: [(&str, &str); 2] =
    [("argocd.argoproj.io/compare-options", "IgnoreExtraneous"), ("argocd.argoproj.io/sync-options", "Prune=false")];

/// The snapshot of a claim.
pub(super) fn snapshot(backup: &Backup, claim: &str) -> Action {
    let mut metadata = run_of(backup).metadata(backup.namespace().as_deref(), claim, "snapshot");
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.extend(GITOPS.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let source = VolumeSnapshotSource { persistent_volume_claim_name: Some(claim.to_owned()), ..Default::default() };
    let spec = VolumeSnapshotSpec { source, volume_snapshot_class_name: None };
    Action::create(Kind::Snapshot, &VolumeSnapshot { metadata, spec, status: None })
}

/// The class of snapshots of a volume.
fn class_of(seen: &Observed, volume: Option<&PersistentVolume>) -> Option<String> {
    snapshot_class(&seen.snapshot_classes, volume.and_then(driver_of)?).map(ResourceExt::name_any)
}

/// Names the class of snapshots where the driver has several and none is the default.
pub(super) fn with_class(action: Action, seen: &Observed, volume: Option<&PersistentVolume>) -> Action {
    let class = class_of(seen, volume);
    match (action, class) {
        (Action::Create(which, mut object), Some(class)) => {
            object["spec"]["volumeSnapshotClassName"] = json!(class);
            Action::Create(which, object)
        }
        (action, _) => action,
    }
}

/// What has to be made next to offer the snapshot of a claim; nothing if all is there, or it has no slot.
pub(super) fn expose(backup: &Backup, claim: &str, seen: &Observed, settings: &Settings) -> Option<Action> {
    let run = run_of(backup);
    let work = settings.work_namespace.as_str();
    let content = seen.contents.get(claim)?;
    // A team, a pruning tool or a deleted namespace must not take the storage's snapshot away under the run.
    if content.spec.deletion_policy != "Retain" {
        let patch = json!({"metadata": ours(backup, claim), "spec": {"deletionPolicy": "Retain"}});
        return Some(Action::Merge(Which::of(Kind::Content, content), patch));
    }
    // A member of a group has no class; what is read of its twin may need the secrets of one.
    let class = content.spec.volume_snapshot_class_name.clone().or_else(|| class_of(seen, seen.volumes.get(claim)));
    let status = seen.snapshots.get(claim)?.status.as_ref()?;
    if status.ready_to_use != Some(true) || !seen.may_expose.contains(claim) {
        return None;
    }
    if !seen.twin_contents.contains_key(claim) {
        let handle = content.status.as_ref().and_then(|status| status.snapshot_handle.clone());
        let mut metadata = run.metadata(None, claim, "twin");
        let annotations = metadata.annotations.get_or_insert_default();
        let secrets = content.annotations().iter().filter(|(key, _)| key.starts_with(SECRETS));
        annotations.extend(secrets.map(|(key, value)| (key.clone(), value.clone())));
        annotations.insert(MODE_CHANGE.into(), "true".into());
        let labels = metadata.labels.get_or_insert_default();
        labels.extend(content.labels().get_key_value(SNAPSHOTTER).map(|(key, value)| (key.clone(), value.clone())));
        let of = ObjectReference {
            kind: Some("VolumeSnapshot".into()),
            name: Some(run.name(claim)),
            namespace: Some(work.to_owned()),
            ..ObjectReference::default()
        };
        let spec = VolumeSnapshotContentSpec {
            deletion_policy: "Retain".into(),
            driver: content.spec.driver.clone(),
            source: VolumeSnapshotContentSource { snapshot_handle: Some(handle?), volume_handle: None },
            volume_snapshot_class_name: class,
            volume_snapshot_ref: of,
        };
        return Some(Action::create(Kind::Content, &VolumeSnapshotContent { metadata, spec, status: None }));
    }
    let Some(twin) = seen.twins.get(claim) else {
        let metadata = run.metadata(Some(work), claim, "twin");
        let source = VolumeSnapshotSource { volume_snapshot_content_name: Some(run.name(claim)), ..Default::default() };
        let spec = VolumeSnapshotSpec { source, volume_snapshot_class_name: class };
        return Some(Action::create(Kind::Snapshot, &VolumeSnapshot { metadata, spec, status: None }));
    };
    // A claim that comes earlier fails first, and the provisioner tries it again only seconds later.
    if !twin.is_ready() {
        return None;
    }
    let source = seen.volumes.get(claim)?;
    let Some(held) = seen.work_claims.get(claim) else {
        let claim = work_claim(backup, claim, source, status.restore_size.as_ref(), work)?;
        return Some(Action::create(Kind::Claim, &claim));
    };
    if !seen.holders.contains_key(claim) {
        let near = source.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
        let placement = Placement { near, ..Placement::default() };
        let pod = holder(run.metadata(Some(work), claim, "holder"), &[held], &placement, settings);
        return Some(Action::create(Kind::Pod, &pod));
    }
    mark_volume(backup, claim, seen)
}

/// A claim from the twin, as large as both the snapshot and its source.
fn work_claim(
    backup: &Backup,
    claim: &str,
    source: &PersistentVolume,
    restore_size: Option<&Quantity>,
    work: &str,
) -> Option<PersistentVolumeClaim> {
    let run = run_of(backup);
    let of = source.spec.as_ref()?;
    let class = of.storage_class_name.clone().unwrap_or_default();
    let capacity = of.capacity.as_ref().and_then(|capacity| capacity.get("storage"));
    let largest = [restore_size, capacity].into_iter().flatten().max_by_key(|size| bytes(&size.0))?.clone();
    let mode = if backup.spec.read_only_many.contains(&class) { "ReadOnlyMany" } else { "ReadWriteOnce" };
    let twin = TypedLocalObjectReference {
        api_group: Some("snapshot.storage.k8s.io".into()),
        kind: "VolumeSnapshot".into(),
        name: run.name(claim),
    };
    let resources =
        VolumeResourceRequirements { requests: Some([("storage".to_owned(), largest)].into()), ..Default::default() };
    let spec = PersistentVolumeClaimSpec {
        access_modes: Some(vec![mode.into()]),
        data_source: Some(twin),
        resources: Some(resources),
        storage_class_name: Some(class),
        volume_mode: Some("Block".into()),
        ..PersistentVolumeClaimSpec::default()
    };
    let metadata = run.metadata(Some(work), claim, "claim");
    Some(PersistentVolumeClaim { metadata, spec: Some(spec), status: None })
}

/// Labels the volume of our claim, so that it is found when the claim is gone.
fn mark_volume(backup: &Backup, claim: &str, seen: &Observed) -> Option<Action> {
    let volume = seen.work_volumes.get(claim)?;
    if volume.labels().contains_key(milkrun_resources::labels::RUN) {
        return None;
    }
    let metadata = run_of(backup).metadata(None, claim, "volume");
    let patch = json!({"metadata": {"labels": metadata.labels, "annotations": metadata.annotations}});
    Some(Action::Merge(Which::of(Kind::Volume, volume), patch))
}
