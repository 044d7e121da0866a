//! A small world that answers as controllers do. It refuses what would lose a disk.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use milkrun_resources::RestoreSpec;
use milkrun_resources::condition::{COMPLETE, Conditions};
use serde_json::{Value, json};

use super::super::super::hand_over::policy;
use super::super::super::observe::run_of;
use super::super::*;
use crate::actions::{Kind, Which};
use crate::names::claim_of;
use crate::run::RunSeen;
pub(super) use crate::walk::now;
use crate::walk::{Walked, settings};

pub(super) fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// A run at the coordinator.
#[derive(Default)]
struct Run {
    targets: Vec<String>,
    finished: bool,
    written: bool,
}

/// What is in the cluster and at the coordinator. The storage is a set of disks, by handle.
pub(super) struct World {
    pub(super) restore: Restore,
    pub(super) seen: Observed,
    /// All persistent volumes.
    pub(super) volumes: BTreeMap<String, PersistentVolume>,
    /// Disks, and whether they were written by the run.
    pub(super) disks: BTreeMap<String, bool>,
    /// The runs at the coordinator, by their wave.
    runs: BTreeMap<u8, Run>,
    pub(super) exposed_max: usize,
    /// Volumes that are still attached for so many looks: their holders went.
    lingering: BTreeMap<String, u32>,
    looks: u32,
    uids: u32,
}

impl World {
    /// A point with two volumes of one pod.
    pub(super) fn new(spec: Value) -> Self {
        let mut restore = Restore::new("r", of::<RestoreSpec>(spec));
        restore.metadata.namespace = Some("shop".into());
        restore.metadata.uid = Some("run-1".into());
        Self::of(restore, &["db-0", "db-0"])
    }

    /// The same, where each volume is that of a pod of its own, and one can be written at once.
    pub(super) fn in_waves() -> Self {
        let mut world = Self::new(json!({"repository": "prod", "point": "shop@latest"}));
        world = Self::of(world.restore, &["db-0", "db-1"]);
        world.exposed_max = 1;
        world
    }

    fn of(restore: Restore, pods: &[&str; 2]) -> Self {
        let facts = |pod: &str| json!({"storageClass": "fast", "size": "1Gi", "pod": pod}).to_string();
        let volume = |name: &str, pod: &str| control::VolumeResult {
            name: name.into(),
            size_bytes: 1 << 30,
            claim: facts(pod),
            file_system: "ext4".into(),
            ..Default::default()
        };
        let detail = control::PointDetail {
            point: Some(control::Point { point: "p".into(), ..Default::default() }),
            volumes: vec![volume("data", pods[0]), volume("wal", pods[1])],
            ..Default::default()
        };
        let class: StorageClass =
            of(json!({"metadata": {"name": "fast"}, "provisioner": "d", "reclaimPolicy": "Delete"}));
        let seen = Observed {
            point: PointSeen::Found(Box::new(detail)),
            admission: Admission::Granted,
            namespace: Some(Namespace::default()),
            classes: vec![class],
            nodes: Some(vec!["n".into()]),
            ..Observed::default()
        };
        Self {
            restore,
            seen,
            volumes: BTreeMap::new(),
            disks: BTreeMap::new(),
            runs: BTreeMap::new(),
            exposed_max: 16,
            lingering: BTreeMap::new(),
            looks: 0,
            uids: 0,
        }
    }

    /// The same, where the application's claims are there, and a pod uses them.
    pub(super) fn in_place() -> Self {
        let mut world = Self::new(json!({"repository": "prod", "point": "shop@latest", "inPlace": true}));
        for name in ["data", "wal"] {
            let claim = of(json!({
                "metadata": {"name": name, "namespace": "shop", "uid": format!("old-{name}"), "labels": {"app": "db"}},
                "spec": {"volumeName": format!("old-{name}"), "resources": {"requests": {"storage": "1Gi"}}},
                "status": {"phase": "Bound"},
            }));
            world.seen.claims.insert(name.into(), claim);
            world.put_volume(&format!("old-{name}"), &format!("old-disk-{name}"), "Delete", "shop", name);
            world.disks.insert(format!("old-disk-{name}"), false);
            let volume = world.volumes[&format!("old-{name}")].clone();
            world.seen.replaced.insert(name.into(), volume);
        }
        world.seen.pods = vec![Self::user()];
        world
    }

    fn user() -> Pod {
        of(json!({
            "metadata": {"name": "db-0", "namespace": "shop",
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "u", "controller": true}]},
            "spec": {"containers": [], "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]},
            "status": {"phase": "Running"},
        }))
    }

    fn put_volume(&mut self, name: &str, handle: &str, policy: &str, namespace: &str, claim: &str) {
        let volume = of(json!({
            "metadata": {"name": name},
            "spec": {"csi": {"driver": "d", "volumeHandle": handle}, "persistentVolumeReclaimPolicy": policy,
                "claimRef": {"namespace": namespace, "name": claim, "uid": format!("old-{claim}")}},
        }));
        self.volumes.insert(name.to_owned(), volume);
    }

    pub(super) fn status(&self) -> RestoreStatus {
        self.restore.status.clone().unwrap_or_default()
    }

    /// What the operator would observe.
    fn look(&mut self) {
        let status = self.status();
        let run = run_of(&self.restore);
        for (name, volume) in &status.volumes {
            let by_name = |name: Option<&String>| name.and_then(|name| self.volumes.get(name)).cloned();
            let work = self.seen.work_claims.get(name).and_then(|claim| claim.spec.as_ref()?.volume_name.clone());
            let set = |map: &mut BTreeMap<String, PersistentVolume>, found: Option<PersistentVolume>| match found {
                Some(found) => drop(map.insert(name.clone(), found)),
                None => drop(map.remove(name)),
            };
            set(&mut self.seen.written, by_name(work.as_ref().or(volume.written_volume.as_ref())));
            set(&mut self.seen.volumes, by_name(Some(&run.name(name))));
            set(&mut self.seen.replaced, by_name(volume.replaces.as_ref().map(|before| &before.volume)));
        }
        let asked = status.step == RestoreStep::Data && status.failure.is_none();
        let wave = u8::try_from(status.wave).unwrap();
        let of_wave = self.runs.entry(wave).or_default();
        let volumes = if of_wave.finished { of_wave.targets.clone() } else { Vec::new() };
        let state = if of_wave.written { control::run::State::Done } else { control::run::State::Running };
        let run = control::Run {
            run: vec![1, wave].into(),
            state: state.into(),
            volumes: volumes.into_iter().map(|name| control::VolumeState { name, ..Default::default() }).collect(),
            ..Default::default()
        };
        self.seen.run = if asked { RunSeen::Opened(Box::new(run)) } else { RunSeen::NotOpened };
        // Once it has begun, the agents write.
        if asked && of_wave.finished {
            of_wave.written = true;
            for name in &of_wave.targets {
                self.disks.insert(format!("disk-{name}"), true);
            }
        }
        // Slots come late.
        self.looks += 1;
        self.seen.may_expose = asked && self.looks.is_multiple_of(3);
        self.lingering.values_mut().for_each(|looks| *looks -= 1);
        self.lingering.retain(|_, looks| *looks > 0);
        let held = self.seen.holders.values().flat_map(|pod| self.held_by(pod));
        self.seen.attached = held.chain(self.lingering.keys().cloned()).collect();
    }

    /// The volumes that a holder holds.
    fn held_by(&self, pod: &Pod) -> Vec<String> {
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let claims = volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref());
        let of = |name: &str| {
            self.seen.work_claims.values().find(|claim| claim.name_any() == name)?.spec.clone()?.volume_name
        };
        claims.filter_map(|claim| of(&claim.claim_name)).collect()
    }

    fn make(&mut self, which: &Which, mut object: Value) {
        let of_claim = object["metadata"]["annotations"]["milkrun.dev/claim"].as_str().unwrap().to_owned();
        self.uids += 1;
        object["metadata"]["uid"] = json!(format!("uid-{}", self.uids));
        let work = which.namespace.as_deref() == Some("milkrun-work");
        match which.kind {
            Kind::Claim if work => {
                let (volume, disk) = (format!("pv-{of_claim}"), format!("disk-{of_claim}"));
                object["spec"]["volumeName"] = json!(volume);
                self.seen.work_claims.entry(of_claim.clone()).or_insert_with(|| of(object));
                self.put_volume(&volume, &disk, "Delete", "milkrun-work", &which.name);
                self.disks.entry(disk).or_insert(false);
            }
            Kind::Claim => {
                object["status"] = json!({"phase": "Pending"});
                self.seen.claims.entry(which.name.clone()).or_insert_with(|| of(object));
            }
            Kind::Pod => {
                object["spec"]["nodeName"] = json!("n");
                object["status"] = json!({"phase": "Running"});
                self.seen.holders.entry(of_claim).or_insert_with(|| of(object));
                let held: usize = self.seen.holders.values().map(|pod| self.held_by(pod).len()).sum();
                let held = held + self.lingering.len();
                assert!(held <= self.exposed_max, "{held} volumes are held at once");
            }
            Kind::Volume => {
                let made: PersistentVolume = of(object);
                let spec = made.spec.clone().unwrap();
                let handle = spec.csi.unwrap().volume_handle;
                assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Retain"));
                assert_eq!(self.disks.get(&handle), Some(&true), "the disk {handle} is not there, or not written");
                let twice = self.volumes.values().filter(|other| disk_of(other) == handle).count();
                assert_eq!(twice, 0, "two volumes are one disk: some drivers forget it when one of them goes");
                self.volumes.insert(which.name.clone(), made);
            }
            Kind::Snapshot | Kind::Content | Kind::Group | Kind::GroupContent => panic!("a restore makes no snapshots"),
        }
    }

    fn merge(&mut self, which: &Which, patch: &Value) {
        match which.kind {
            Kind::Volume => {
                let Some(volume) = self.volumes.get_mut(&which.name) else { return };
                if let Some(policy) = patch["spec"]["persistentVolumeReclaimPolicy"].as_str() {
                    volume.spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some(policy.into());
                }
                if patch["metadata"]["annotations"].is_object() {
                    volume.metadata.annotations = of(patch["metadata"]["annotations"].clone());
                }
                self.reclaim();
            }
            Kind::Claim => {
                let claim = self.seen.claims.get_mut(&which.name).unwrap();
                let name = claim.spec.as_ref().unwrap().volume_name.clone().unwrap();
                let bound_to = self.volumes[&name].spec.as_ref().unwrap().claim_ref.clone().unwrap().uid;
                assert_eq!(bound_to, claim.metadata.uid, "the volume is meant for another claim");
                claim.status = of(json!({"phase": "Bound"}));
                claim.metadata.annotations = of(patch["metadata"]["annotations"].clone());
            }
            _ => panic!("{which}"),
        }
    }

    /// A volume whose claim is gone goes with its disk, if its policy is Delete.
    pub(super) fn reclaim(&mut self) {
        let claims = self.seen.claims.values().chain(self.seen.work_claims.values());
        let claimed: Vec<String> = claims.filter_map(|claim| claim.spec.as_ref()?.volume_name.clone()).collect();
        let goes = |volume: &PersistentVolume| {
            policy(volume) == Some("Delete") && !claimed.iter().any(|name| volume.metadata.name.as_ref() == Some(name))
        };
        let gone: Vec<String> = self.volumes.iter().filter(|(_, v)| goes(v)).map(|(name, _)| name.clone()).collect();
        for name in gone {
            let volume = self.volumes.remove(&name).unwrap();
            self.disks.remove(&disk_of(&volume));
        }
    }

    fn remove(&mut self, which: &Which) {
        match which.kind {
            Kind::Pod => {
                let gone = self.seen.holders.values().filter(|pod| pod.name_any() == which.name);
                let gone: Vec<String> = gone.flat_map(|pod| self.held_by(pod)).collect();
                self.lingering.extend(gone.into_iter().map(|volume| (volume, 3)));
                self.seen.holders.retain(|_, pod| pod.name_any() != which.name);
            }
            Kind::Claim if which.namespace.as_deref() == Some("milkrun-work") => {
                let found = self.seen.work_claims.iter().find(|(_, claim)| claim.name_any() == which.name);
                let Some((name, claim)) = found.map(|(name, claim)| (name.clone(), claim.clone())) else { return };
                let group = &self.status().volumes[&claim_of(&claim.metadata)].group;
                assert!(!self.seen.holders.contains_key(group), "a holder still uses the claim");
                self.seen.work_claims.remove(&name);
            }
            Kind::Claim => drop(self.seen.claims.remove(&which.name)),
            Kind::Volume => {
                assert_eq!(policy(&self.volumes[&which.name]), Some("Retain"), "its disk would go with it");
                self.volumes.remove(&which.name);
            }
            Kind::Snapshot | Kind::Content | Kind::Group | Kind::GroupContent => panic!("{which}"),
        }
        self.reclaim();
    }

    /// Nothing of the run is in the work namespace, and each disk has a volume.
    pub(super) fn is_tidy(&self) -> bool {
        let known: Vec<String> = self.volumes.values().map(disk_of).collect();
        self.seen.holders.is_empty()
            && self.seen.work_claims.is_empty()
            && self.disks.keys().all(|disk| known.contains(disk))
    }

    /// The disk of an application's claim, if it is bound.
    pub(super) fn disk(&self, claim: &str) -> Option<String> {
        let claim = self.seen.claims.get(claim)?;
        (claim.status.as_ref()?.phase.as_deref() == Some("Bound")).then_some(())?;
        self.volumes.get(claim.spec.as_ref()?.volume_name.as_ref()?).map(disk_of)
    }

    pub(super) fn is_restored(&self) -> bool {
        ["data", "wal"].iter().all(|name| self.disk(name) == Some(format!("disk-{name}")))
            && self.status().conditions.is_true(COMPLETE)
            && self.is_tidy()
    }
}

fn disk_of(volume: &PersistentVolume) -> String {
    volume.spec.as_ref().unwrap().csi.as_ref().unwrap().volume_handle.clone()
}

impl Walked for World {
    fn is_over(&self) -> bool {
        self.status().step == RestoreStep::Done
    }

    fn step(&mut self, killed_after: Option<usize>) -> usize {
        self.look();
        let settings = Settings { exposed_max: self.exposed_max, ..settings() };
        let plan = plan(&self.restore, &self.seen, &settings, now());
        let all = plan.actions.len() + plan.calls.len() + 1;
        let mut left = killed_after.unwrap_or(all);
        // Status is written first.
        if left > 0 {
            self.restore.status = Some(plan.status);
            left -= 1;
        }
        for action in plan.actions.iter().take(left) {
            match action {
                Action::Create(which, object) => self.make(which, object.clone()),
                Action::Merge(which, patch) => self.merge(which, patch),
                Action::Delete(which, _) => self.remove(which),
            }
        }
        for call in plan.calls.iter().take(left.saturating_sub(plan.actions.len())) {
            match call {
                Call::AddTarget(request) => {
                    let name = request.target.clone().unwrap().name;
                    let run = self.runs.get_mut(&request.run[1]).unwrap();
                    if !run.targets.contains(&name) {
                        run.targets.push(name);
                    }
                }
                Call::Finish(order) => self.runs.get_mut(&order.run[1]).unwrap().finished = true,
                Call::Cancel(_) => {}
                Call::AddSource(_) => panic!("a restore has no sources"),
            }
        }
        all
    }
}
