//! milkrun's custom resources: what people and GitOps write, and what the operator and the coordinator answer in status.
//!
//! | kind | who writes it | what |
//! |---|---|---|
//! | [`Repository`] | platform engineer, in milkrun's namespace | where restore points are, and the Secret to get at them |
//! | [`Backup`] | team, CI, GitOps | one attempt to make one restore point |
//! | [`BackupPolicy`] | team, GitOps | when attempts are made |
//! | [`RestorePoint`] | the operator | what a repository holds; rebuilt at any time |
//! | [`Restore`] | team, on-call | which point, what of it, where to |
//!
//! `deploy/crds` holds the definitions that [`definitions`] makes; a test compares them.

#![allow(unreachable_pub, reason = "the derived code has items that are public in private modules")]
#![allow(clippy::duplicated_attributes, reason = "columns of a table have like attributes")]

pub mod api_server;
pub mod backup;
pub mod backup_policy;
pub mod condition;
pub mod labels;
pub mod patch;
pub mod repository;
pub mod restore;
pub mod restore_point;

pub use backup::{Backup, BackupSpec, BackupStatus};
pub use backup_policy::{BackupPolicy, BackupPolicySpec, BackupPolicyStatus};
pub use condition::Conditions;
pub use repository::{Repository, RepositorySpec, RepositoryStatus};
pub use restore::{Restore, RestoreSpec, RestoreStatus};
pub use restore_point::{RestorePoint, RestorePointSpec};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// The API group of all kinds.
pub const GROUP: &str = "milkrun.dev";
/// The version of all kinds.
pub const VERSION: &str = "v1alpha1";

/// The definitions of all kinds.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![Backup::crd(), BackupPolicy::crd(), Repository::crd(), Restore::crd(), RestorePoint::crd()]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// `MILKRUN_BLESS=1` writes the files anew.
    #[test]
    fn the_definitions_in_the_chart_are_those_of_the_types() {
        for definition in definitions() {
            let name = format!("{}.yaml", definition.spec.names.plural);
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds").join(&name);
            let text = serde_yaml_ng::to_string(&definition).unwrap();
            if std::env::var_os("MILKRUN_BLESS").is_some() {
                std::fs::write(&path, &text).unwrap();
            }
            assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), text, "{name}: run with MILKRUN_BLESS=1");
        }
    }
}
