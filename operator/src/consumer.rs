//! The pod that uses a claim, as far as it decides where the claim's volume may lie: what it asks of its node. A restore places
//! new volumes by it, also where no pod uses them yet.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, Pod, PodAffinityTerm, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use crate::claim_facts::bytes;

/// A pod that uses claims. It is stored as a JSON object; fields may be added, and none may change its meaning.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Consumer {
    /// Its name.
    pub name: String,
    /// Its labels: what keeps pods apart selects by them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Labels that its node must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Near what, and far from what, it must run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// How it and its like are spread.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub spread: Vec<TopologySpreadConstraint>,
    /// Thousandths of a CPU that its containers ask for together.
    pub cpu_milli: i64,
    /// Bytes of memory that its containers ask for together.
    pub memory: i64,
}

impl Consumer {
    /// What `pod` asks for.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let asked = |name: &str, read: fn(&str) -> Option<i64>| {
            let of = spec.containers.iter().filter_map(|c| c.resources.as_ref()?.requests.as_ref()?.get(name));
            of.filter_map(|quantity| read(&quantity.0)).fold(0, i64::saturating_add)
        };
        Self {
            name: pod.name_any(),
            labels: pod.labels().clone(),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            affinity: spec.affinity.clone(),
            spread: spec.topology_spread_constraints.clone().unwrap_or_default(),
            cpu_milli: asked("cpu", milli),
            memory: asked("memory", bytes),
        }
    }

    /// Whether it must keep away from other pods, or be spread with its like.
    #[must_use]
    pub fn keeps_apart(&self) -> bool {
        let anti = self.affinity.as_ref().and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let required = anti.and_then(|anti| anti.required_during_scheduling_ignored_during_execution.as_ref());
        required.is_some_and(|terms| !terms.is_empty())
            || self.spread.iter().any(|spread| spread.when_unsatisfiable == "DoNotSchedule")
    }

    /// The affinity of a pod elsewhere that takes this one's place: pods that this one must be near are not there yet, and those
    /// that it must be far from are looked for in both namespaces.
    #[must_use]
    pub fn affinity_of_stand_in(&self, namespaces: &[String]) -> Option<Affinity> {
        let mut affinity = self.affinity.clone()?;
        affinity.pod_affinity = None;
        if let Some(apart) = &mut affinity.pod_anti_affinity {
            let everywhere = |term: &mut PodAffinityTerm| {
                // The API server has merged these keys into the selector, and takes none twice.
                (term.match_label_keys, term.mismatch_label_keys) = (None, None);
                if term.namespaces.is_none() && term.namespace_selector.is_none() {
                    term.namespaces = Some(namespaces.to_vec());
                }
            };
            apart.required_during_scheduling_ignored_during_execution.iter_mut().flatten().for_each(everywhere);
            let preferred = apart.preferred_during_scheduling_ignored_during_execution.iter_mut().flatten();
            preferred.for_each(|weighted| everywhere(&mut weighted.pod_affinity_term));
        }
        Some(affinity)
    }

    /// How a stand-in is spread with its like.
    #[must_use]
    pub fn spread_of_stand_in(&self) -> Vec<TopologySpreadConstraint> {
        let mut spread = self.spread.clone();
        spread.iter_mut().for_each(|constraint| constraint.match_label_keys = None);
        spread
    }

    /// What a stand-in asks for, so that there is room for this one where it ran.
    #[must_use]
    pub fn requests(&self) -> BTreeMap<String, Quantity> {
        let all = [("cpu", self.cpu_milli, "m"), ("memory", self.memory, "")];
        let asked = all.into_iter().filter(|(_, amount, _)| *amount > 0);
        asked.map(|(name, amount, unit)| (name.to_owned(), Quantity(format!("{amount}{unit}")))).collect()
    }
}

/// Thousandths of a CPU, as Kubernetes writes CPUs.
fn milli(quantity: &str) -> Option<i64> {
    match quantity.strip_suffix('m') {
        Some(milli) => milli.parse().ok(),
        // A part of a CPU is written with up to three digits.
        None => match quantity.split_once('.') {
            None => quantity.parse::<i64>().ok()?.checked_mul(1000),
            Some((whole, part)) => format!("{whole}{part:0<3.3}").parse().ok(),
        },
    }
}

/// The pod that uses each claim; of several, the first by name.
#[must_use]
pub fn consumers(pods: &[Pod]) -> BTreeMap<String, Consumer> {
    let mut all = BTreeMap::new();
    let mut sorted: Vec<&Pod> = pods.iter().collect();
    sorted.sort_by_key(|pod| pod.name_any());
    for pod in sorted {
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            if let Some(source) = &volume.persistent_volume_claim {
                all.entry(source.claim_name.clone()).or_insert_with(|| Consumer::of(pod));
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, claim: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"app": "db"}},
            "spec": {
                "containers": [
                    {"name": "a", "resources": {"requests": {"cpu": "250m", "memory": "1Gi"}}},
                    {"name": "b", "resources": {"requests": {"cpu": "1.5"}}},
                ],
                "nodeSelector": {"disk": "fast"},
                "affinity": {
                    "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]},
                    "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "host"}]},
                },
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}],
            },
        }))
        .unwrap()
    }

    #[test]
    fn what_a_pod_asks_for_is_kept_and_read_again() {
        let found = &consumers(&[pod("db-1", "data"), pod("db-0", "data")])["data"];
        assert_eq!((found.name.as_str(), found.cpu_milli, found.memory), ("db-0", 1750, 1 << 30));
        assert_eq!(found.requests()["cpu"].0, "1750m");
        let again: Consumer = serde_json::from_str(&serde_json::to_string(found).unwrap()).unwrap();
        assert_eq!(again, *found);
    }

    #[test]
    fn a_stand_in_waits_for_no_pod_and_keeps_apart_in_both_namespaces() {
        let affinity = Consumer::of(&pod("db-0", "data")).affinity_of_stand_in(&["a".into(), "b".into()]).unwrap();
        assert_eq!(affinity.pod_affinity, None);
        let apart = affinity.pod_anti_affinity.unwrap().required_during_scheduling_ignored_during_execution.unwrap();
        assert_eq!(apart[0].namespaces.as_deref(), Some(&["a".to_owned(), "b".to_owned()][..]));
    }
}
