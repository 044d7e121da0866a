//! Holder pods: they do nothing but hold a volume on a node, so that the agent there finds its device.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Affinity, Container, NodeAffinity, PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodSpec,
    SecurityContext, Toleration, Volume, VolumeDevice, VolumeNodeAffinity,
};
use kube::api::ObjectMeta;

use crate::Settings;
use crate::steps::since;

/// What a pod can't be run without is said only once it stays so.
const STUCK_AFTER: Duration = Duration::from_secs(30);
/// An autoscaler may need a while to make a node.
const UNSCHEDULABLE_AFTER: Duration = Duration::from_secs(300);

/// A holder of claims. `near` is where their volumes can be reached.
#[must_use]
pub fn holder(metadata: ObjectMeta, claims: &[String], near: Option<&VolumeNodeAffinity>, settings: &Settings) -> Pod {
    let required = near.and_then(|near| near.required.clone());
    let affinity = required.map(|required| Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(required),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    });
    let device =
        |number: usize| VolumeDevice { name: format!("volume-{number}"), device_path: format!("/dev/volume-{number}") };
    let container = Container {
        name: "hold".into(),
        image: Some(settings.image.clone()),
        image_pull_policy: Some("IfNotPresent".into()),
        command: Some(vec!["/milkrun-operator".into(), "hold".into()]),
        volume_devices: Some((0..claims.len()).map(device).collect()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        ..Container::default()
    };
    let volume = |(number, claim): (usize, &String)| {
        let source = PersistentVolumeClaimVolumeSource { claim_name: claim.clone(), read_only: None };
        Volume { name: format!("volume-{number}"), persistent_volume_claim: Some(source), ..Volume::default() }
    };
    let spec = PodSpec {
        affinity,
        automount_service_account_token: Some(false),
        containers: vec![container],
        enable_service_links: Some(false),
        restart_policy: Some("Never".into()),
        termination_grace_period_seconds: Some(0),
        // It uses no resources, and must come to where the volume is.
        tolerations: Some(vec![Toleration { operator: Some("Exists".into()), ..Toleration::default() }]),
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

/// Where the device is; `None`: the holder does not run yet.
#[must_use]
pub fn held(pod: &Pod, claim: &PersistentVolumeClaim, settings: &Settings) -> Option<Held> {
    let running = pod.status.as_ref()?.phase.as_deref() == Some("Running");
    let node = pod.spec.as_ref()?.node_name.clone()?;
    let volume = claim.spec.as_ref()?.volume_name.as_ref().filter(|name| !name.is_empty())?;
    let uid = pod.metadata.uid.as_ref()?;
    let path = format!("{}/pods/{uid}/volumeDevices/kubernetes.io~csi/{volume}", settings.kubelet);
    running.then_some(Held { node, path })
}

/// What keeps a pod from running, once that lasts.
#[must_use]
pub fn trouble(pod: &Pod, now: Timestamp) -> Option<String> {
    let status = pod.status.as_ref()?;
    let age = pod.metadata.creation_timestamp.as_ref().map_or(Duration::ZERO, |made| since(made, now));
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
    match unschedulable {
        Some(condition) if age > UNSCHEDULABLE_AFTER => {
            Some(format!("the holder pod finds no node: {}", condition.message.clone().unwrap_or_default()))
        }
        _ => None,
    }
}
