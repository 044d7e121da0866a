//! Holder pods: they do nothing but hold a volume on a node, so that the agent there finds its device.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Affinity, Container, NodeAffinity, PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodSpec,
    ResourceRequirements, SecurityContext, Toleration, Volume, VolumeDevice, VolumeNodeAffinity,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::ResourceExt;
use kube::api::ObjectMeta;

use crate::Settings;
use crate::consumer::Consumer;
use crate::steps::since;
use crate::warnings::{Warnings, warned};

/// Tells the cluster's autoscaler which pods it may end.
const SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";
/// What a pod can't be run without is said only once it stays so.
const STUCK_AFTER: Duration = Duration::from_secs(30);
/// How long a node may be without an agent: it may have restarted, or the API server was away and the agents come back one by one.
/// Status says meanwhile what the run waits for.
const AGENT_MAX: Duration = Duration::from_secs(600);
/// An autoscaler may need a while to make a node.
const UNSCHEDULABLE_AFTER: Duration = Duration::from_secs(300);

/// Where a holder may run.
#[derive(Clone, Debug, Default)]
pub struct Placement<'a> {
    /// Where its volumes can be reached.
    pub near: Option<&'a VolumeNodeAffinity>,
    /// The pod that its volumes are for.
    pub consumer: Option<Consumer>,
    /// Where pods are looked for that it must keep away from.
    pub namespaces: Vec<String>,
}

impl Placement<'_> {
    fn affinity(&self) -> Option<Affinity> {
        let of_consumer = self.consumer.as_ref().and_then(|pod| pod.affinity_of_stand_in(&self.namespaces));
        let Some(required) = self.near.and_then(|near| near.required.clone()) else { return of_consumer };
        let node_affinity = NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(required),
            ..NodeAffinity::default()
        };
        Some(Affinity { node_affinity: Some(node_affinity), ..of_consumer.unwrap_or_default() })
    }
}

/// A holder of claims. It belongs to the first of them: `kubectl drain` refuses pods that nobody would make again.
#[must_use]
pub fn holder(
    mut metadata: ObjectMeta,
    claims: &[&PersistentVolumeClaim],
    placement: &Placement<'_>,
    settings: &Settings,
) -> Pod {
    let pod = placement.consumer.clone().unwrap_or_default();
    let mut labels = pod.labels.clone();
    labels.append(metadata.labels.get_or_insert_default());
    metadata.labels = Some(labels);
    // An autoscaler lets it end.
    metadata.annotations.get_or_insert_default().insert(SAFE_TO_EVICT.into(), "false".into());
    metadata.owner_references = claims.first().map(|claim| {
        vec![OwnerReference {
            api_version: "v1".into(),
            kind: "PersistentVolumeClaim".into(),
            name: claim.name_any(),
            uid: claim.uid().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: Some(false),
        }]
    });
    let device =
        |number: usize| VolumeDevice { name: format!("volume-{number}"), device_path: format!("/dev/volume-{number}") };
    let container = Container {
        name: "hold".into(),
        image: Some(settings.image.clone()),
        image_pull_policy: Some("IfNotPresent".into()),
        command: Some(vec!["/milkrun-operator".into(), "hold".into()]),
        volume_devices: Some((0..claims.len()).map(device).collect()),
        resources: Some(ResourceRequirements { requests: Some(pod.requests()), ..ResourceRequirements::default() }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        ..Container::default()
    };
    let volume = |(number, claim): (usize, &&PersistentVolumeClaim)| {
        let source = PersistentVolumeClaimVolumeSource { claim_name: claim.name_any(), read_only: None };
        Volume { name: format!("volume-{number}"), persistent_volume_claim: Some(source), ..Volume::default() }
    };
    let spec = PodSpec {
        affinity: placement.affinity(),
        automount_service_account_token: Some(false),
        containers: vec![container],
        enable_service_links: Some(false),
        node_selector: Some(pod.node_selector.clone()),
        restart_policy: Some("Never".into()),
        termination_grace_period_seconds: Some(0),
        // It must come to where the volume is.
        tolerations: Some(vec![Toleration { operator: Some("Exists".into()), ..Toleration::default() }]),
        topology_spread_constraints: Some(pod.spread_of_stand_in()),
        volumes: Some(claims.iter().enumerate().map(volume).collect()),
        ..PodSpec::default()
    };
    Pod { metadata, spec: Some(spec), status: None }
}

/// Where the device of a claim lies on the node of its holder, once the holder runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The node.
    pub node: String,
    /// The device there.
    pub path: String,
}

/// Whether a pod runs.
#[must_use]
pub fn runs(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

/// Where the device is; `None`: the holder does not run yet.
#[must_use]
fn held(pod: &Pod, claim: &PersistentVolumeClaim, settings: &Settings) -> Option<Held> {
    let node = pod.spec.as_ref()?.node_name.clone()?;
    let volume = claim.spec.as_ref()?.volume_name.as_ref().filter(|name| !name.is_empty())?;
    let uid = pod.metadata.uid.as_ref()?;
    let path = format!("{}/pods/{uid}/volumeDevices/kubernetes.io~csi/{volume}", settings.kubelet);
    runs(pod).then_some(Held { node, path })
}

/// Why a device can't be used yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// It waits for this.
    Waits(String),
    /// It can't be used, for this reason.
    Failed(String),
}

/// What is known beside a holder and its claims.
#[derive(Clone, Copy, Debug)]
pub struct Around<'a> {
    /// Warnings of objects of the work namespace.
    pub warnings: &'a Warnings,
    /// Nodes with an agent; `None`: nobody knows now.
    pub nodes: Option<&'a [String]>,
    /// How the operator was started.
    pub settings: &'a Settings,
    /// Since when the operator waits, by its own clock.
    pub since: &'a Time,
    /// The present moment.
    pub now: Timestamp,
}

impl Around<'_> {
    /// How old an object is. Its own time is that of the API server, whose clock may be another one: it is at most as old as the
    /// operator has waited.
    fn age(&self, object: &ObjectMeta) -> Duration {
        let waited = since(self.since, self.now);
        object.creation_timestamp.as_ref().map_or(Duration::ZERO, |made| since(made, self.now)).min(waited)
    }
}

/// Where the device of a claim is, once its holder runs and the node has an agent.
///
/// # Errors
/// [`Stuck`], with what Kubernetes says of it.
pub fn reach(pod: &Pod, claim: &PersistentVolumeClaim, around: Around<'_>) -> Result<Held, Stuck> {
    let age = around.age(&pod.metadata);
    if let Some(why) = trouble(pod, age) {
        return Err(Stuck::Failed(why));
    }
    let Some(held) = held(pod, claim, around.settings) else {
        let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        for (what, meta) in [("volume", &claim.metadata), ("holder pod", &pod.metadata)] {
            if what == "volume" && bound {
                continue;
            }
            let warned = warned(meta, around.warnings, around.age(meta));
            let warned = warned.map_err(|why| Stuck::Failed(format!("its {what}: {why}")))?;
            if let Some(why) = warned {
                return Err(Stuck::Waits(format!("its {what}: {why}")));
            }
        }
        return Err(Stuck::Waits("its holder pod to run".into()));
    };
    let Some(nodes) = around.nodes else { return Err(Stuck::Waits("the coordinator".into())) };
    if !nodes.contains(&held.node) {
        let node = &held.node;
        return Err(if age > AGENT_MAX {
            Stuck::Failed(format!("there is no agent on node {node}"))
        } else {
            Stuck::Waits(format!("an agent on node {node}"))
        });
    }
    Ok(held)
}

/// What keeps a pod from running, once that lasts.
#[must_use]
fn trouble(pod: &Pod, age: Duration) -> Option<String> {
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
        let why = status.message.clone().or_else(|| status.reason.clone()).unwrap_or_else(|| "it ended".into());
        return Some(format!("the holder pod ended: {why}"));
    }
    let waiting = status.container_statuses.iter().flatten().filter_map(|c| c.state.as_ref()?.waiting.as_ref());
    for state in waiting {
        let reason = state.reason.clone().unwrap_or_default();
        let bad = ["ErrImageNeverPull", "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerError"];
        if bad.contains(&reason.as_str()) && age > STUCK_AFTER {
            let message = state.message.clone().unwrap_or_default();
            return Some(format!("the holder pod's image: {reason}: {message}"));
        }
    }
    let unschedulable = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    let why = unschedulable?.message.clone().unwrap_or_default();
    // While its volume is made, the pod waits for that.
    let by_volume = why.contains("unbound immediate PersistentVolumeClaims");
    (age > UNSCHEDULABLE_AFTER && !by_volume).then(|| format!("the holder pod finds no node: {why}"))
}
