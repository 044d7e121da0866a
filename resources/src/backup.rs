//! One attempt to make one restore point.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// Backs up an application of its namespace: one attempt to make one restore point.
///
/// Example:
///
/// ```yaml
/// apiVersion: milkrun.dev/v1alpha1
/// kind: Backup
/// metadata: {generateName: shop-, namespace: shop}
/// spec: {repository: prod}
/// ```
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "milkrun.dev",
    version = "v1alpha1",
    kind = "Backup",
    namespaced,
    status = "BackupStatus",
    shortname = "mbackup",
    category = "milkrun",
    printcolumn(name = "Application", type_ = "string", json_path = ".status.application"),
    printcolumn(name = "Step", type_ = "string", json_path = ".status.step"),
    printcolumn(name = "Point", type_ = "string", json_path = ".status.point"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.spec == oldSelf.spec || !has(oldSelf.status)").message("a Backup is one attempt: make another one")
)]
#[serde(rename_all = "camelCase")]
pub struct BackupSpec {
    /// The name of the `Repository`, in milkrun's namespace.
    #[x_kube(validation = Rule::new("self.size() > 0").message("name the Repository"))]
    pub repository: String,
    /// The application's name. Without it, that of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.size() > 0 && self.size() <= 63").message("1 to 63 characters"))]
    pub application: Option<String>,
    /// Which claims of the namespace belong to it. Without it, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<LabelSelector>,
    /// Claims that are left out, by name. The point says so, and a restore refuses without being told to go on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip: Vec<String>,
    /// For how many days the point is locked, where the bucket locks. Without it, as the repository says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 36500").message("1 to 36500 days"))]
    pub lock_days: Option<i32>,
    /// Freezes the file systems that running pods have mounted while all snapshots are cut, for at most so many seconds: the snapshots
    /// are then of one moment. Writers wait meanwhile. A run whose snapshots take longer is void: it fails. Without it, nothing is
    /// frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 300").message("1 to 300 seconds"))]
    pub freeze_seconds: Option<i32>,
    /// Takes a snapshot of each claim by itself, also where the driver has a `VolumeGroupSnapshotClass` and could cut all of its
    /// claims at one moment.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub separate_snapshots: bool,
    /// Reads volumes through claims that many nodes may read, for these storage classes. By default one node reads and may write,
    /// since not every driver has the other mode.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub read_only_many: Vec<String>,
}

/// The steps of a backup, in their order.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackupStep {
    /// Finds the claims, and refuses those that can't be backed up.
    #[default]
    Select,
    /// Opens the run at the coordinator.
    Open,
    /// Freezes file systems, if the backup says so.
    Freeze,
    /// Takes the snapshots, and waits until each is cut.
    Snapshot,
    /// Thaws what was frozen.
    Thaw,
    /// Offers the snapshots as devices, and moves their bytes.
    Move,
    /// Makes the restore point.
    Commit,
    /// Removes what the run made in the cluster.
    CleanUp,
    /// All is done.
    Done,
}

/// What the operator says of a backup.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BackupStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Complete` or `Failed`, one of which always comes; `Ready` says the same.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// What is done now.
    #[serde(default)]
    pub step: BackupStep,
    /// When it began, for each step.
    #[serde(default)]
    pub steps: BTreeMap<String, Time>,
    /// Why it failed, or what it waits for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Why it failed. Clean-up comes first, the condition then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The application's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application: Option<String>,
    /// The run's id at the coordinator, in hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Claims whose snapshots are cut at one moment, by the name of their `VolumeGroupSnapshot`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, GroupStatus>,
    /// What is frozen while the snapshots are cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<FreezeStatus>,
    /// The id of the restore point that it made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point: Option<String>,
    /// When bytes were counted last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<Time>,
    /// The volumes, by claim.
    #[serde(default)]
    pub volumes: BTreeMap<String, VolumeStatus>,
    /// Claims that are not in the point, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub skipped: BTreeMap<String, String>,
}

/// Claims of one driver whose snapshots are cut at one moment.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupStatus {
    /// The `VolumeGroupSnapshotClass`.
    pub class: String,
    /// The claims. They have a label of the group's name until the snapshots are cut.
    #[serde(default)]
    pub claims: Vec<String>,
    /// Whether the label was taken away again.
    #[serde(default)]
    pub swept: bool,
}

/// File systems that are frozen while snapshots are cut.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FreezeStatus {
    /// The process that froze them. If it goes away, the run is void: nobody else knows that they were frozen until all snapshots
    /// were cut.
    pub by: String,
    /// Where they are mounted, by claim. Claims that no running pod has mounted are not among them.
    #[serde(default)]
    pub mounts: BTreeMap<String, MountStatus>,
    /// Whether they were thawed.
    #[serde(default)]
    pub thawed: bool,
    /// For how many milliseconds writers waited; of several file systems, the longest time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_ms: Option<i64>,
}

/// A mounted file system on a node.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct MountStatus {
    /// The node.
    pub node: String,
    /// Where it is mounted there.
    pub path: String,
}

/// One volume of a run.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    /// The persistent volume that is read or was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// When its snapshot was cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moment: Option<Time>,
    /// The node that moves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Since when its holder is waited for, by the operator's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_since: Option<Time>,
    /// Whether the coordinator knows where it is.
    #[serde(default)]
    pub offered: bool,
    /// Bytes of the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    /// Bytes that were moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<i64>,
}
