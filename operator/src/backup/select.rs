//! Which claims a backup reads, and which it can't.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt;
use kube::api::ListParams;
use milkrun_resources::Backup;
use milkrun_resources::backup::VolumeStatus;

use super::observe::Observed;
use crate::snapshots::VolumeSnapshotClass;

/// Marks the class of snapshots that is taken where a driver has several.
const DEFAULT_CLASS: &str = "snapshot.storage.kubernetes.io/is-default-class";

/// What a backup reads.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Selected {
    /// Volumes, by claim.
    pub(super) volumes: BTreeMap<String, VolumeStatus>,
    /// Claims that are left out, and why.
    pub(super) skipped: BTreeMap<String, String>,
    /// Claims that can't be backed up, and why: the backup fails.
    pub(super) refused: Vec<String>,
}

/// How the API server is asked for the claims.
pub(super) fn selecting(backup: &Backup) -> ListParams {
    let Some(LabelSelector { match_labels, match_expressions }) = &backup.spec.claims else {
        return ListParams::default();
    };
    let mut terms: Vec<String> = match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
    for expression in match_expressions.iter().flatten() {
        let (key, values) = (&expression.key, expression.values.clone().unwrap_or_default().join(","));
        terms.push(match expression.operator.as_str() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.clone(),
        });
    }
    ListParams::default().labels(&terms.join(","))
}

/// The class of snapshots of a driver.
pub(super) fn snapshot_class<'a>(classes: &'a [VolumeSnapshotClass], driver: &str) -> Option<&'a VolumeSnapshotClass> {
    let mut of: Vec<&VolumeSnapshotClass> = classes.iter().filter(|class| class.driver == driver).collect();
    of.sort_by_key(|class| {
        (class.annotations().get(DEFAULT_CLASS).map(String::as_str) != Some("true"), class.name_any())
    });
    of.first().copied()
}

/// The CSI driver of a volume.
pub(super) fn driver_of(volume: &PersistentVolume) -> Option<&str> {
    Some(volume.spec.as_ref()?.csi.as_ref()?.driver.as_str())
}

/// A secret of a class that depends on the claim is looked up in the claim's namespace, and our claims are in another one.
pub(super) fn is_templated(parameters: &BTreeMap<String, String>) -> bool {
    parameters.iter().any(|(key, value)| key.contains("secret") && value.contains("${"))
}

/// Why a claim can't be backed up.
fn obstacle(claim: &PersistentVolumeClaim, seen: &Observed) -> Option<String> {
    if claim.metadata.deletion_timestamp.is_some() {
        return Some("it is being deleted".into());
    }
    if claim.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Bound") {
        return Some("it is not bound to a volume".into());
    }
    let Some(volume) = seen.volumes.get(&claim.name_any()) else { return Some("its volume is gone".into()) };
    let Some(driver) = driver_of(volume) else {
        return Some("its volume is of no CSI driver, and has no snapshots".into());
    };
    let Some(class) = snapshot_class(&seen.snapshot_classes, driver) else {
        return Some(format!("there is no VolumeSnapshotClass of its driver {driver}"));
    };
    if is_templated(&class.parameters) {
        return Some(format!(
            "the VolumeSnapshotClass {} names its secrets by template, which depends on the claim's namespace",
            class.name_any()
        ));
    }
    None
}

/// Chooses.
pub(super) fn select(backup: &Backup, seen: &Observed) -> Selected {
    let mut selected = Selected::default();
    for claim in &seen.claims {
        let name = claim.name_any();
        if backup.spec.skip.contains(&name) {
            selected.skipped.insert(name, "spec.skip names it".into());
            continue;
        }
        if let Some(why) = obstacle(claim, seen) {
            selected.refused.push(format!("claim {name}: {why}"));
            continue;
        }
        let volume = seen.volumes.get(&name).map(ResourceExt::name_any);
        selected.volumes.insert(name, VolumeStatus { volume, ..VolumeStatus::default() });
    }
    for name in &backup.spec.skip {
        if !seen.claims.iter().any(|claim| claim.name_any() == *name) {
            selected.refused.push(format!("spec.skip: there is no claim {name}"));
        }
    }
    if selected.volumes.is_empty() && selected.refused.is_empty() {
        selected.refused.push("no claim of this namespace is selected".into());
    }
    selected
}
