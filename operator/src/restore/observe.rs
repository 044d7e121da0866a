//! What is there of a restore.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use milkrun_proto::control::v1 as control;
use milkrun_resources::restore::RestoreStep;
use milkrun_resources::{Restore, RestoreStatus};

use crate::attachments::attached;
use crate::backup::RunSeen;
use crate::controller::Context;
use crate::coordinator::AskError;
use crate::names::{RunOf, by_claim, claim_of};

/// What the coordinator says of the point.
#[derive(Clone, Debug, Default)]
pub enum PointSeen {
    /// Nobody asked.
    #[default]
    Unknown,
    /// It holds this.
    Found(Box<control::PointDetail>),
    /// The coordinator can't be asked now.
    Away(String),
    /// There is none, or it can't be read.
    Refused(String),
}

/// What is there of a restore. Maps are by the volume's name in the point.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The point; only while it is checked.
    pub point: PointSeen,
    /// The target namespace, if it is there.
    pub namespace: Option<Namespace>,
    /// The classes of volumes; only while it is checked.
    pub classes: Vec<StorageClass>,
    /// All claims of the target namespace, by name.
    pub claims: BTreeMap<String, PersistentVolumeClaim>,
    /// The claims in the work namespace.
    pub work_claims: BTreeMap<String, PersistentVolumeClaim>,
    /// The volumes that are written.
    pub written: BTreeMap<String, PersistentVolume>,
    /// The volumes of the restored claims.
    pub volumes: BTreeMap<String, PersistentVolume>,
    /// The holder pods.
    pub holders: BTreeMap<String, Pod>,
    /// Volumes that are attached somewhere, as attachments and nodes name them.
    pub attached: Vec<String>,
    /// The run.
    pub run: RunSeen,
    /// Nodes with an agent.
    pub nodes: Vec<String>,
}

/// The run of a restore.
pub(super) fn run_of(restore: &Restore) -> RunOf {
    RunOf {
        kind: "Restore",
        namespace: restore.namespace().unwrap_or_default(),
        name: restore.name_any(),
        uid: restore.uid().unwrap_or_default(),
    }
}

/// The namespace that a restore writes into.
pub(super) fn target(restore: &Restore) -> String {
    restore.spec.to_namespace.clone().or_else(|| restore.namespace()).unwrap_or_default()
}

/// The namespace whose point is restored.
fn origin(restore: &Restore) -> String {
    restore.spec.from_namespace.clone().or_else(|| restore.namespace()).unwrap_or_default()
}

/// Looks at all of it.
///
/// # Errors
/// When the API server can't be asked.
pub(super) async fn observe(
    restore: &Restore,
    status: &RestoreStatus,
    context: &Context,
) -> Result<Observed, kube::Error> {
    let client = &context.client;
    let work = &context.settings.work_namespace;
    let ours = ListParams::default().labels(&run_of(restore).selector());
    let mut seen = Observed::default();
    let target = target(restore);
    seen.namespace = Api::<Namespace>::all(client.clone()).get_opt(&target).await?;
    let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), &target);
    for claim in claims.list(&ListParams::default()).await?.items {
        seen.claims.insert(claim.name_any(), claim);
    }
    if status.step == RestoreStep::Check && status.failure.is_none() {
        seen.classes = Api::<StorageClass>::all(client.clone()).list(&ListParams::default()).await?.items;
        seen.point = ask_for_point(restore, context).await;
        return Ok(seen);
    }
    let work_claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), work);
    seen.work_claims = by_claim(work_claims.list(&ours).await?.items);
    seen.holders = by_claim(Api::<Pod>::namespaced(client.clone(), work).list(&ours).await?.items);
    let volumes = Api::<PersistentVolume>::all(client.clone());
    for claim in seen.work_claims.values() {
        let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty());
        if let Some(name) = name
            && let Some(volume) = volumes.get_opt(&name).await?
        {
            seen.written.insert(claim_of(&claim.metadata), volume);
        }
    }
    for (name, volume) in &status.volumes {
        if let Some(written) = &volume.written_volume
            && let Some(found) = volumes.get_opt(written).await?
        {
            seen.written.insert(name.clone(), found);
        }
        if let Some(found) = volumes.get_opt(&run_of(restore).name(name)).await? {
            seen.volumes.insert(name.clone(), found);
        }
    }
    seen.attached = attached(client).await?;
    seen.run = ask_for_run(restore, status, context).await;
    // Without an answer no node is known to have an agent, and the run waits.
    seen.nodes = context.coordinator.nodes().await.unwrap_or_default();
    Ok(seen)
}

async fn ask_for_point(restore: &Restore, context: &Context) -> PointSeen {
    let request = control::ShowPointRequest {
        repository: restore.spec.repository.clone(),
        selector: restore.spec.point.clone(),
        cluster: restore.spec.from_cluster.clone().unwrap_or_else(|| context.settings.cluster.clone()),
        namespace: origin(restore),
    };
    match context.coordinator.show(request).await {
        Ok(detail) => PointSeen::Found(Box::new(detail)),
        Err(AskError::Away(why)) => PointSeen::Away(why),
        Err(AskError::Refused(why)) => PointSeen::Refused(why),
    }
}

/// Asks for the run. Asking opens it, if it is not open: so it is asked only while there is something to write.
async fn ask_for_run(restore: &Restore, status: &RestoreStatus, context: &Context) -> RunSeen {
    let deleted = restore.metadata.deletion_timestamp.is_some();
    if status.step != RestoreStep::Data || status.failure.is_some() || deleted {
        return RunSeen::NotOpened;
    }
    let order = control::RestoreRequest {
        selector: status.point.clone().unwrap_or_default(),
        force: true,
        cluster: restore.spec.from_cluster.clone().unwrap_or_else(|| context.settings.cluster.clone()),
        namespace: origin(restore),
        repository: restore.spec.repository.clone(),
        ..control::RestoreRequest::default()
    };
    let request = control::OpenRunRequest {
        request_id: format!("restore/{}", restore.uid().unwrap_or_default()),
        order: Some(control::open_run_request::Order::Restore(order)),
    };
    match context.coordinator.open(request).await {
        Ok(run) => RunSeen::Opened(Box::new(run)),
        Err(AskError::Away(why)) => RunSeen::Away(why),
        Err(AskError::Refused(why)) => RunSeen::Refused(why),
    }
}
