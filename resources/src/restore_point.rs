//! What a repository holds, for people who look with `kubectl`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// A restore point of a repository. The operator writes these from what repositories hold. They are never the truth: one that is
/// deleted comes back, and a point goes by its repository's retention.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "milkrun.dev",
    version = "v1alpha1",
    kind = "RestorePoint",
    namespaced,
    shortname = "mpoint",
    category = "milkrun",
    printcolumn(name = "Application", type_ = "string", json_path = ".spec.application"),
    printcolumn(name = "Taken", type_ = "date", json_path = ".spec.moment"),
    printcolumn(name = "Bytes", type_ = "integer", json_path = ".spec.bytes"),
    printcolumn(name = "Locked-Until", type_ = "string", json_path = ".spec.lockedUntil"),
    printcolumn(name = "Missing", type_ = "string", json_path = ".spec.skipped")
)]
#[serde(rename_all = "camelCase")]
pub struct RestorePointSpec {
    /// The `Repository` that holds it.
    pub repository: String,
    /// Its id there.
    pub point: String,
    /// The application.
    pub application: String,
    /// The cluster that the application ran in.
    pub cluster: String,
    /// The namespace that it ran in.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// When it was taken.
    pub moment: Time,
    /// Until when nobody can delete it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked_until: Option<Time>,
    /// Bytes of its volumes.
    pub bytes: i64,
    /// Its volumes.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// Volumes that the application had, and the point has not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<String>,
}
