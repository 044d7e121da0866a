//! The objects that a restore makes: the claim that waits for its volume, the claim whose volume is written, its holder.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use milkrun_resources::Restore;
use milkrun_resources::restore::RestoredVolume;

use super::observe::{run_of, target};
use crate::Settings;
use crate::actions::{Action, Kind};
use crate::holder::holder;

fn requests(size: &str) -> VolumeResourceRequirements {
    let requests: BTreeMap<String, Quantity> = [("storage".to_owned(), Quantity(size.to_owned()))].into();
    VolumeResourceRequirements { requests: Some(requests), ..VolumeResourceRequirements::default() }
}

/// The claim that the application uses. It names the volume to come, so nobody provisions one for it.
pub(super) fn reserve(restore: &Restore, name: &str, volume: &RestoredVolume) -> Action {
    let run = run_of(restore);
    let mut metadata = run.metadata(Some(&target(restore)), name, "restored");
    metadata.name = Some(volume.claim.clone());
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
pub(super) fn work_holder(restore: &Restore, group: &str, names: &[String], settings: &Settings) -> Action {
    let run = run_of(restore);
    let mut metadata = run.metadata(Some(&settings.work_namespace), group, "holder");
    // A volume may have the name of its pod, and has a claim of that name.
    metadata.name = Some(run.name(&format!("pod/{group}")));
    let claims: Vec<String> = names.iter().map(|name| run.name(name)).collect();
    Action::create(Kind::Pod, &holder(metadata, &claims, None, settings))
}
