//! What would stop a restore, found before anything is written; and the plan of each volume.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use milkrun_proto::control::v1 as control;
use milkrun_resources::Restore;
use milkrun_resources::restore::{ReplacedClaim, RestoredVolume, VolumeMapping};

use super::hand_over::policy;
use super::observe::{Observed, target};
use super::swap::replaced;
use crate::Settings;
use crate::claim_facts::{ClaimFacts, bytes};

/// The plan of all volumes, or everything that stops it.
pub(super) fn check(
    restore: &Restore,
    detail: &control::PointDetail,
    seen: &Observed,
    settings: &Settings,
) -> Result<Vec<(String, RestoredVolume)>, Vec<String>> {
    let mut problems = namespaces(restore, seen, settings);
    let skipped = detail.point.as_ref().map(|point| point.skipped.clone()).unwrap_or_default();
    for missing in skipped.iter().filter(|skipped| !restore.spec.without.contains(&skipped.name)) {
        problems.push(format!(
            "the point lacks the volume {} ({}): name it in spec.without to go on",
            missing.name, missing.reason
        ));
    }
    let mut planned = Vec::new();
    for name in wanted(restore, detail) {
        let Some(volume) = detail.volumes.iter().find(|volume| volume.name == name) else {
            problems.push(format!("the point has no volume {name}"));
            continue;
        };
        let mapping = restore.spec.volumes.iter().find(|mapping| mapping.volume == name);
        match volume_plan(restore, volume, mapping, seen) {
            Ok(plan) => planned.push((name, plan)),
            Err(why) => problems.push(format!("volume {name}: {why}")),
        }
    }
    if planned.is_empty() && problems.is_empty() {
        problems.push("the point has no volumes".into());
    }
    if problems.is_empty() { Ok(planned) } else { Err(problems) }
}

fn wanted(restore: &Restore, detail: &control::PointDetail) -> Vec<String> {
    if restore.spec.volumes.is_empty() {
        detail.volumes.iter().filter(|volume| !volume.stream).map(|volume| volume.name.clone()).collect()
    } else {
        restore.spec.volumes.iter().map(|mapping| mapping.volume.clone()).collect()
    }
}

fn namespaces(restore: &Restore, seen: &Observed, settings: &Settings) -> Vec<String> {
    let own = restore.namespace().unwrap_or_default();
    let mut problems = Vec::new();
    let elsewhere = restore.spec.from_namespace.is_some()
        || restore.spec.from_cluster.is_some()
        || restore.spec.to_namespace.is_some();
    if elsewhere && own != settings.namespace {
        problems.push(format!(
            "fromNamespace, fromCluster and toNamespace are for Restores in {}: a namespace is a boundary",
            settings.namespace
        ));
    }
    let target = target(restore);
    match &seen.namespace {
        None => problems.push(format!("there is no namespace {target}")),
        Some(found) if found.metadata.deletion_timestamp.is_some() => {
            problems.push(format!("the namespace {target} is being deleted"));
        }
        Some(_) => {}
    }
    problems
}

/// What is kept of a claim that is replaced.
fn replaceable(claim: &PersistentVolumeClaim, seen: &Observed) -> Result<ReplacedClaim, String> {
    let name = claim.name_any();
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(format!("the claim {name} is being deleted"));
    }
    let volume = seen.replaced.get(&name);
    let volume = volume.ok_or_else(|| format!("the claim {name} has no volume: remove it"))?;
    // A claim may name any volume before it is bound.
    let of = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()).and_then(|of| of.uid.clone());
    if of.is_none() || of != claim.metadata.uid {
        return Err(format!("the claim {name} is not bound to its volume"));
    }
    replaced(claim, policy(volume).unwrap_or("Delete")).ok_or_else(|| format!("the claim {name} has no volume"))
}

fn volume_plan(
    restore: &Restore,
    volume: &control::VolumeResult,
    mapping: Option<&VolumeMapping>,
    seen: &Observed,
) -> Result<RestoredVolume, String> {
    let facts = ClaimFacts::read(&volume.claim)?;
    let claim = mapping.and_then(|mapping| mapping.claim.clone()).unwrap_or_else(|| volume.name.clone());
    let before = match seen.claims.get(&claim) {
        None => None,
        Some(there) if restore.spec.in_place => Some(replaceable(there, seen)?),
        Some(_) => {
            return Err(format!(
                "there is a claim {claim} already: remove it, give the volume another claim, or set inPlace"
            ));
        }
    };
    let class_name = mapping.and_then(|mapping| mapping.storage_class.clone()).unwrap_or(facts.storage_class);
    let class = seen.classes.iter().find(|class| class.name_any() == class_name);
    let class = class.ok_or_else(|| format!("there is no storage class {class_name:?}: name one in spec.volumes"))?;
    let mode = if facts.volume_mode.is_empty() { "Filesystem".to_owned() } else { facts.volume_mode };
    let access_modes =
        if facts.access_modes.is_empty() { vec!["ReadWriteOnce".to_owned()] } else { facts.access_modes };
    if mode == "Filesystem" && access_modes.iter().any(|mode| mode == "ReadWriteMany") {
        return Err("a file system that many nodes write can't be restored as a device".into());
    }
    let image = i64::try_from(volume.size_bytes).unwrap_or(i64::MAX);
    let size = wanted_size(mapping, &facts.size, image, class)?;
    let size = match &before {
        // It has grown since: the application may count on it.
        Some(before) if class.allow_volume_expansion == Some(true) => larger(size, &before.claim),
        _ => size,
    };
    let file_system = if volume.file_system.is_empty() { facts.fs_type } else { Some(volume.file_system.clone()) };
    Ok(RestoredVolume {
        claim,
        group: facts.pod.unwrap_or_else(|| volume.name.clone()),
        consumer: facts.consumer.filter(|_| !restore.spec.anywhere).and_then(|pod| serde_json::to_string(&pod).ok()),
        storage_class: class_name,
        access_modes,
        size,
        bytes: image,
        reclaim_policy: class.reclaim_policy.clone().unwrap_or_else(|| "Delete".into()),
        file_system: file_system.filter(|_| mode == "Filesystem"),
        replaces: before,
        mode,
        ..RestoredVolume::default()
    })
}

/// The larger one of a size and that of a claim.
fn larger(size: String, claim: &str) -> String {
    let claim = serde_json::from_str::<PersistentVolumeClaim>(claim).unwrap_or_default();
    let requests = claim.spec.and_then(|spec| spec.resources?.requests).unwrap_or_default();
    match requests.get("storage") {
        Some(other) if bytes(&other.0) > bytes(&size) => other.0.clone(),
        _ => size,
    }
}

/// The size of the claim: what is asked for, at least what the image has.
fn wanted_size(
    mapping: Option<&VolumeMapping>,
    before: &str,
    image: i64,
    class: &StorageClass,
) -> Result<String, String> {
    match mapping.and_then(|mapping| mapping.size.clone()) {
        Some(size) => match bytes(&size) {
            None => Err(format!("{size:?} is no size")),
            Some(wanted) if wanted < image => Err(format!("{size} is less than the {image} bytes of the image")),
            Some(wanted) if wanted > image && class.allow_volume_expansion != Some(true) => {
                Err(format!("the storage class {} expands no volumes", class.name_any()))
            }
            Some(_) => Ok(size),
        },
        None if bytes(before) == Some(image) => Ok(before.to_owned()),
        None => Ok(image.to_string()),
    }
}
