//! Claims of one driver whose snapshots are cut at one moment. The snapshot controller finds them by a label, which they have until
//! then. The group is kept as long as the run: a snapshot that is taken out of its group is never deleted by the storage.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt;
use milkrun_resources::backup::{BackupStep, GroupStatus, VolumeStatus};
use milkrun_resources::{Backup, BackupStatus, labels};
use serde_json::{Value, json};

use super::expose::GITOPS;
use super::observe::{Observed, run_of};
use super::planned::Plan;
use super::removal::{delete_alone, delete_snapshot, goes_along, nudge, ours, touch};
use super::select::{driver_of, is_templated};
use crate::actions::{Action, Kind, Which};
use crate::group_snapshots::{
    VolumeGroupSnapshot, VolumeGroupSnapshotClass, VolumeGroupSnapshotContent, VolumeGroupSnapshotSource,
    VolumeGroupSnapshotSpec,
};

/// Marks the class of group snapshots that is taken where a driver has several.
const DEFAULT_CLASS: &str = "groupsnapshot.storage.kubernetes.io/is-default-class";
/// The snapshot controller's finalizer of a group. It puts it there itself once the group knows its content; one that goes before that
/// would get its content afterwards. The controller takes it away again.
const PROTECTION: &str = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-bound-protection";
/// Tells csi-snapshotter that a group's content may go. The snapshot controller writes it when it sees the group go, if it knows that
/// the two belong together by then.
const BEING_DELETED: &str = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-deleted";
/// csi-snapshotter has this on a content while it cuts the group.
const BEING_CREATED: &str = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-created";

/// The class of group snapshots of a driver.
fn class<'a>(classes: &'a [VolumeGroupSnapshotClass], driver: &str) -> Option<&'a VolumeGroupSnapshotClass> {
    let usable = |class: &&VolumeGroupSnapshotClass| class.driver == driver && !is_templated(&class.parameters);
    let order = |class: &&VolumeGroupSnapshotClass| {
        (class.annotations().get(DEFAULT_CLASS).map(String::as_str) != Some("true"), class.name_any())
    };
    classes.iter().filter(usable).min_by_key(order)
}

/// Which claims are cut together: those of one driver, where it has a class of group snapshots.
pub(super) fn choose(
    backup: &Backup,
    volumes: &BTreeMap<String, VolumeStatus>,
    seen: &Observed,
) -> BTreeMap<String, GroupStatus> {
    let mut of_driver: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for claim in volumes.keys().filter(|_| !backup.spec.separate_snapshots) {
        if let Some(driver) = seen.volumes.get(claim).and_then(driver_of) {
            of_driver.entry(driver.to_owned()).or_default().push(claim.clone());
        }
    }
    let several = of_driver.into_iter().filter(|(_, claims)| claims.len() > 1);
    let group = |(driver, claims): (String, Vec<String>)| {
        let class = class(&seen.group_classes, &driver)?.name_any();
        Some((run_of(backup).name(&format!("group/{driver}")), GroupStatus { class, claims, swept: false }))
    };
    several.filter_map(group).collect()
}

/// The group that a claim is cut with.
pub(super) fn group_of<'a>(status: &'a BackupStatus, claim: &str) -> Option<&'a String> {
    status.groups.iter().find(|(_, group)| group.claims.iter().any(|member| member == claim)).map(|(name, _)| name)
}

fn change_label(backup: &Backup, claim: &str, group: &str, value: &Value) -> Action {
    let which = Which { kind: Kind::Claim, namespace: backup.namespace(), name: claim.to_owned() };
    Action::Merge(which, json!({"metadata": {"labels": {labels::of_group(group): value}}}))
}

/// Puts the labels on the claims that have none yet.
///
/// # Errors
/// In words: a claim is gone.
pub(super) fn label(backup: &Backup, status: &BackupStatus, seen: &Observed) -> Result<Vec<Action>, String> {
    let mut actions = Vec::new();
    for (name, group) in &status.groups {
        for claim in &group.claims {
            let found = seen.groups.claims.get(claim).ok_or_else(|| format!("claim {claim} is gone"))?;
            if !found.labels().contains_key(&labels::of_group(name)) {
                actions.push(change_label(backup, claim, name, &json!("")));
            }
        }
    }
    Ok(actions)
}

/// Takes the labels away, and notes it once none is left.
pub(super) fn sweep(backup: &Backup, status: &mut BackupStatus, seen: &Observed) -> Vec<Action> {
    let mut actions = Vec::new();
    for (name, group) in status.groups.iter_mut().filter(|(_, group)| !group.swept) {
        let has = |claim: &&String| {
            seen.groups.claims.get(*claim).is_some_and(|found| found.labels().contains_key(&labels::of_group(name)))
        };
        let left: Vec<&String> = group.claims.iter().filter(has).collect();
        actions.extend(left.iter().map(|claim| change_label(backup, claim, name, &Value::Null)));
        group.swept = left.is_empty();
    }
    actions
}

/// The snapshot of a group.
fn snapshot(backup: &Backup, name: &str, group: &GroupStatus) -> Action {
    let mut metadata = run_of(backup).metadata(backup.namespace().as_deref(), "", "group");
    metadata.name = Some(name.to_owned());
    metadata.finalizers = Some(vec![PROTECTION.to_owned()]);
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.extend(GITOPS.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let selector = LabelSelector {
        match_labels: Some([(labels::of_group(name), String::new())].into()),
        ..LabelSelector::default()
    };
    let source = VolumeGroupSnapshotSource { selector };
    let spec = VolumeGroupSnapshotSpec { source, volume_group_snapshot_class_name: Some(group.class.clone()) };
    Action::create(Kind::Group, &VolumeGroupSnapshot { metadata, spec, status: None })
}

/// What went wrong last with the snapshot of a group.
pub(super) fn error_of_group(name: &str, group: &GroupStatus, seen: &Observed) -> Option<String> {
    let of_group = seen.groups.snapshots.get(name).and_then(|group| group.status.as_ref()?.error.as_ref());
    let of_content = seen.groups.contents.get(name).and_then(|content| content.status.as_ref()?.error.as_ref());
    let why = of_content.or(of_group)?.message.as_ref()?;
    let claims = group.claims.join(", ");
    Some(format!("the group snapshot of {claims}: {why} (spec.separateSnapshots takes one of each claim)"))
}

/// Takes the snapshot of a group, and notes when it was cut.
///
/// # Errors
/// In words: it is not of these claims, or gone.
pub(super) fn cut_group(
    backup: &Backup,
    name: &str,
    group: &GroupStatus,
    seen: &Observed,
    plan: &mut Plan,
) -> Result<(), String> {
    let claims = group.claims.join(", ");
    let is_cut = |claim: &String| plan.status.volumes.get(claim).is_some_and(|volume| volume.moment.is_some());
    let was_cut = group.claims.iter().any(is_cut);
    let content = seen.groups.contents.get(name);
    match seen.groups.snapshots.get(name) {
        None if !was_cut && content.is_none() => plan.actions.push(snapshot(backup, name, group)),
        Some(found) if found.metadata.deletion_timestamp.is_none() => {}
        _ => return Err(format!("somebody removed the group snapshot of {claims}")),
    }
    let handle = |claim: &String| Some(seen.volumes.get(claim)?.spec.as_ref()?.csi.as_ref()?.volume_handle.as_str());
    if let Some(content) = content {
        let wanted: BTreeSet<Option<&str>> = group.claims.iter().map(handle).collect();
        let found = content.spec.source.volume_handles.iter().map(|handle| Some(handle.as_str()));
        if found.collect::<BTreeSet<_>>() != wanted {
            let why = "a claim, its volume or its label changed meanwhile";
            return Err(format!("the group snapshot of {claims} is not of their volumes: {why}"));
        }
    }
    for claim in &group.claims {
        let moment = handle(claim).and_then(|handle| content?.cut(handle));
        if let Some(volume) = plan.status.volumes.get_mut(claim) {
            volume.moment = moment;
        }
    }
    Ok(())
}

/// Keeps the storage's groups when somebody removes their objects under the run. One that is on its way is left to the storage.
pub(super) fn protect(backup: &Backup, seen: &Observed) -> Vec<Action> {
    let stays = |content: &&VolumeGroupSnapshotContent| content.metadata.deletion_timestamp.is_none();
    let contents = seen.groups.contents.values().filter(stays);
    contents.filter(|content| content.spec.deletion_policy != "Retain").map(|c| policy(backup, c, "Retain")).collect()
}

fn policy(backup: &Backup, content: &VolumeGroupSnapshotContent, policy: &str) -> Action {
    let patch = json!({"metadata": ours(backup, ""), "spec": {"deletionPolicy": policy}});
    Action::Merge(Which::of(Kind::GroupContent, content), patch)
}

/// Lets csi-snapshotter look again at members that are not ready though their group is. The snapshot controller writes "not ready" over
/// its "ready" as long as the group is not, and csi-snapshotter 8.7 takes no notice of that for a quarter of an hour.
pub(super) fn wake(status: &BackupStatus, seen: &Observed, now: Timestamp) -> Vec<Action> {
    let is_ready = |name: &String| {
        let content = seen.groups.contents.get(name).and_then(|content| content.status.as_ref());
        content.and_then(|status| status.ready_to_use) == Some(true)
    };
    let groups = status.groups.iter().filter(|(name, _)| is_ready(name)).flat_map(|(_, group)| &group.claims);
    let late = groups.filter(|claim| !seen.is_ready(claim)).filter_map(|claim| seen.contents.get(claim));
    let unready = late.filter(|content| content.status.as_ref().and_then(|status| status.ready_to_use) != Some(true));
    unready.filter_map(|content| touch(Kind::Content, content, now)).collect()
}

/// Whether snapshots of groups are waited for.
pub(super) fn is_under_way(status: &BackupStatus, seen: &Observed) -> bool {
    let waits = matches!(status.step, BackupStep::Snapshot | BackupStep::Move);
    waits && status.groups.values().flat_map(|group| &group.claims).any(|claim| !seen.is_ready(claim))
}

/// Whether the group of a claim will still make its snapshot.
pub(super) fn makes(status: &BackupStatus, claim: &str, seen: &Observed) -> bool {
    let group = group_of(status, claim).and_then(|name| seen.groups.snapshots.get(name));
    group.is_some_and(|group| group.metadata.deletion_timestamp.is_none())
}

/// Whether the storage is about to delete the snapshot of a claim with its group.
pub(super) fn goes(status: &BackupStatus, claim: &str, seen: &Observed) -> bool {
    let content = group_of(status, claim).and_then(|name| seen.groups.contents.get(name));
    content.is_some_and(|content| content.metadata.deletion_timestamp.is_some())
}

/// What is to be removed next of a group whose volumes are all given back: contents are to go with their objects; then the group
/// goes, which takes its members along; then whatever stayed.
pub(super) fn remove(backup: &Backup, name: &str, group: &GroupStatus, seen: &Observed, now: Timestamp) -> Vec<Action> {
    let content = seen.groups.contents.get(name);
    let kept = content.filter(|content| content.spec.deletion_policy != "Delete");
    let mut actions: Vec<Action> = kept.map(|content| policy(backup, content, "Delete")).into_iter().collect();
    let contents = group.claims.iter().filter_map(|claim| Some((claim, seen.contents.get(claim)?)));
    actions.extend(contents.filter_map(|(claim, content)| goes_along(backup, claim, content)));
    if !actions.is_empty() {
        return actions;
    }
    let nudged = || nudge(Kind::GroupContent, content?, BEING_CREATED, now);
    if let Some(found) = seen.groups.snapshots.get(name) {
        return Action::delete(Kind::Group, found).or_else(nudged).into_iter().collect();
    }
    // A group that went before it knew its content has left it behind.
    if let Some(content) = content {
        if !content.annotations().contains_key(BEING_DELETED) {
            let patch = json!({"metadata": {"annotations": {BEING_DELETED: "yes"}}});
            actions.push(Action::Merge(Which::of(Kind::GroupContent, content), patch));
        }
        actions.extend(Action::delete(Kind::GroupContent, content).or_else(nudged));
    }
    let left = |claim: &String| match (seen.snapshots.get(claim), seen.contents.get(claim)) {
        (Some(member), _) => delete_snapshot(member),
        (None, content) => content.and_then(|content| delete_alone(content, now)),
    };
    actions.extend(group.claims.iter().filter_map(left));
    actions
}
