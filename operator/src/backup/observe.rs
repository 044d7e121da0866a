//! What is there of a backup: objects with the run's label, and the run at the coordinator.

use std::collections::{BTreeMap, BTreeSet};

use futures::{join, try_join};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use milkrun_proto::control::v1 as control;
use milkrun_resources::backup::{BackupStep, MountStatus, VolumeStatus};
use milkrun_resources::{Backup, BackupStatus, labels};

use super::freeze::{Answer, Due, due, mounts, places};
use super::groups_seen::{GroupsSeen, of_run};
use crate::attachments::attached;
use crate::consumer::{Consumer, consumers};
use crate::controller::Context;
use crate::exposed::exposed;
use crate::group_snapshots::{self, VolumeGroupSnapshotClass};
use crate::holder::runs;
use crate::memory::Memory;
use crate::names::{RunOf, by_claim, claim_of};
use crate::run::RunSeen;
use crate::several::get_each;
use crate::snapshots::{VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent};
use crate::warnings::{Warnings, warnings};

/// What is there of a backup.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The claims of the namespace that the backup selects; only while it selects.
    pub claims: Vec<PersistentVolumeClaim>,
    /// Volumes of the selected claims, by the claim's name.
    pub volumes: BTreeMap<String, PersistentVolume>,
    /// The cluster's classes of snapshots; only until the snapshots are taken, and while twins of groups are made.
    pub snapshot_classes: Vec<VolumeSnapshotClass>,
    /// The cluster's classes of group snapshots; only while the backup selects.
    pub group_classes: Vec<VolumeGroupSnapshotClass>,
    /// The groups of claims that are cut together.
    pub groups: GroupsSeen,
    /// The snapshots of this run in the application's namespace, by claim. The same for the next ones.
    pub snapshots: BTreeMap<String, VolumeSnapshot>,
    /// Their contents.
    pub contents: BTreeMap<String, VolumeSnapshotContent>,
    /// The twins in the work namespace.
    pub twins: BTreeMap<String, VolumeSnapshot>,
    /// The contents of the twins.
    pub twin_contents: BTreeMap<String, VolumeSnapshotContent>,
    /// The claims in the work namespace.
    pub work_claims: BTreeMap<String, PersistentVolumeClaim>,
    /// How many claims of other backups are in the work namespace; only while volumes are offered.
    pub exposed_elsewhere: usize,
    /// Claims whose volumes may be exposed.
    pub may_expose: BTreeSet<String>,
    /// Their volumes.
    pub work_volumes: BTreeMap<String, PersistentVolume>,
    /// Volumes that are attached somewhere, as attachments and nodes name them; `None`: nobody has looked.
    pub attached: Option<Vec<String>>,
    /// The holder pods.
    pub holders: BTreeMap<String, Pod>,
    /// The pod that uses each claim.
    pub pods: BTreeMap<String, Consumer>,
    /// The run.
    pub run: RunSeen,
    /// Where pods have mounted the claims; only until the snapshots are cut.
    pub mounts: BTreeMap<String, MountStatus>,
    /// Whether all of them are frozen.
    pub frozen: Answer<()>,
    /// How each of them ended.
    pub thawed: Answer<Vec<control::Thawed>>,
    /// Nodes with an agent; `None`: nobody knows now.
    pub nodes: Option<Vec<String>>,
    /// Warnings of objects of the work namespace; only while one of them does not get on.
    pub warnings: Warnings,
}

/// The role of the content of the application's own snapshot.
pub(super) const SOURCE: &str = "source";

/// The run of a backup.
pub(super) fn run_of(backup: &Backup) -> RunOf {
    RunOf {
        kind: "Backup",
        namespace: backup.namespace().unwrap_or_default(),
        name: backup.name_any(),
        uid: backup.uid().unwrap_or_default(),
    }
}

/// What the coordinator is asked for.
fn request(
    backup: &Backup,
    status: &BackupStatus,
    context: &Context,
    namespace_uid: String,
) -> control::OpenRunRequest {
    let order = control::BackupOrder {
        application: status.application.clone().unwrap_or_default(),
        repository: backup.spec.repository.clone(),
        cluster: context.settings.cluster.clone(),
        namespace: backup.namespace().unwrap_or_default(),
        namespace_uid,
        lock_seconds: backup.spec.lock_days.map_or(0, |days| u64::from(days.unsigned_abs()) * 86_400),
        parent: "auto".into(),
        level: 3,
        host: context.settings.cluster.clone(),
        // The device is ours alone; the kubelet keeps a loop device on it.
        allow_mounted: true,
        ..control::BackupOrder::default()
    };
    control::OpenRunRequest {
        request_id: format!("backup/{}", backup.uid().unwrap_or_default()),
        order: Some(control::open_run_request::Order::Backup(order)),
    }
}

/// Looks at all of it.
///
/// # Errors
/// When the API server can't be asked.
pub(super) async fn observe(
    backup: &Backup,
    status: &BackupStatus,
    context: &Context,
) -> Result<Observed, kube::Error> {
    let client = &context.client;
    let namespace = backup.namespace().unwrap_or_default();
    let mut seen = Observed::default();
    let of_twins = status.step == BackupStep::Move && !status.groups.is_empty();
    if status.step <= BackupStep::Snapshot || of_twins {
        let classes = Api::<VolumeSnapshotClass>::all(client.clone());
        seen.snapshot_classes = classes.list(&ListParams::default()).await?.items;
    }
    if status.step == BackupStep::Select && status.failure.is_none() {
        seen.group_classes = group_snapshots::classes(client).await?;
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &namespace);
        seen.claims = claims.list(&super::select::selecting(backup)).await?.items;
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        let named = volumes_of(&seen.claims);
        seen.volumes.extend(get_each(&volumes, named).await?);
        return Ok(seen);
    }
    // Writers wait: this comes first.
    freeze_or_thaw(backup, status, context, &mut seen).await;
    let ((), (run, nodes)) =
        try_join!(look_at_objects(backup, status, context, &mut seen), ask(backup, status, context, &namespace))?;
    (seen.run, seen.nodes) = (run, nodes);
    if status.step >= BackupStep::Move {
        seen.take_slots(&backup.uid().unwrap_or_default(), status, &context.memory, context.settings.exposed_max);
    }
    Ok(seen)
}

/// Looks at the objects of the run, and at those that it depends on.
async fn look_at_objects(
    backup: &Backup,
    status: &BackupStatus,
    context: &Context,
    seen: &mut Observed,
) -> Result<(), kube::Error> {
    let client = &context.client;
    let namespace = backup.namespace().unwrap_or_default();
    let work = &context.settings.work_namespace;
    let run = run_of(backup);
    let ours = ListParams::default().labels(&run.selector());
    // Members of a group have no label of ours.
    let all_or_ours = if status.groups.is_empty() { ours.clone() } else { ListParams::default() };
    let snapshots = Api::<VolumeSnapshot>::namespaced(client.clone(), &namespace);
    // A backup of the work namespace itself makes no sense, and its snapshots would be taken for twins.
    let twins = Api::<VolumeSnapshot>::namespaced(client.clone(), work);
    let contents = Api::<VolumeSnapshotContent>::all(client.clone());
    let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), work);
    let holders = Api::<Pod>::namespaced(client.clone(), work);
    let volumes = Api::<PersistentVolume>::all(client.clone());
    let (groups, of_snapshots, of_twins, of_contents, of_claims, of_holders, of_volumes) = try_join!(
        GroupsSeen::look(backup, status, &run, client),
        snapshots.list(&all_or_ours),
        twins.list(&ours),
        contents.list(&ours),
        claims.list(&ours),
        holders.list(&ours),
        volumes.list(&ours)
    )?;
    seen.groups = groups;
    (seen.snapshots, seen.twins) = (of_run(of_snapshots.items, &run, status), by_claim(of_twins.items));
    let is_source = |content: &VolumeSnapshotContent| content.labels().get(labels::ROLE).is_some_and(|r| r == SOURCE);
    let (sources, twins) = of_contents.items.into_iter().partition(is_source);
    (seen.contents, seen.twin_contents) = (by_claim(sources), by_claim(twins));
    (seen.work_claims, seen.holders) = (by_claim(of_claims.items), by_claim(of_holders.items));
    seen.work_volumes = by_claim(of_volumes.items);

    // What has no label of ours is known by its name. The claims' own volumes matter until the last one is offered; those of groups
    // name what the groups have made.
    let wants_volumes = status.step <= BackupStep::Move || !seen.groups.snapshots.is_empty();
    let of_claims = if wants_volumes { chosen_volumes(status) } else { Vec::new() };
    let freezes = backup.spec.freeze_seconds.is_some() && status.step <= BackupStep::Snapshot;
    let offers = status.step == BackupStep::Move && status.volumes.values().any(|volume| !volume.offered);
    let pods = async {
        let pods = Api::<Pod>::namespaced(client.clone(), &namespace);
        let wanted = freezes || offers;
        if wanted { Ok(pods.list(&ListParams::default()).await?.items) } else { Ok(Vec::new()) }
    };
    let (of_snapshots, of_work, of_claims, pods) = try_join!(
        get_each(&contents, contents_by_name(seen)),
        get_each(&volumes, work_volumes_by_name(seen)),
        get_each(&volumes, of_claims),
        pods
    )?;
    seen.contents.extend(of_snapshots);
    seen.work_volumes.extend(of_work);
    seen.volumes.extend(of_claims);
    if status.step == BackupStep::CleanUp {
        let mut alone = seen.groups.content_names(status, &seen.volumes);
        alone.retain(|(claim, _)| !seen.contents.contains_key(claim));
        seen.contents.extend(get_each(&contents, alone).await?);
    }
    if offers {
        seen.pods = consumers(&pods);
    }
    if freezes {
        seen.mounts = mounts(&pods, &seen.volumes, &context.settings.kubelet);
    }

    if status.step == BackupStep::Move && !context.memory.knows_all() {
        seen.exposed_elsewhere = exposed(client, work).await?.saturating_sub(seen.work_claims.len());
    }
    if seen.work_volumes.keys().any(|claim| !seen.holders.contains_key(claim)) {
        let nodes = status.volumes.values().filter_map(|volume| volume.node.as_ref());
        seen.attached = Some(attached(client, nodes.collect()).await?);
    }
    if status.step == BackupStep::Move && seen.holders.values().any(|pod| !runs(pod)) {
        seen.warnings = warnings(client, work).await?;
    }
    Ok(())
}

/// The volumes of claims: their names, by claim.
fn volumes_of(claims: &[PersistentVolumeClaim]) -> Vec<(String, String)> {
    claims.iter().filter_map(|claim| Some((claim.name_any(), claim.spec.as_ref()?.volume_name.clone()?))).collect()
}

/// The volumes of the claims that the backup has chosen: their names, by claim.
fn chosen_volumes(status: &BackupStatus) -> Vec<(String, String)> {
    status.volumes.iter().filter_map(|(claim, volume)| Some((claim.clone(), volume.volume.clone()?))).collect()
}

/// The contents of the application's snapshots that were not found by label, by claim: their names.
fn contents_by_name(seen: &Observed) -> Vec<(String, String)> {
    let named = seen.snapshots.iter().map(|(claim, snapshot)| {
        let bound = snapshot.status.as_ref().and_then(|s| s.bound_volume_snapshot_content_name.clone());
        // The snapshot controller gives it this name before it says so.
        let name = bound.unwrap_or_else(|| format!("snapcontent-{}", snapshot.uid().unwrap_or_default()));
        (claim.clone(), name)
    });
    named.filter(|(claim, name)| seen.contents.get(claim).is_none_or(|found| found.name_any() != *name)).collect()
}

/// The volumes of the claims in the work namespace that were not found by label, by claim: their names.
fn work_volumes_by_name(seen: &Observed) -> Vec<(String, String)> {
    let named = seen.work_claims.values().filter_map(|claim| {
        let name = claim.spec.as_ref()?.volume_name.clone().filter(|name| !name.is_empty())?;
        Some((claim_of(&claim.metadata), name))
    });
    named.filter(|(claim, name)| seen.work_volumes.get(claim).is_none_or(|found| found.name_any() != *name)).collect()
}

/// Freezes or thaws what status names, if that is due.
async fn freeze_or_thaw(backup: &Backup, status: &BackupStatus, context: &Context, seen: &mut Observed) {
    let due = due(backup, status, &context.settings.process);
    let Some(freeze) = &status.freeze else { return };
    let Some(run) = status.run.as_deref().and_then(|run| hex::decode(run).ok()) else { return };
    match due {
        Due::Nothing => {}
        Due::Thaw => seen.thawed = context.coordinator.thaw(run, places(freeze)).await.into(),
        Due::Freeze => {
            let uid = backup.uid().unwrap_or_default();
            let seconds = backup.spec.freeze_seconds.unwrap_or_default().unsigned_abs();
            if !context.memory.is_frozen(&uid) {
                seen.frozen = context.coordinator.freeze(run, places(freeze), seconds).await.into();
            }
            if context.memory.is_frozen(&uid) || seen.frozen == Answer::Given(()) {
                context.memory.frozen(&uid);
                seen.frozen = Answer::Given(());
            }
        }
    }
}

impl Observed {
    /// Takes slots for the volumes that are to be exposed next.
    pub(super) fn take_slots(&mut self, run: &str, status: &BackupStatus, memory: &Memory, max: usize) {
        let exposed: BTreeSet<String> = self.work_claims.keys().chain(self.work_volumes.keys()).cloned().collect();
        // One that waits for its turn, or whose coordinator is away, uses none.
        let moves = status.step == BackupStep::Move && matches!(&self.run, RunSeen::Opened(run) if !run.waiting);
        let waits = |claim: &str, volume: &VolumeStatus| {
            moves && !volume.offered && !exposed.contains(claim) && self.is_ready(claim)
        };
        let wanting = status.volumes.iter().filter(|(claim, volume)| waits(claim, volume));
        let wanting: Vec<String> = wanting.map(|(claim, _)| claim.clone()).collect();
        self.may_expose = memory.take_slots(run, exposed, wanting, self.exposed_elsewhere, max);
    }

    /// Whether a volume can be made from the snapshot of a claim.
    pub(super) fn is_ready(&self, claim: &str) -> bool {
        self.snapshots.get(claim).is_some_and(VolumeSnapshot::is_ready)
    }
}

/// Asks the coordinator. Asking opens the run, if it is not open: so it is asked only where the run is wanted or known.
async fn ask(
    backup: &Backup,
    status: &BackupStatus,
    context: &Context,
    namespace: &str,
) -> Result<(RunSeen, Option<Vec<String>>), kube::Error> {
    let wanted =
        status.step < BackupStep::CleanUp && status.failure.is_none() && backup.metadata.deletion_timestamp.is_none();
    if !wanted {
        return Ok((RunSeen::NotOpened, None));
    }
    let found = Api::<k8s_openapi::api::core::v1::Namespace>::all(context.client.clone()).get(namespace).await?;
    let request = request(backup, status, context, found.uid().unwrap_or_default());
    let (run, nodes) = join!(context.coordinator.open(request), context.coordinator.nodes());
    Ok((RunSeen::of(run), nodes.ok()))
}
