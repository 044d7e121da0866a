//! The plan of a backup against a small world that answers as controllers do, with an operator that is killed at each moment.

use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use milkrun_resources::BackupSpec;
use serde_json::{Value, json};

use super::*;
use crate::actions::{Kind, Which};
use crate::names::claim_of;
use crate::snapshots::{VolumeSnapshotClass, VolumeSnapshotContent};

fn settings() -> Settings {
    Settings {
        namespace: "milkrun".into(),
        work_namespace: "milkrun-work".into(),
        image: "milkrun:1".into(),
        cluster: "c".into(),
        kubelet: "/var/lib/kubelet".into(),
    }
}

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

/// What is in the cluster and at the coordinator.
struct World {
    backup: Backup,
    seen: Observed,
    sources: Vec<String>,
    finished: bool,
}

fn volume(name: &str) -> PersistentVolume {
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

fn claim(name: &str, phase: &str) -> PersistentVolumeClaim {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"volumeName": format!("pv-{name}"), "storageClassName": "fast"},
        "status": {"phase": phase},
    }))
    .unwrap()
}

impl World {
    fn new(claims: &[&str]) -> Self {
        let mut backup = Backup::new("b", serde_json::from_value::<BackupSpec>(json!({"repository": "prod"})).unwrap());
        backup.metadata.namespace = Some("shop".into());
        backup.metadata.uid = Some("uid-1".into());
        let class = VolumeSnapshotClass { driver: "d".into(), ..Default::default() };
        let seen = Observed {
            claims: claims.iter().map(|name| claim(name, "Bound")).collect(),
            volumes: claims.iter().map(|name| ((*name).to_owned(), volume(&format!("pv-{name}")))).collect(),
            snapshot_classes: vec![class],
            nodes: vec!["n".into()],
            ..Observed::default()
        };
        Self { backup, seen, sources: Vec::new(), finished: false }
    }

    /// The coordinator, as it is asked at each look.
    fn look(&mut self) {
        let status = self.backup.status.clone().unwrap_or_default();
        let asked = status.step < BackupStep::CleanUp && status.step > BackupStep::Select && status.failure.is_none();
        let volumes = self.sources.iter().map(|name| control::VolumeState { name: name.clone(), ..Default::default() });
        let state = if self.finished { control::run::State::Done } else { control::run::State::Running };
        let run = control::Run {
            run: vec![1, 2].into(),
            state: state.into(),
            volumes: volumes.collect(),
            point: "p".into(),
            ..Default::default()
        };
        self.seen.run = if asked { RunSeen::Opened(Box::new(run)) } else { RunSeen::NotOpened };
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Create(which, object) => self.make(which, object.clone()),
            Action::Merge(which, patch) => self.merge(which, patch),
            Action::Delete(which) => self.remove(which),
        }
    }

    fn call(&mut self, call: &Call) {
        match call {
            Call::AddSource(request) => {
                let name = request.source.clone().unwrap().name;
                if !self.sources.contains(&name) {
                    self.sources.push(name);
                }
            }
            Call::Finish(_) => self.finished = true,
            Call::Cancel(_) => {}
        }
    }

    /// What controllers make of a new object.
    fn make(&mut self, which: &Which, object: Value) {
        let of = |object: &Value| object["metadata"]["annotations"]["milkrun.dev/claim"].as_str().unwrap().to_owned();
        let claim = of(&object);
        let work = which.namespace.as_deref() == Some("milkrun-work");
        match which.kind {
            Kind::Snapshot => {
                let mut snapshot: VolumeSnapshot = serde_json::from_value(object).unwrap();
                let bound = if work { which.name.clone() } else { format!("content-{claim}") };
                snapshot.status = serde_json::from_value(json!({
                    "boundVolumeSnapshotContentName": bound, "creationTime": "2026-01-01T00:00:00Z",
                    "readyToUse": true, "restoreSize": "1Gi",
                }))
                .unwrap();
                if !work {
                    let content = json!({
                        "metadata": {"name": bound},
                        "spec": {"deletionPolicy": "Delete", "driver": "d", "source": {}, "volumeSnapshotRef": {}},
                        "status": {"snapshotHandle": "s"},
                    });
                    self.seen.contents.insert(claim.clone(), serde_json::from_value(content).unwrap());
                }
                let all = if work { &mut self.seen.twins } else { &mut self.seen.snapshots };
                all.insert(claim, snapshot);
            }
            Kind::Content => {
                let content: VolumeSnapshotContent = serde_json::from_value(object).unwrap();
                assert_eq!(content.spec.deletion_policy, "Retain", "a twin never owns the storage's snapshot");
                self.seen.twin_contents.insert(claim, content);
            }
            Kind::Claim => {
                assert!(self.seen.twins.contains_key(&claim));
                let mut made: PersistentVolumeClaim = serde_json::from_value(object).unwrap();
                let name = format!("work-{claim}");
                made.spec.as_mut().unwrap().volume_name = Some(name.clone());
                self.seen.work_claims.insert(claim.clone(), made);
                self.seen.work_volumes.insert(claim, volume(&name));
            }
            Kind::Pod => {
                let mut pod: Pod = serde_json::from_value(object).unwrap();
                pod.metadata.uid = Some("pod-uid".into());
                pod.spec.as_mut().unwrap().node_name = Some("n".into());
                pod.status = serde_json::from_value(json!({"phase": "Running"})).unwrap();
                self.seen.holders.insert(claim, pod);
            }
            Kind::Volume => panic!("a backup makes no volume"),
        }
    }

    fn merge(&mut self, which: &Which, patch: &Value) {
        let content =
            self.seen.contents.values_mut().find(|c| which.kind == Kind::Content && c.name_any() == which.name);
        if let Some(content) = content {
            content.spec.deletion_policy = patch["spec"]["deletionPolicy"].as_str().unwrap().to_owned();
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
            Kind::Pod => self.seen.holders.retain(|_, o| !named(o.name_any())),
            Kind::Claim => {
                let claim = self.seen.work_claims.values().find(|c| c.name_any() == which.name).unwrap();
                let of = claim_of(&claim.metadata);
                assert!(!self.seen.holders.contains_key(&of), "a holder still uses the claim");
                let policy =
                    self.seen.work_volumes[&of].spec.as_ref().unwrap().persistent_volume_reclaim_policy.clone();
                assert_eq!(policy.as_deref(), Some("Delete"), "the volume would stay for ever");
                self.seen.work_claims.remove(&of);
                self.seen.work_volumes.remove(&of);
            }
            Kind::Snapshot if work => self.seen.twins.retain(|_, o| !named(o.name_any())),
            Kind::Snapshot => {
                let of =
                    self.seen.snapshots.values().find(|s| s.name_any() == which.name).map(|s| claim_of(&s.metadata));
                let of = of.unwrap();
                assert!(!self.seen.work_volumes.contains_key(&of), "a clone still needs the snapshot");
                assert_eq!(self.seen.contents[&of].spec.deletion_policy, "Delete", "the storage's snapshot would stay");
                self.seen.snapshots.remove(&of);
                self.seen.contents.remove(&of);
            }
            Kind::Content => self.seen.twin_contents.retain(|_, o| !named(o.name_any())),
            Kind::Volume => panic!("volumes go with their claims"),
        }
    }

    /// One look of an operator that is killed after so many things were done, if at all. Returns how many things there were.
    fn step(&mut self, killed_after: Option<usize>) -> usize {
        self.look();
        let plan = plan(&self.backup, &self.seen, &settings(), now());
        let all = plan.actions.len() + plan.calls.len() + 1;
        let mut left = killed_after.unwrap_or(all);
        for action in plan.actions.iter().take(left) {
            self.act(action);
        }
        left = left.saturating_sub(plan.actions.len());
        for call in plan.calls.iter().take(left) {
            self.call(call);
        }
        if left > plan.calls.len() {
            self.backup.status = Some(plan.status);
        }
        all
    }

    fn run(&mut self) {
        for _ in 0..100 {
            if self.status().step == BackupStep::Done {
                return;
            }
            self.step(None);
        }
        panic!("it does not end: {:?}", self.status());
    }

    fn status(&self) -> BackupStatus {
        self.backup.status.clone().unwrap_or_default()
    }
}

#[test]
fn a_backup_ends_with_a_point_and_leaves_nothing() {
    let mut world = World::new(&["a", "b"]);
    world.run();
    let status = world.status();
    assert_eq!((status.point.as_deref(), status.failure), (Some("p"), None));
    assert!(status.conditions.is_true(COMPLETE) && !status.conditions.is_true(FAILED));
    assert_eq!(world.sources, ["a", "b"]);
    assert!(is_clean(&world.seen));
}

#[test]
fn an_operator_that_is_killed_at_any_moment_is_followed_by_one_that_goes_on() {
    // Each look of a whole run, and each thing that is done in it.
    let mut whole = World::new(&["a", "b"]);
    let mut looks = Vec::new();
    while whole.status().step != BackupStep::Done {
        looks.push(whole.step(None));
    }
    assert!(looks.len() > 8, "{looks:?}");
    for (look, things) in looks.iter().enumerate() {
        for killed_after in 0..*things {
            let mut world = World::new(&["a", "b"]);
            for _ in 0..look {
                world.step(None);
            }
            world.step(Some(killed_after));
            world.run();
            assert_eq!(world.status().point.as_deref(), Some("p"), "look {look}, killed after {killed_after}");
            assert!(is_clean(&world.seen), "look {look}, killed after {killed_after}");
        }
    }
}

#[test]
fn a_backup_that_is_deleted_at_any_moment_leaves_nothing() {
    for look in 0..20 {
        let mut world = World::new(&["a", "b"]);
        for _ in 0..look {
            world.step(None);
        }
        world.backup.metadata.deletion_timestamp = Some(time(now()));
        world.run();
        assert!(is_clean(&world.seen), "deleted before look {look}");
    }
}

#[test]
fn what_cannot_be_backed_up_is_named_before_anything_is_made() {
    let mut world = World::new(&["a"]);
    world.seen.claims.push(claim("waits", "Pending"));
    let mut other = volume("pv-other");
    other.spec.as_mut().unwrap().csi.as_mut().unwrap().driver = "unknown".into();
    world.seen.claims.push(claim("other", "Bound"));
    world.seen.volumes.insert("other".into(), other);
    world.run();
    let why = world.status().failure.unwrap();
    assert!(why.contains("claim waits: it is not bound"), "{why}");
    assert!(why.contains("claim other: there is no VolumeSnapshotClass of its driver unknown"), "{why}");
    assert!(world.seen.snapshots.is_empty() && world.status().conditions.is_true(FAILED));
    // A claim that is named to be left out is no obstacle.
    let mut world = World::new(&["a"]);
    world.seen.claims.push(claim("waits", "Pending"));
    world.backup.spec.skip = vec!["waits".into()];
    world.run();
    assert_eq!(world.status().skipped.len(), 1);
    assert_eq!(world.status().failure, None);
}

#[test]
fn a_run_that_fails_says_why_and_everything_goes() {
    let mut world = World::new(&["a"]);
    for _ in 0..6 {
        world.step(None);
    }
    assert!(!is_clean(&world.seen));
    world.look();
    let failed =
        control::Run { state: control::run::State::Failed.into(), reason: "no space".into(), ..Default::default() };
    world.seen.run = RunSeen::Opened(Box::new(failed));
    let plan = plan(&world.backup, &world.seen, &settings(), now());
    assert_eq!(plan.status.failure.as_deref(), Some("no space"));
    world.backup.status = Some(plan.status);
    world.run();
    assert!(is_clean(&world.seen) && world.status().conditions.is_true(FAILED));
}
