//! A small world that answers as controllers and the coordinator do.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use milkrun_proto::control::v1 as control;
use milkrun_resources::backup::BackupStep;
use milkrun_resources::{Backup, BackupSpec, BackupStatus};
use serde_json::{Value, json};

use super::super::plan;
use crate::Settings;
use crate::actions::{Action, Kind, Which};
use crate::backup::freeze::{Due, due};
use crate::backup::{Answer, Observed};
use crate::group_snapshots::VolumeGroupSnapshotClass;
use crate::memory::Memory;
use crate::names::claim_of;
use crate::run::{Call, RunSeen};
use crate::snapshots::{VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent};
pub(super) use crate::walk::{Walked, now, settings};

/// What is in the cluster and at the coordinator.
pub(super) struct World {
    pub(super) backup: Backup,
    pub(super) seen: Observed,
    pub(super) sources: Vec<String>,
    /// What is known of their claims.
    pub(super) facts: Vec<String>,
    pub(super) finished: bool,
    /// The operator's process.
    pub(super) process: &'static str,
    /// Whether file systems are frozen.
    pub(super) frozen: bool,
    /// How many volumes may be exposed at once.
    pub(super) exposed_max: usize,
    pub(super) memory: Memory,
    /// The operator's clock. The API server's stands still.
    pub(super) clock: Timestamp,
    pub(super) storage: Storage,
    /// How often each object was looked at since it was made.
    pub(super) ages: BTreeMap<(Kind, String), u32>,
    /// Names of contents that somebody has touched since they were made.
    pub(super) touched: BTreeSet<String>,
}

/// What the storage does late: after so many looks. The largest number is never.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Storage {
    /// A snapshot is cut; before that it has an error.
    pub(super) cut: u32,
    /// A snapshot is ready.
    pub(super) ready: u32,
    /// Its twin is ready.
    pub(super) twin: u32,
    /// A volume is made from it.
    pub(super) made: u32,
    /// The volume's holder runs.
    pub(super) runs: u32,
    /// Whether it cuts groups.
    pub(super) groups: bool,
    /// Whether a group that goes leaves its content, its members and theirs behind.
    pub(super) forgets: bool,
}

pub(super) fn volume(name: &str) -> PersistentVolume {
    let csi =
        CSIPersistentVolumeSource { driver: "d".into(), volume_handle: format!("h-{name}"), ..Default::default() };
    let spec = PersistentVolumeSpec {
        csi: Some(csi),
        capacity: Some([("storage".to_owned(), Quantity("1Gi".into()))].into()),
        storage_class_name: Some("fast".into()),
        persistent_volume_reclaim_policy: Some("Retain".into()),
        ..Default::default()
    };
    let mut volume = PersistentVolume { spec: Some(spec), ..Default::default() };
    volume.metadata.name = Some(name.to_owned());
    volume
}

pub(super) fn claim(name: &str, phase: &str) -> PersistentVolumeClaim {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"volumeName": format!("pv-{name}"), "storageClassName": "fast"},
        "status": {"phase": phase},
    }))
    .unwrap()
}

impl World {
    pub(super) fn new(claims: &[&str]) -> Self {
        let mut backup = Backup::new("b", serde_json::from_value::<BackupSpec>(json!({"repository": "prod"})).unwrap());
        backup.metadata.namespace = Some("shop".into());
        backup.metadata.uid = Some("uid-1".into());
        let class = VolumeSnapshotClass { driver: "d".into(), ..Default::default() };
        let seen = Observed {
            claims: claims.iter().map(|name| claim(name, "Bound")).collect(),
            volumes: claims.iter().map(|name| ((*name).to_owned(), volume(&format!("pv-{name}")))).collect(),
            snapshot_classes: vec![class],
            nodes: Some(vec!["n".into()]),
            attached: Some(Vec::new()),
            ..Observed::default()
        };
        Self {
            backup,
            seen,
            sources: Vec::new(),
            facts: Vec::new(),
            finished: false,
            process: "this one",
            frozen: false,
            exposed_max: 16,
            memory: Memory::default(),
            clock: now(),
            storage: Storage::default(),
            ages: BTreeMap::new(),
            touched: BTreeSet::new(),
        }
    }

    /// The same on this storage.
    pub(super) fn on(storage: Storage) -> Self {
        let mut world = Self { storage, ..Self::new(&["a", "b"]) };
        if storage.groups {
            world.seen.group_classes = vec![VolumeGroupSnapshotClass { driver: "d".into(), ..Default::default() }];
            for claim in &world.seen.claims {
                world.seen.groups.claims.insert(claim.name_any(), claim.clone());
            }
        }
        world
    }

    pub(super) fn is_due(&mut self, kind: Kind, claim: &str, after: u32) -> bool {
        let age = self.ages.entry((kind, claim.to_owned())).or_default();
        *age += 1;
        *age > after
    }

    /// What controllers make of objects in time.
    fn controllers(&mut self) {
        self.group_controller();
        for claim in self.seen.snapshots.keys().cloned().collect::<Vec<_>>() {
            let age = |world: &Self| world.ages.get(&(Kind::Snapshot, claim.clone())).copied().unwrap_or_default();
            // A member of a group is there when it was cut.
            let after = if self.storage.groups { 0 } else { self.storage.cut };
            let is_new = age(self) <= after;
            let (cut, ready) = (self.is_due(Kind::Snapshot, &claim, after), age(self) > self.storage.ready);
            let content = format!("content-{claim}");
            // A member that was not ready at once is only ready when somebody has touched its content.
            let ready = ready && (!self.storage.groups || self.storage.ready == 0 || self.touched.contains(&content));
            let status = if cut {
                json!({"boundVolumeSnapshotContentName": content, "creationTime": "2026-01-01T00:00:00Z",
                    "readyToUse": ready, "restoreSize": "1Gi"})
            } else {
                json!({"error": {"message": "the array is full"}})
            };
            self.seen.snapshots.get_mut(&claim).unwrap().status = serde_json::from_value(status).unwrap();
            if cut && is_new {
                let content = json!({
                    "metadata": {"name": content},
                    "spec": {"deletionPolicy": "Delete", "driver": "d", "source": {}, "volumeSnapshotRef": {}},
                    "status": {"snapshotHandle": "s"},
                });
                self.seen.contents.insert(claim.clone(), serde_json::from_value(content).unwrap());
            }
        }
        for claim in self.seen.twins.keys().cloned().collect::<Vec<_>>() {
            // Its content was made just before it.
            let ready = self.is_due(Kind::Content, &claim, self.storage.twin);
            let status = json!({"readyToUse": ready, "restoreSize": "1Gi"});
            self.seen.twins.get_mut(&claim).unwrap().status = serde_json::from_value(status).unwrap();
        }
        for claim in self.seen.work_claims.keys().cloned().collect::<Vec<_>>() {
            if self.is_due(Kind::Claim, &claim, self.storage.made) && !self.seen.work_volumes.contains_key(&claim) {
                let name = format!("work-{claim}");
                let made = self.seen.work_claims.get_mut(&claim).unwrap();
                made.spec.as_mut().unwrap().volume_name = Some(name.clone());
                self.seen.work_volumes.insert(claim, volume(&name));
            }
        }
        for claim in self.seen.holders.keys().cloned().collect::<Vec<_>>() {
            let runs = self.is_due(Kind::Pod, &claim, self.storage.runs) && self.seen.work_volumes.contains_key(&claim);
            let pod = self.seen.holders.get_mut(&claim).unwrap();
            pod.spec.as_mut().unwrap().node_name = runs.then(|| "n".to_owned());
            let phase = if runs { "Running" } else { "Pending" };
            pod.status = serde_json::from_value(json!({"phase": phase})).unwrap();
        }
    }

    /// The coordinator, as it is asked at each look.
    pub(super) fn look(&mut self) {
        self.controllers();
        let status = self.backup.status.clone().unwrap_or_default();
        let asked = status.step < BackupStep::CleanUp && status.step > BackupStep::Select && status.failure.is_none();
        let volumes = self.sources.iter().map(|name| control::VolumeState {
            name: name.clone(),
            done: true,
            ..Default::default()
        });
        let state = if self.finished { control::run::State::Done } else { control::run::State::Running };
        let run = control::Run {
            run: vec![1, 2].into(),
            state: state.into(),
            volumes: volumes.collect(),
            point: "p".into(),
            ..Default::default()
        };
        self.seen.run = if asked { RunSeen::Opened(Box::new(run)) } else { RunSeen::NotOpened };
        (self.seen.frozen, self.seen.thawed) = (Answer::NotAsked, Answer::NotAsked);
        match due(&self.backup, &status, self.process) {
            Due::Nothing => {}
            Due::Freeze => (self.frozen, self.seen.frozen) = (true, Answer::Given(())),
            Due::Thaw => {
                let thawed = control::Thawed { early: !self.frozen, held_ms: 40, reason: "too late".into() };
                let mounts = status.freeze.as_ref().map_or(0, |freeze| freeze.mounts.len());
                (self.frozen, self.seen.thawed) = (false, Answer::Given(vec![thawed; mounts]));
            }
        }
        if status.step >= BackupStep::Move {
            self.seen.take_slots("uid-1", &status, &self.memory, self.exposed_max);
        }
    }

    pub(super) fn act(&mut self, action: &Action) {
        match action {
            Action::Create(which, object) => self.make(which, object.clone()),
            Action::Merge(which, patch) => self.merge(which, patch),
            Action::Delete(which, _) => self.remove(which),
        }
    }

    pub(super) fn call(&mut self, call: &Call) {
        match call {
            Call::AddSource(request) => {
                let source = request.source.clone().unwrap();
                if !self.sources.contains(&source.name) {
                    self.sources.push(source.name);
                    self.facts.push(source.claim);
                }
            }
            Call::Finish(_) => self.finished = true,
            Call::Cancel(_) => {}
            Call::AddTarget(_) => panic!("a backup has no targets"),
        }
    }

    /// What controllers make of a new object.
    fn make(&mut self, which: &Which, object: Value) {
        let of = |object: &Value| object["metadata"]["annotations"]["milkrun.dev/claim"].as_str().unwrap().to_owned();
        let claim = of(&object);
        let work = which.namespace.as_deref() == Some("milkrun-work");
        match which.kind {
            Kind::Group => self.make_group(which, object),
            Kind::GroupContent => panic!("the snapshot controller makes it"),
            Kind::Snapshot => {
                assert!(work || !self.storage.groups, "a member of a group is made by the snapshot controller");
                assert!(work || self.seen.mounts.is_empty() || self.frozen, "cut while it is written");
                let mut snapshot: VolumeSnapshot = serde_json::from_value(object).unwrap();
                if work {
                    let status =
                        json!({"boundVolumeSnapshotContentName": which.name, "readyToUse": true, "restoreSize": "1Gi"});
                    snapshot.status = serde_json::from_value(status).unwrap();
                } else {
                    self.ages.remove(&(Kind::Snapshot, claim.clone()));
                }
                let all = if work { &mut self.seen.twins } else { &mut self.seen.snapshots };
                all.insert(claim, snapshot);
            }
            Kind::Content => {
                let content: VolumeSnapshotContent = serde_json::from_value(object).unwrap();
                assert_eq!(content.spec.deletion_policy, "Retain", "a twin never owns the storage's snapshot");
                self.ages.remove(&(Kind::Content, claim.clone()));
                self.seen.twin_contents.insert(claim, content);
            }
            Kind::Claim => {
                assert!(self.seen.twins[&claim].is_ready(), "it would fail first");
                self.ages.remove(&(Kind::Claim, claim.clone()));
                self.seen.work_claims.insert(claim, serde_json::from_value(object).unwrap());
            }
            Kind::Pod => {
                let mut pod: Pod = serde_json::from_value(object).unwrap();
                pod.metadata.uid = Some("pod-uid".into());
                pod.metadata.creation_timestamp = Some(crate::steps::time(now()));
                self.ages.remove(&(Kind::Pod, claim.clone()));
                self.seen.holders.insert(claim, pod);
            }
            Kind::Volume => panic!("a backup makes no volume"),
        }
    }

    fn merge(&mut self, which: &Which, patch: &Value) {
        self.merge_group(which, patch);
        if patch["metadata"]["annotations"]["milkrun.dev/nudged"].is_string() {
            self.touched.insert(which.name.clone());
        }
        let content =
            self.seen.contents.values_mut().find(|c| which.kind == Kind::Content && c.name_any() == which.name);
        if let Some(content) = content {
            if let Some(policy) = patch["spec"]["deletionPolicy"].as_str() {
                content.spec.deletion_policy = policy.to_owned();
            }
            let labels = patch["metadata"]["labels"].as_object().cloned().unwrap_or_default();
            let labels = labels.into_iter().map(|(key, value)| (key, value.as_str().unwrap().to_owned()));
            content.labels_mut().extend(labels);
            for key in patch["metadata"]["annotations"].as_object().into_iter().flat_map(serde_json::Map::keys) {
                content.annotations_mut().insert(key.clone(), String::new());
            }
        }
        for volume in
            self.seen.work_volumes.values_mut().filter(|v| which.kind == Kind::Volume && v.name_any() == which.name)
        {
            if let Some(policy) = patch["spec"]["persistentVolumeReclaimPolicy"].as_str() {
                volume.spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some(policy.to_owned());
            }
            let labels = patch["metadata"]["labels"].as_object().cloned().unwrap_or_default();
            let labels = labels.into_iter().map(|(key, value)| (key, value.as_str().unwrap().to_owned()));
            volume.labels_mut().extend(labels);
        }
    }

    fn remove(&mut self, which: &Which) {
        let named = |name: String| name == which.name;
        let work = which.namespace.as_deref() == Some("milkrun-work");
        match which.kind {
            Kind::Group | Kind::GroupContent => self.remove_group(which),
            Kind::Pod => self.seen.holders.retain(|_, o| !named(o.name_any())),
            Kind::Claim => {
                let claim = self.seen.work_claims.values().find(|c| c.name_any() == which.name).unwrap();
                let of = claim_of(&claim.metadata);
                assert!(!self.seen.holders.contains_key(&of), "a holder still uses the claim");
                if let Some(volume) = self.seen.work_volumes.get(&of) {
                    let policy = volume.spec.as_ref().unwrap().persistent_volume_reclaim_policy.as_deref();
                    assert_eq!(policy, Some("Delete"), "the volume would stay for ever");
                }
                self.seen.work_claims.remove(&of);
                self.seen.work_volumes.remove(&of);
            }
            Kind::Snapshot if work => self.seen.twins.retain(|_, o| !named(o.name_any())),
            Kind::Snapshot => {
                let mut all = self.seen.snapshots.iter();
                let of = all.find(|(_, snapshot)| snapshot.name_any() == which.name).unwrap().0.clone();
                if self.storage.forgets {
                    return self.remove_member(&of);
                }
                assert!(!self.seen.work_volumes.contains_key(&of), "a clone still needs the snapshot");
                if let Some(content) = self.seen.contents.get(&of) {
                    assert_eq!(content.spec.deletion_policy, "Delete", "the storage's snapshot would stay");
                    assert!(content.labels().contains_key("milkrun.dev/run"), "nobody would find it");
                }
                self.seen.snapshots.remove(&of);
                self.seen.contents.remove(&of);
            }
            Kind::Content => {
                self.seen.twin_contents.retain(|_, o| !named(o.name_any()));
                let ready = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted";
                let alone = self.seen.contents.values().find(|content| content.name_any() == which.name);
                assert!(alone.is_none_or(|o| o.annotations().contains_key(ready)), "csi-snapshotter would leave it");
                self.seen.contents.retain(|_, o| !named(o.name_any()));
            }
            Kind::Volume => panic!("volumes go with their claims"),
        }
    }

    pub(super) fn status(&self) -> BackupStatus {
        self.backup.status.clone().unwrap_or_default()
    }
}

impl Walked for World {
    fn is_over(&self) -> bool {
        self.status().step == BackupStep::Done
    }

    fn step(&mut self, killed_after: Option<usize>) -> usize {
        self.look();
        let settings = Settings { process: self.process.into(), exposed_max: self.exposed_max, ..settings() };
        let plan = plan(&self.backup, &self.seen, &settings, self.clock);
        let all = plan.tidying.len() + plan.actions.len() + plan.calls.len() + 1;
        let mut left = killed_after.unwrap_or(all);
        let actions = [&plan.tidying[..], &plan.actions[..]].concat();
        for action in actions.iter().take(left) {
            self.act(action);
        }
        left = left.saturating_sub(actions.len());
        for call in plan.calls.iter().take(left) {
            self.call(call);
        }
        if left > plan.calls.len() {
            self.backup.status = Some(plan.status);
        }
        all
    }
}
