//! What resource quotas leave room for.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;

use crate::claim_facts::bytes;

/// What a quota counts for each storage class begins with the class, and goes on with this.
const OF_CLASS: &str = ".storageclass.storage.k8s.io/";

/// Claims to be made, and their bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    claims: i64,
    bytes: i64,
}

impl Sum {
    fn add(&mut self, bytes: i64) {
        self.claims += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn of(self, resource: &str) -> Option<i64> {
        match resource {
            "persistentvolumeclaims" | "count/persistentvolumeclaims" => Some(self.claims),
            "requests.storage" => Some(self.bytes),
            _ => None,
        }
    }
}

/// The claims that are to be made in one namespace.
#[derive(Debug, Default)]
pub(super) struct NewClaims {
    all: Sum,
    classes: BTreeMap<String, Sum>,
}

impl NewClaims {
    /// Another one.
    pub(super) fn add(&mut self, class: &str, bytes: i64) {
        self.all.add(bytes);
        self.classes.entry(class.to_owned()).or_default().add(bytes);
    }

    fn of(&self, resource: &str) -> Option<i64> {
        match resource.split_once(OF_CLASS) {
            Some((class, what)) => self.classes.get(class)?.of(what),
            None => self.all.of(resource),
        }
    }

    /// What a quota has no room for. `now`: what is used now counts, too; otherwise only what can never be.
    pub(super) fn exceed(&self, quota: &ResourceQuota, now: bool) -> Vec<String> {
        let spec = quota.spec.clone().unwrap_or_default();
        if spec.scopes.is_some() || spec.scope_selector.is_some() {
            // It is about pods, or about some of the claims: the API server knows.
            return Vec::new();
        }
        let used = quota.status.as_ref().and_then(|status| status.used.as_ref()).filter(|_| now);
        let amount = |quantity: &Quantity| bytes(&quantity.0);
        let mut problems = Vec::new();
        for (resource, hard) in spec.hard.iter().flatten() {
            let (Some(needed), Some(most)) = (self.of(resource), amount(hard)) else { continue };
            let taken = used.and_then(|used| used.get(resource)).and_then(amount).unwrap_or(0);
            if needed > 0 && taken.saturating_add(needed) > most {
                problems.push(format!(
                    "the quota {} of the namespace {} allows {resource} {}: {taken} is used, and {needed} more is needed",
                    quota.name_any(),
                    quota.namespace().unwrap_or_default(),
                    hard.0
                ));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn quota(hard: serde_json::Value, used: serde_json::Value) -> ResourceQuota {
        let metadata = json!({"name": "q", "namespace": "shop"});
        serde_json::from_value(json!({"metadata": metadata, "spec": {"hard": hard}, "status": {"used": used}})).unwrap()
    }

    fn two() -> NewClaims {
        let mut new = NewClaims::default();
        new.add("fast", 1 << 30);
        new.add("slow", 2 << 30);
        new
    }

    #[test]
    fn a_quota_is_asked_for_all_claims_together() {
        let whole = quota(json!({"persistentvolumeclaims": "2", "requests.storage": "3Gi"}), json!({}));
        assert!(two().exceed(&whole, true).is_empty());
        let hard = json!({"persistentvolumeclaims": "2", "pods": "0"});
        let taken = quota(hard, json!({"persistentvolumeclaims": "1"}));
        let said = two().exceed(&taken, true);
        assert_eq!(
            said,
            ["the quota q of the namespace shop allows persistentvolumeclaims 2: 1 is used, and 2 more is needed"]
        );
        // What others use there may go in time.
        assert!(two().exceed(&taken, false).is_empty());
        let small = quota(json!({"requests.storage": "2Gi"}), json!({}));
        assert_eq!(two().exceed(&small, false).len(), 1);
    }

    #[test]
    fn a_quota_may_be_about_one_class() {
        let of = |class: &str, what: &str| format!("{class}{OF_CLASS}{what}");
        let hard = json!({of("slow", "requests.storage"): "1Gi", of("fast", "requests.storage"): "1Gi",
            of("fast", "persistentvolumeclaims"): "1", of("other", "persistentvolumeclaims"): "0"});
        let said = two().exceed(&quota(hard, json!({})), true);
        assert!(said.len() == 1 && said[0].contains("slow"), "{said:?}");
    }

    #[test]
    fn a_quota_with_a_scope_is_left_to_the_api_server() {
        let mut scoped = quota(json!({"persistentvolumeclaims": "0"}), json!({}));
        scoped.spec.as_mut().unwrap().scopes = Some(vec!["BestEffort".into()]);
        assert!(two().exceed(&scoped, true).is_empty());
    }
}
