//! What becomes of groups in the small world.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::world::World;
use crate::actions::{Kind, Which};
use crate::group_snapshots::{VolumeGroupSnapshot, VolumeGroupSnapshotContent};
use crate::snapshots::VolumeSnapshot;

/// The snapshot controller's finalizer of a member.
const PROTECTION: &str = "snapshot.storage.kubernetes.io/volumesnapshot-in-group-protection";

impl World {
    /// What the snapshot controller makes of groups in time: their content, and their members once it is cut.
    pub(super) fn group_controller(&mut self) {
        for (name, group) in self.seen.groups.snapshots.clone() {
            let cut = self.is_due(Kind::Group, &name, self.storage.cut);
            let content = VolumeGroupSnapshotContent::name_for(&group.uid().unwrap());
            let bound = json!({"boundVolumeGroupSnapshotContentName": content});
            self.seen.groups.snapshots.get_mut(&name).unwrap().status = serde_json::from_value(bound).unwrap();
            let labels = group.spec.source.selector.match_labels.clone().unwrap_or_default();
            let selected = |claim: &PersistentVolumeClaim| labels.iter().all(|(k, v)| claim.labels().get(k) == Some(v));
            let claims: Vec<String> =
                self.seen.groups.claims.values().filter(|claim| selected(claim)).map(ResourceExt::name_any).collect();
            let handle = |claim: &String| format!("h-pv-{claim}");
            let content = self.seen.groups.contents.entry(name.clone()).or_insert_with(|| {
                let spec = json!({"deletionPolicy": "Delete", "volumeGroupSnapshotRef": {"name": name},
                    "source": {"volumeHandles": claims.iter().map(handle).collect::<Vec<_>>()}});
                VolumeGroupSnapshotContent::new(&content, serde_json::from_value(spec).unwrap())
            });
            if !cut {
                let status = json!({"error": {"message": "the array is full"}});
                content.status = serde_json::from_value(status).unwrap();
            } else if content.status.as_ref().is_none_or(|status| status.creation_time.is_none()) {
                let info = |claim: &String| json!({"volumeHandle": handle(claim), "creationTime": 1_767_225_600_000_000_000_i64});
                let list: Vec<Value> = claims.iter().map(info).collect();
                let status =
                    json!({"creationTime": "2026-01-01T00:00:00Z", "readyToUse": true, "volumeSnapshotInfoList": list});
                content.status = serde_json::from_value(status).unwrap();
                for claim in claims {
                    let source = json!({"source": {"persistentVolumeClaimName": claim}});
                    let member =
                        VolumeSnapshot::new(&format!("member-{claim}"), serde_json::from_value(source).unwrap());
                    self.ages.remove(&(Kind::Snapshot, claim.clone()));
                    self.seen.snapshots.insert(claim, member);
                }
            }
        }
    }

    pub(super) fn make_group(&mut self, which: &Which, object: Value) {
        assert!(self.seen.mounts.is_empty() || self.frozen, "cut while it is written");
        let mut group: VolumeGroupSnapshot = serde_json::from_value(object).unwrap();
        group.metadata.uid = Some("uid-group".into());
        self.ages.remove(&(Kind::Group, which.name.clone()));
        self.seen.groups.snapshots.insert(which.name.clone(), group);
    }

    /// Changes of claims' labels, and of groups' contents.
    pub(super) fn merge_group(&mut self, which: &Which, patch: &Value) {
        if which.kind == Kind::Claim {
            let claim = self.seen.groups.claims.get_mut(&which.name).unwrap();
            for (key, value) in patch["metadata"]["labels"].as_object().unwrap() {
                match value.as_str() {
                    Some(value) => claim.labels_mut().insert(key.clone(), value.to_owned()),
                    None => claim.labels_mut().remove(key),
                };
            }
        }
        if which.kind == Kind::GroupContent {
            let content = self.seen.groups.contents.values_mut().find(|c| c.name_any() == which.name).unwrap();
            if let Some(policy) = patch["spec"]["deletionPolicy"].as_str() {
                content.spec.deletion_policy = policy.to_owned();
            }
            for key in patch["metadata"]["annotations"].as_object().into_iter().flat_map(serde_json::Map::keys) {
                content.annotations_mut().insert(key.clone(), String::new());
            }
        }
        if which.kind == Kind::Snapshot && patch["metadata"]["finalizers"].as_array().is_some_and(Vec::is_empty) {
            self.seen.snapshots.retain(|_, member| member.name_any() != which.name);
        }
    }

    pub(super) fn remove_group(&mut self, which: &Which) {
        assert!(self.seen.work_volumes.is_empty(), "clones still need the snapshots");
        for content in self.seen.groups.contents.values() {
            assert_eq!(content.spec.deletion_policy, "Delete", "the storage's group would stay");
        }
        if which.kind == Kind::GroupContent {
            let content = self.seen.groups.contents.values().next().unwrap();
            let may_go = content
                .annotations()
                .contains_key("groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-deleted");
            assert!(may_go, "csi-snapshotter would leave it");
            self.seen.groups.contents.clear();
            return;
        }
        for content in self.seen.contents.values() {
            assert_eq!(content.spec.deletion_policy, "Delete", "the member's content would stay");
        }
        self.seen.groups.snapshots.clear();
        if !self.storage.forgets {
            self.seen.groups.contents.clear();
            self.seen.snapshots.clear();
            self.seen.contents.clear();
        }
    }

    /// A member that is left by its group: it goes once it is let go of, and leaves its content.
    pub(super) fn remove_member(&mut self, claim: &str) {
        let member = self.seen.snapshots.get_mut(claim).unwrap();
        member.metadata.deletion_timestamp = Some(crate::steps::time(crate::walk::now()));
        member.metadata.finalizers = Some(vec![PROTECTION.to_owned()]);
    }
}
