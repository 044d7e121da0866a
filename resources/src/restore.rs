//! A restore: which point, what of it, where to.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// Restores volumes of a restore point as claims of its namespace.
///
/// Example:
///
/// ```yaml
/// apiVersion: milkrun.dev/v1alpha1
/// kind: Restore
/// metadata: {name: yesterday, namespace: shop}
/// spec: {repository: prod, point: shop@latest}
/// ```
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "milkrun.dev",
    version = "v1alpha1",
    kind = "Restore",
    namespaced,
    status = "RestoreStatus",
    shortname = "mrestore",
    category = "milkrun",
    printcolumn(name = "Point", type_ = "string", json_path = ".status.point"),
    printcolumn(name = "Step", type_ = "string", json_path = ".status.step"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.spec == oldSelf.spec || !has(oldSelf.status)").message("a Restore is one attempt: make another one")
)]
#[serde(rename_all = "camelCase")]
pub struct RestoreSpec {
    /// The name of the `Repository`, in milkrun's namespace.
    #[x_kube(validation = Rule::new("self.size() > 0").message("name the Repository"))]
    pub repository: String,
    /// A point's id, `APPLICATION@latest`, or `APPLICATION@TIME`.
    #[x_kube(validation = Rule::new("self.size() > 0").message("name the point: its id, or APPLICATION@latest"))]
    pub point: String,
    /// The namespace that the application ran in, where it is another one. Only from milkrun's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_namespace: Option<String>,
    /// The cluster that the application ran in, where it is another one. Only from milkrun's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_cluster: Option<String>,
    /// The namespace to restore into. Only from milkrun's own namespace; without it, that of this object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_namespace: Option<String>,
    /// What becomes of which volume. Without it, each volume becomes a claim of its old name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeMapping>,
    /// Goes on though the point lacks these volumes of the application.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<String>,
    /// Replaces claims that are there. Their new volumes are written while the application runs; then each claim is made anew
    /// as soon as no pod uses it. The volume of before is kept, and `status.volumes[*].undo` is the command to go back to it.
    #[serde(default)]
    pub in_place: bool,
    /// Makes volumes anywhere, whatever node labels, zones and distances the pods that used them ask for. For a cluster whose
    /// nodes have other labels.
    #[serde(default)]
    pub anywhere: bool,
    /// Shows in status what would be done, and does nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What becomes of a volume.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMapping {
    /// The volume's name in the point: that of its claim.
    pub volume: String,
    /// The claim's new name. Without it, the old one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// Another storage class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// A larger size, as Kubernetes writes sizes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
}

/// The steps of a restore, in their order.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum RestoreStep {
    /// Finds out what would stop it, before anything is written.
    #[default]
    Check,
    /// Makes the claims, so that nobody else does.
    Reserve,
    /// Makes volumes, and writes them.
    Data,
    /// Gives the volumes to the claims.
    HandOver,
    /// Removes what the run made in the cluster.
    CleanUp,
    /// All is done.
    Done,
}

/// What the operator says of a restore.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RestoreStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Complete` or `Failed`, one of which always comes; `Ready` says the same.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// What is done now.
    #[serde(default)]
    pub step: RestoreStep,
    /// When it began, for each step.
    #[serde(default)]
    pub steps: BTreeMap<String, Time>,
    /// Why it failed, or what it waits for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Why it failed. Clean-up comes first, the condition then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The run's id at the coordinator, in hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// The point's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point: Option<String>,
    /// Which wave of volumes is written now. Volumes are written so many at once as the cluster's operator allows.
    #[serde(default, skip_serializing_if = "is_first")]
    pub wave: i32,
    /// When bytes were counted last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<Time>,
    /// What is made, by the volume's name in the point. It is the plan, and what a new leader goes on with.
    #[serde(default)]
    pub volumes: BTreeMap<String, RestoredVolume>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_first(wave: &i32) -> bool {
    *wave == 0
}

/// A volume that a restore makes.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RestoredVolume {
    /// The claim that it becomes.
    pub claim: String,
    /// The claim's UID, once it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_uid: Option<String>,
    /// Volumes of one group are written at one place, so that one pod can use them all.
    pub group: String,
    /// The wave that it is written in.
    #[serde(default, skip_serializing_if = "is_first")]
    pub wave: i32,
    /// What the pod that used it asks of its node: JSON. The volume is made where that pod can run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
    /// The storage class.
    pub storage_class: String,
    /// `Block` or `Filesystem`.
    pub mode: String,
    /// How it may be mounted.
    pub access_modes: Vec<String>,
    /// The size of the claim, as Kubernetes writes sizes.
    pub size: String,
    /// Bytes of the image.
    pub bytes: i64,
    /// What becomes of the volume when the claim goes: `Delete` or `Retain`, as its class says.
    pub reclaim_policy: String,
    /// The file system, for mode Filesystem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_system: Option<String>,
    /// The node that writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Since when its holder is waited for, by the operator's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_since: Option<Time>,
    /// Bytes of the image that are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<i64>,
    /// The claim that it replaces, of a restore in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<ReplacedClaim>,
    /// The command that brings back the volume of before, once the claim was replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<String>,
    /// The volume that was written. It goes, and another one with the same storage comes in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_volume: Option<String>,
    /// The whole persistent volume of the claim, before it is made: JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_volume: Option<String>,
    /// Whether that volume was made. One that is gone later is not made again.
    #[serde(default)]
    pub made: bool,
}

/// A claim that a restore in place replaces.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ReplacedClaim {
    /// Its UID.
    pub uid: String,
    /// Its persistent volume. It is kept.
    pub volume: String,
    /// The reclaim policy of that volume.
    pub reclaim_policy: String,
    /// Whether no pod used the claim, so that it may be removed. What has begun is ended.
    #[serde(default)]
    pub removable: bool,
    /// The claim, as it can be made again: JSON.
    pub claim: String,
}
