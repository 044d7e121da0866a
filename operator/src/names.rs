//! Names and labels of what is made for a run. The same run and claim always give the same name.

use std::collections::BTreeMap;

use kube::api::ObjectMeta;
use milkrun_resources::labels;

/// The object that a run is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOf {
    /// `Backup` or `Restore`.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl RunOf {
    /// The name of what is made for a claim. Names of claims may have 253 characters, names of pods' labels and of many
    /// drivers' volumes only 63.
    #[must_use]
    pub fn name(&self, claim: &str) -> String {
        let digest = blake3::hash(format!("{}/{claim}", self.uid).as_bytes()).to_hex();
        format!("milkrun-{}", &digest[..24])
    }

    /// The metadata of what is made for a claim.
    #[must_use]
    pub fn metadata(&self, namespace: Option<&str>, claim: &str, role: &str) -> ObjectMeta {
        let labels = [
            (labels::RUN.to_owned(), self.uid.clone()),
            (labels::RUN_KIND.to_owned(), self.kind.to_owned()),
            (labels::ROLE.to_owned(), role.to_owned()),
            (labels::MANAGED_BY.0.to_owned(), labels::MANAGED_BY.1.to_owned()),
        ];
        let annotations = [
            (labels::CLAIM.to_owned(), claim.to_owned()),
            (labels::RUN_NAMESPACE.to_owned(), self.namespace.clone()),
            (labels::RUN_NAME.to_owned(), self.name.clone()),
        ];
        ObjectMeta {
            name: Some(self.name(claim)),
            namespace: namespace.map(str::to_owned),
            labels: Some(labels.into()),
            annotations: Some(annotations.into()),
            ..ObjectMeta::default()
        }
    }

    /// Selects everything that was made for the run.
    #[must_use]
    pub fn selector(&self) -> String {
        format!("{}={}", labels::RUN, self.uid)
    }
}

/// The claim that an object was made for.
#[must_use]
pub fn claim_of(metadata: &ObjectMeta) -> String {
    metadata.annotations.as_ref().and_then(|all| all.get(labels::CLAIM)).cloned().unwrap_or_default()
}

/// Objects by the claim that they were made for.
#[must_use]
pub fn by_claim<K: kube::Resource>(all: Vec<K>) -> BTreeMap<String, K> {
    all.into_iter().map(|object| (claim_of(object.meta()), object)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_differ_by_run_and_claim() {
        let run = |uid: &str| RunOf { kind: "Backup", namespace: "a".into(), name: "b".into(), uid: uid.into() };
        let long = "x".repeat(253);
        assert!(run("1").name(&long).len() <= 63);
        assert_eq!(run("1").name("c"), run("1").name("c"));
        assert_ne!(run("1").name("c"), run("2").name("c"));
        assert_ne!(run("1").name("c"), run("1").name("d"));
    }
}
