//! What is there of a backup: objects with the run's label, and the run at the coordinator.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use milkrun_proto::control::v1 as control;
use milkrun_resources::backup::BackupStep;
use milkrun_resources::{Backup, BackupStatus, labels};

use super::expose::SOURCE;
use crate::attachments::attached;
use crate::controller::Context;
use crate::coordinator::{AskError, Run};
use crate::names::{RunOf, by_claim, claim_of};
use crate::snapshots::{VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent};

/// The run at the coordinator.
#[derive(Clone, Debug, Default)]
pub enum RunSeen {
    /// Nobody has asked for it.
    #[default]
    NotOpened,
    /// It is like this.
    Opened(Box<Run>),
    /// The coordinator can't be asked now.
    Away(String),
    /// The coordinator refuses it.
    Refused(String),
}

/// What is there of a backup.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The claims of the namespace that the backup selects; only while it selects.
    pub claims: Vec<PersistentVolumeClaim>,
    /// Volumes of the selected claims, by the claim's name.
    pub volumes: BTreeMap<String, PersistentVolume>,
    /// The cluster's classes of snapshots; only until the snapshots are taken.
    pub snapshot_classes: Vec<VolumeSnapshotClass>,
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
    /// Their volumes.
    pub work_volumes: BTreeMap<String, PersistentVolume>,
    /// Volumes that are attached somewhere, as attachments and nodes name them.
    pub attached: Vec<String>,
    /// The holder pods.
    pub holders: BTreeMap<String, Pod>,
    /// The pod that uses each claim.
    pub pods: BTreeMap<String, String>,
    /// The run.
    pub run: RunSeen,
    /// Nodes with an agent.
    pub nodes: Vec<String>,
}

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
    let work = &context.settings.work_namespace;
    let ours = ListParams::default().labels(&run_of(backup).selector());
    let mut seen = Observed::default();
    if status.step <= BackupStep::Snapshot {
        let classes = Api::<VolumeSnapshotClass>::all(client.clone());
        seen.snapshot_classes = classes.list(&ListParams::default()).await?.items;
    }
    if status.step == BackupStep::Select && status.failure.is_none() {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &namespace);
        seen.claims = claims.list(&super::select::selecting(backup)).await?.items;
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        for claim in &seen.claims {
            let Some(name) = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()) else { continue };
            if let Some(volume) = volumes.get_opt(&name).await? {
                seen.volumes.insert(claim.name_any(), volume);
            }
        }
        return Ok(seen);
    }
    let snapshots = Api::<VolumeSnapshot>::namespaced(client.clone(), &namespace);
    seen.snapshots = by_claim(snapshots.list(&ours).await?.items);
    let twins = Api::<VolumeSnapshot>::namespaced(client.clone(), work);
    // A backup of the work namespace itself makes no sense, and its snapshots would be taken for twins.
    seen.twins = by_claim(twins.list(&ours).await?.items);
    let contents = Api::<VolumeSnapshotContent>::all(client.clone());
    let is_source = |content: &VolumeSnapshotContent| content.labels().get(labels::ROLE).is_some_and(|r| r == SOURCE);
    let (sources, twins) = contents.list(&ours).await?.items.into_iter().partition(is_source);
    (seen.contents, seen.twin_contents) = (by_claim(sources), by_claim(twins));
    for (claim, snapshot) in &seen.snapshots {
        let bound = snapshot.status.as_ref().and_then(|s| s.bound_volume_snapshot_content_name.clone());
        if let Some(content) = match bound {
            Some(name) => contents.get_opt(&name).await?,
            None => None,
        } {
            seen.contents.insert(claim.clone(), content);
        }
    }
    let work_claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), work);
    seen.work_claims = by_claim(work_claims.list(&ours).await?.items);
    seen.holders = by_claim(Api::<Pod>::namespaced(client.clone(), work).list(&ours).await?.items);
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    seen.work_volumes = by_claim(volumes.list(&ours).await?.items);
    for claim in seen.work_claims.values() {
        let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty());
        if let Some(name) = name
            && let Some(volume) = volumes.get_opt(&name).await?
        {
            seen.work_volumes.insert(claim_of(&claim.metadata), volume);
        }
    }
    for (claim, volume) in &status.volumes {
        let Some(name) = &volume.volume else { continue };
        if let Some(volume) = volumes.get_opt(name).await? {
            seen.volumes.insert(claim.clone(), volume);
        }
    }
    if status.step == BackupStep::Move {
        let pods = Api::<Pod>::namespaced(client.clone(), &namespace).list(&ListParams::default()).await?.items;
        seen.pods = consumers(&pods);
    }
    if !seen.work_volumes.is_empty() {
        seen.attached = attached(client).await?;
    }
    (seen.run, seen.nodes) = ask(backup, status, context, &namespace).await?;
    Ok(seen)
}

/// The pod that uses each claim; of several, the first by name.
fn consumers(pods: &[Pod]) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut sorted: Vec<&Pod> = pods.iter().collect();
    sorted.sort_by_key(|pod| pod.name_any());
    for pod in sorted {
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            if let Some(source) = &volume.persistent_volume_claim {
                all.entry(source.claim_name.clone()).or_insert_with(|| pod.name_any());
            }
        }
    }
    all
}

/// Asks the coordinator. Asking opens the run, if it is not open: so it is asked only where the run is wanted or known.
async fn ask(
    backup: &Backup,
    status: &BackupStatus,
    context: &Context,
    namespace: &str,
) -> Result<(RunSeen, Vec<String>), kube::Error> {
    let wanted =
        status.step < BackupStep::CleanUp && status.failure.is_none() && backup.metadata.deletion_timestamp.is_none();
    if !wanted {
        return Ok((RunSeen::NotOpened, Vec::new()));
    }
    let found = Api::<k8s_openapi::api::core::v1::Namespace>::all(context.client.clone()).get(namespace).await?;
    let request = request(backup, status, context, found.uid().unwrap_or_default());
    let run = match context.coordinator.open(request).await {
        Ok(run) => RunSeen::Opened(Box::new(run)),
        Err(AskError::Away(why)) => RunSeen::Away(why),
        Err(AskError::Refused(why)) => RunSeen::Refused(why),
    };
    // Without an answer no node is known to have an agent, and the run waits.
    let nodes = context.coordinator.nodes().await.unwrap_or_default();
    Ok((run, nodes))
}
