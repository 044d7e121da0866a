//! The objects that a restore makes: the claim that waits for its volume, the claim whose volume is written, its holder.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, Pod, VolumeResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::ObjectMeta;
use milkrun_resources::Restore;
use milkrun_resources::restore::RestoredVolume;

use super::observe::{Observed, run_of, target};
use crate::Settings;
use crate::actions::{Action, Kind};
use crate::consumer::Consumer;
use crate::holder::{Placement, holder};

fn requests(size: &str) -> VolumeResourceRequirements {
    let requests: BTreeMap<String, Quantity> = [("storage".to_owned(), Quantity(size.to_owned()))].into();
    VolumeResourceRequirements { requests: Some(requests), ..VolumeResourceRequirements::default() }
}

/// Whether a pod uses a claim.
pub(super) fn uses(pod: &Pod, claim: &str) -> bool {
    let over = matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"));
    let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    !over && volumes.any(|volume| volume.persistent_volume_claim.as_ref().is_some_and(|of| of.claim_name == claim))
}

/// The claim that the application uses. It names the volume to come, so nobody provisions one for it. `before`: the metadata of
/// the claim that it replaces.
pub(super) fn reserve(restore: &Restore, name: &str, volume: &RestoredVolume, before: Option<ObjectMeta>) -> Action {
    let run = run_of(restore);
    let mut metadata = run.metadata(Some(&target(restore)), name, "restored");
    metadata.name = Some(volume.claim.clone());
    if let Some(before) = before {
        let more = |ours: &mut Option<BTreeMap<String, String>>, theirs: Option<BTreeMap<String, String>>| {
            let mut all = theirs.unwrap_or_default();
            all.append(ours.get_or_insert_default());
            *ours = Some(all);
        };
        more(&mut metadata.labels, before.labels);
        more(&mut metadata.annotations, before.annotations);
        metadata.owner_references = before.owner_references;
    }
    let spec = PersistentVolumeClaimSpec {
        access_modes: Some(volume.access_modes.clone()),
        resources: Some(requests(&volume.bytes.to_string())),
        storage_class_name: Some(volume.storage_class.clone()),
        volume_mode: Some(volume.mode.clone()),
        volume_name: Some(run.name(name)),
        ..PersistentVolumeClaimSpec::default()
    };
    Action::create(Kind::Claim, &PersistentVolumeClaim { metadata, spec: Some(spec), status: None })
}

/// The claim whose volume is written, as a device.
pub(super) fn work_claim(restore: &Restore, name: &str, volume: &RestoredVolume, settings: &Settings) -> Action {
    let spec = PersistentVolumeClaimSpec {
        access_modes: Some(vec!["ReadWriteOnce".into()]),
        resources: Some(requests(&volume.bytes.to_string())),
        storage_class_name: Some(volume.storage_class.clone()),
        volume_mode: Some("Block".into()),
        ..PersistentVolumeClaimSpec::default()
    };
    let metadata = run_of(restore).metadata(Some(&settings.work_namespace), name, "claim");
    Action::create(Kind::Claim, &PersistentVolumeClaim { metadata, spec: Some(spec), status: None })
}

/// The pod that holds the volumes of a group.
pub(super) fn work_holder(
    restore: &Restore,
    group: &str,
    names: &[String],
    consumer: Option<&String>,
    seen: &Observed,
    settings: &Settings,
) -> Action {
    let run = run_of(restore);
    let mut metadata = run.metadata(Some(&settings.work_namespace), group, "holder");
    // A volume may have the name of its pod, and has a claim of that name.
    metadata.name = Some(run.name(&format!("pod/{group}")));
    let claims: Vec<&PersistentVolumeClaim> = names.iter().filter_map(|name| seen.work_claims.get(name)).collect();
    let mut consumer: Option<Consumer> = consumer.and_then(|pod| serde_json::from_str(pod).ok());
    let mut namespaces = vec![settings.work_namespace.clone()];
    if restore.spec.in_place {
        // The pods that it stands in for run meanwhile: they are in nobody's way, and need no second room.
        if let Some(pod) = &mut consumer {
            (pod.cpu_milli, pod.memory) = (0, 0);
        }
    } else {
        namespaces.push(target(restore));
    }
    let placement = Placement { near: None, consumer, namespaces };
    Action::create(Kind::Pod, &holder(metadata, &claims, &placement, settings))
}
