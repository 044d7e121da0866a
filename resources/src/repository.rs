//! Where restore points are.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// A repository of restore points: a prefix in an S3 bucket. It is written in milkrun's own namespace.
///
/// Example:
///
/// ```yaml
/// apiVersion: milkrun.dev/v1alpha1
/// kind: Repository
/// metadata: {name: prod, namespace: milkrun}
/// spec:
///   url: s3://backups/prod
///   endpoint: https://s3.example.com
///   secretName: prod-repository
/// ```
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[kube(
    group = "milkrun.dev",
    version = "v1alpha1",
    kind = "Repository",
    namespaced,
    status = "RepositoryStatus",
    shortname = "mrepo",
    category = "milkrun",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "URL", type_ = "string", json_path = ".spec.url"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct RepositorySpec {
    /// Where it is: `s3://bucket/prefix`.
    #[x_kube(
        validation = Rule::new("self == oldSelf").message("a repository stays where it is: make another one"),
        validation = Rule::new("self.matches('^(s3|file)://.+')").message("write s3://bucket/prefix")
    )]
    pub url: String,
    /// The S3 endpoint. Without it, Amazon's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The S3 region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The Secret, in the same namespace, with `password` and, unless there is an `identity`, `accessKeyId` and
    /// `secretAccessKey`.
    #[x_kube(validation = Rule::new("self.size() > 0").message("name the Secret"))]
    pub secret_name: String,
    /// The role that is taken at the store, in place of a key in the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Makes the repository if there is none at this place. By default a missing one is an error: a mistyped prefix would
    /// be an empty repository.
    #[serde(default)]
    pub create: bool,
    /// How long objects are locked in the bucket. It counts when the repository is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<Lock>,
}

/// A role at the store, which the coordinator takes with a token that the cluster signed for it (`AssumeRoleWithWebIdentity`). The store
/// must trust the cluster's issuer of tokens.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// The role: `arn:aws:iam::123456789012:role/backup`.
    #[serde(rename = "roleARN")]
    #[x_kube(validation = Rule::new("self.startsWith('arn:')").message("write arn:aws:iam::123456789012:role/backup"))]
    pub role_arn: String,
    /// Whom the token is for. The chart's value `coordinator.storeAudiences` lists it, too.
    #[serde(default = "amazon")]
    pub audience: String,
    /// The token service. Without it, the endpoint of the bucket or, if that is not set, Amazon's in the region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

fn amazon() -> String {
    "sts.amazonaws.com".into()
}

/// How objects are locked.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Lock {
    /// Whether an administrator of the bucket can lift a lock.
    pub mode: LockMode,
    /// For how many days a restore point is locked at least.
    #[x_kube(validation = Rule::new("self >= 1 && self <= 36500").message("1 to 36500 days"))]
    pub days: i32,
}

/// Whether an administrator of the bucket can lift a lock.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Nobody can.
    Compliance,
    /// Whoever has a special right can.
    Governance,
}

/// What the coordinator says of it.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: whether it can be used.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// What is wrong, or nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The id that it got when it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The key that proves that its points were made with it, in hex digits. A copy of it elsewhere finds a forged repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
}
