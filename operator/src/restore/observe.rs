//! What is there of a restore.

use std::collections::{BTreeMap, BTreeSet};

use futures::{join, try_join};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use milkrun_proto::control::v1 as control;
use milkrun_resources::restore::{RestoreStep, RestoredVolume};
use milkrun_resources::{Restore, RestoreStatus};

use super::admission::{Admission, ask};
use super::check::check;
use super::waves;
use crate::attachments::attached;
use crate::controller::Context;
use crate::coordinator::AskError;
use crate::exposed::exposed;
use crate::holder::runs;
use crate::names::{RunOf, by_claim, claim_of};
use crate::run::RunSeen;
use crate::several::get_each;
use crate::warnings::{Warnings, warnings};

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
    /// Whether the cluster would let the restore make what it plans; only while it is checked.
    pub admission: Admission,
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
    /// The volumes of claims that are replaced in place; while it is checked, by the claim's name.
    pub replaced: BTreeMap<String, PersistentVolume>,
    /// The pods of the target namespace; only where claims are replaced in place.
    pub pods: Vec<Pod>,
    /// The holder pods.
    pub holders: BTreeMap<String, Pod>,
    /// Volumes that are attached somewhere, as attachments and nodes name them; only once they are written.
    pub attached: Vec<String>,
    /// Whether the volumes of the present wave have their slots.
    pub may_expose: bool,
    /// The run.
    pub run: RunSeen,
    /// Nodes with an agent; `None`: nobody knows now.
    pub nodes: Option<Vec<String>>,
    /// Warnings of objects of the work namespace; only while one of them does not get on.
    pub warnings: Warnings,
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
    let namespaces = Api::<Namespace>::all(client.clone());
    let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), &target);
    let everything = ListParams::default();
    let (namespace, claims) = try_join!(namespaces.get_opt(&target), claims.list(&everything))?;
    seen.namespace = namespace;
    seen.claims = claims.items.into_iter().map(|claim| (claim.name_any(), claim)).collect();
    let volumes = Api::<PersistentVolume>::all(client.clone());
    if status.step == RestoreStep::Check && status.failure.is_none() {
        if restore.spec.in_place {
            seen.replaced = get_each(&volumes, used_volumes(&seen)).await?.into_iter().collect();
        }
        seen.classes = Api::<StorageClass>::all(client.clone()).list(&ListParams::default()).await?.items;
        seen.point = ask_for_point(restore, context).await;
        if let PointSeen::Found(detail) = &seen.point
            && let Ok(planned) = check(restore, detail, &seen, &context.settings)
        {
            seen.admission = ask(restore, &planned, &seen, &context.settings, client).await;
        }
        return Ok(seen);
    }
    let work_claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), work);
    let holders = Api::<Pod>::namespaced(client.clone(), work);
    let (work_claims, holders) = try_join!(work_claims.list(&ours), holders.list(&ours))?;
    (seen.work_claims, seen.holders) = (by_claim(work_claims.items), by_claim(holders.items));
    let named = named_volumes(restore, status, &seen);
    let (written, made, replaced) = try_join!(
        get_each(&volumes, named.written),
        get_each(&volumes, named.made),
        get_each(&volumes, named.replaced)
    )?;
    seen.written = written.into_iter().collect();
    seen.volumes = made.into_iter().collect();
    seen.replaced = replaced.into_iter().collect();
    if restore.spec.in_place && status.step >= RestoreStep::HandOver {
        let pods = Api::<Pod>::namespaced(client.clone(), &target);
        seen.pods = pods.list(&ListParams::default()).await?.items;
    }
    if status.step >= RestoreStep::HandOver || status.step == RestoreStep::Data && !waves::is_last(status) {
        let nodes = status.volumes.values().filter_map(|volume| volume.node.as_ref());
        seen.attached = attached(client, nodes.collect()).await?;
    }
    if status.step == RestoreStep::Data && seen.holders.values().any(|pod| !runs(pod)) {
        seen.warnings = warnings(client, work).await?;
    }
    let (run, nodes) = join!(ask_for_run(restore, status, context), context.coordinator.nodes());
    (seen.run, seen.nodes) = (run, nodes.ok());
    seen.may_expose = take_slots(restore, status, &seen, context).await?;
    Ok(seen)
}

/// The volume of a claim, if it is bound to one.
fn bound_volume(claim: &PersistentVolumeClaim) -> Option<String> {
    claim.spec.as_ref()?.volume_name.clone().filter(|name| !name.is_empty())
}

/// The volumes that the target's claims use now: their names, by the claim's.
fn used_volumes(seen: &Observed) -> Vec<(String, String)> {
    seen.claims.iter().filter_map(|(name, claim)| Some((name.clone(), bound_volume(claim)?))).collect()
}

/// The names of volumes that a restore knows, by the claim's name in the point.
struct NamedVolumes {
    written: Vec<(String, String)>,
    made: Vec<(String, String)>,
    replaced: Vec<(String, String)>,
}

fn named_volumes(restore: &Restore, status: &RestoreStatus, seen: &Observed) -> NamedVolumes {
    let of_status = |of: &dyn Fn(&str, &RestoredVolume) -> Option<String>| -> Vec<(String, String)> {
        status.volumes.iter().filter_map(|(name, volume)| Some((name.clone(), of(name, volume)?))).collect()
    };
    let noted = of_status(&|_, volume| volume.written_volume.clone());
    let bound = seen.work_claims.values().filter_map(|claim| Some((claim_of(&claim.metadata), bound_volume(claim)?)));
    // What status says counts if it is there: it comes last.
    let bound = bound.filter(|volume| !noted.contains(volume));
    NamedVolumes {
        written: bound.chain(noted.iter().cloned()).collect(),
        made: of_status(&|name, _| Some(run_of(restore).name(name))),
        replaced: of_status(&|_, volume| volume.replaces.as_ref().map(|before| before.volume.clone())),
    }
}

/// Takes slots for the volumes of the present wave; gives them back once all are written.
async fn take_slots(
    restore: &Restore,
    status: &RestoreStatus,
    seen: &Observed,
    context: &Context,
) -> Result<bool, kube::Error> {
    let uid = restore.uid().unwrap_or_default();
    if status.step != RestoreStep::Data || status.failure.is_some() {
        context.memory.forget(&uid);
        return Ok(false);
    }
    // One that waits for its turn, or whose coordinator is away, uses none.
    let moves = matches!(&seen.run, RunSeen::Opened(run) if !run.waiting);
    let wave: BTreeSet<String> = waves::present(status).into_iter().collect();
    let held = wave.iter().any(|name| seen.work_claims.contains_key(name));
    if !moves && !held {
        return Ok(false);
    }
    let ask = !held && !context.memory.knows_all();
    let elsewhere = if ask { exposed(&context.client, &context.settings.work_namespace).await? } else { 0 };
    Ok(context.memory.take_together(&uid, wave, held, elsewhere, context.settings.exposed_max))
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
    // Each wave is a run of its own: a run begins to write once all its targets are known.
    let wave = if status.wave > 0 { format!("/{}", status.wave) } else { String::new() };
    let request = control::OpenRunRequest {
        request_id: format!("restore/{}{wave}", restore.uid().unwrap_or_default()),
        order: Some(control::open_run_request::Order::Restore(order)),
    };
    RunSeen::of(context.coordinator.open(request).await)
}
