//! Removing snapshots and their contents, so that the storage's snapshots go with them.

use jiff::Timestamp;
use kube::{Resource, ResourceExt};
use milkrun_resources::{Backup, labels};
use serde_json::{Value, json};

use super::observe::{SOURCE, run_of};
use crate::actions::{Action, Kind, Which};
use crate::snapshots::{VolumeSnapshot, VolumeSnapshotContent};

/// csi-snapshotter has this on a content while it cuts the snapshot.
pub(super) const BEING_CREATED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-created";
/// Tells csi-snapshotter that a content may go. The snapshot controller writes it when it sees the snapshot go.
const BEING_DELETED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted";
/// The snapshot controller's finalizer of a member of a group.
const MEMBER_PROTECTION: &str = "snapshot.storage.kubernetes.io/volumesnapshot-in-group-protection";
/// When we have touched a content last, in steps of [`NUDGE_EVERY_S`].
const NUDGED: &str = "milkrun.dev/nudged";
const NUDGE_EVERY_S: i64 = 5;

/// Labels and annotations of the content of an application's snapshot.
pub(super) fn ours(backup: &Backup, claim: &str) -> Value {
    let ours = run_of(backup).metadata(None, claim, SOURCE);
    json!({"labels": ours.labels, "annotations": ours.annotations})
}

/// Lets a content go with its snapshot, and be found by its labels when that is gone; nothing if it is so.
pub(super) fn goes_along(backup: &Backup, claim: &str, content: &VolumeSnapshotContent) -> Option<Action> {
    let kept = content.spec.deletion_policy != "Delete";
    let patch = json!({"metadata": ours(backup, claim), "spec": {"deletionPolicy": "Delete"}});
    (kept || !content.labels().contains_key(labels::RUN))
        .then(|| Action::Merge(Which::of(Kind::Content, content), patch))
}

/// Removes a snapshot. A member of a group whose group went before the snapshot controller knew the two together is let go of, too.
pub(super) fn delete_snapshot(snapshot: &VolumeSnapshot) -> Option<Action> {
    Action::delete(Kind::Snapshot, snapshot).or_else(|| release(Kind::Snapshot, snapshot, MEMBER_PROTECTION))
}

/// Removes a content whose snapshot is gone.
pub(super) fn delete_alone(content: &VolumeSnapshotContent, now: Timestamp) -> Option<Action> {
    if !content.annotations().contains_key(BEING_DELETED) {
        let patch = json!({"metadata": {"annotations": {BEING_DELETED: "yes"}}});
        return Some(Action::Merge(Which::of(Kind::Content, content), patch));
    }
    Action::delete(Kind::Content, content).or_else(|| nudge(Kind::Content, content, BEING_CREATED, now))
}

/// Lets csi-snapshotter look at a content again that is deleted: one that was deleted while its snapshot was cut, it was seen to leave
/// for three minutes, and to remove as soon as somebody touched it.
pub(super) fn nudge<K: Resource>(kind: Kind, content: &K, being_created: &str, now: Timestamp) -> Option<Action> {
    content.meta().deletion_timestamp.as_ref()?;
    (!content.annotations().contains_key(being_created)).then(|| touch(kind, content, now)).flatten()
}

/// Lets csi-snapshotter look at a content again, every few seconds.
pub(super) fn touch<K: Resource>(kind: Kind, content: &K, now: Timestamp) -> Option<Action> {
    let at = (now.as_second() / NUDGE_EVERY_S).to_string();
    let patch = json!({"metadata": {"annotations": {NUDGED: at}}});
    (content.annotations().get(NUDGED) != Some(&at)).then(|| Action::Merge(Which::of(kind, content), patch))
}

/// Lets go of an object of ours that is deleted, where nobody else would: all that needed it is gone.
pub(super) fn release<K: Resource>(kind: Kind, object: &K, finalizer: &str) -> Option<Action> {
    let finalizers = object.finalizers();
    let rest: Vec<&String> = finalizers.iter().filter(|other| *other != finalizer).collect();
    let patch = json!({"metadata": {"finalizers": rest, "resourceVersion": object.meta().resource_version}});
    (rest.len() < finalizers.len()).then(|| Action::Merge(Which::of(kind, object), patch))
}
