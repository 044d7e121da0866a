//! Freezing file systems while their snapshots are cut, and thawing them: what is frozen, and what the coordinator's answers mean.

use k8s_openapi::api::core::v1::{ContainerStatus, PersistentVolume, Pod, Volume};
use kube::ResourceExt;
use milkrun_proto::control::v1 as control;
use milkrun_resources::backup::{BackupStep, FreezeStatus, MountStatus};
use milkrun_resources::{Backup, BackupStatus};
use std::collections::BTreeMap;
use std::time::Duration;

use crate::coordinator::AskError;
use crate::holder::runs;

/// What the coordinator answered, where it was asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Answer<T> {
    /// It was not asked.
    #[default]
    NotAsked,
    /// It did what was asked.
    Given(T),
    /// It refuses.
    Refused(String),
    /// It can't be reached now.
    Away(String),
}

impl<T> From<Result<T, AskError>> for Answer<T> {
    fn from(asked: Result<T, AskError>) -> Self {
        match asked {
            Ok(given) => Self::Given(given),
            Err(AskError::Refused(why)) => Self::Refused(why),
            Err(AskError::Away(why)) => Self::Away(why),
        }
    }
}

/// How to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// With the next step.
    On,
    /// This is waited for.
    Waits(String),
    /// The run is void, for this reason.
    Failed(String),
}

impl Next {
    /// The same, but nothing is waited for any longer if it is `late`.
    pub(super) fn unless(self, late: bool) -> Self {
        match self {
            Self::Waits(why) if late => Self::Failed(why),
            next => next,
        }
    }
}

/// Whether a pod may have mounted its volumes: it runs, or its first containers have begun.
fn may_write(pod: &Pod) -> bool {
    let begun = |status: &ContainerStatus| {
        status.state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    };
    let status = pod.status.as_ref();
    let first = status.and_then(|status| status.init_container_statuses.as_ref());
    runs(pod) || first.is_some_and(|all| all.iter().any(begun)) && !ended(pod)
}

fn ended(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Where the file systems of claims are mounted by pods. What no pod has mounted, nobody writes.
pub(super) fn mounts(
    pods: &[Pod],
    volumes: &BTreeMap<String, PersistentVolume>,
    kubelet: &str,
) -> BTreeMap<String, MountStatus> {
    let mut mounts = BTreeMap::new();
    for pod in pods.iter().filter(|pod| may_write(pod)) {
        let Some(spec) = &pod.spec else { continue };
        let (Some(node), Some(uid)) = (&spec.node_name, pod.uid()) else { continue };
        let named = |volume: &Volume| match &volume.persistent_volume_claim {
            Some(source) => Some(source.claim_name.clone()),
            // Kubernetes names the claim of a generic ephemeral volume so.
            None => volume.ephemeral.as_ref().map(|_| format!("{}-{}", pod.name_any(), volume.name)),
        };
        for claim in spec.volumes.iter().flatten().filter_map(named) {
            let Some(volume) = volumes.get(&claim).filter(|volume| has_file_system(volume)) else { continue };
            let path = format!("{kubelet}/pods/{uid}/volumes/kubernetes.io~csi/{}/mount", volume.name_any());
            mounts.entry(claim).or_insert(MountStatus { node: node.clone(), path });
        }
    }
    mounts
}

fn has_file_system(volume: &PersistentVolume) -> bool {
    volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()) != Some("Block")
}

/// What is to be asked of the agents at this look. Asking again changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing.
    Nothing,
    /// To freeze what status names.
    Freeze,
    /// To thaw it.
    Thaw,
}

/// What is due. Only the process that wrote the intent down freezes, and thaws in order; whoever ends a run thaws, too.
pub(super) fn due(backup: &Backup, status: &BackupStatus, process: &str) -> Due {
    let Some(freeze) = status.freeze.as_ref().filter(|freeze| is_held(freeze)) else { return Due::Nothing };
    let deleted = backup.metadata.deletion_timestamp.is_some();
    let ends = status.step >= BackupStep::CleanUp || status.failure.is_some() || deleted;
    match status.step {
        _ if ends => Due::Thaw,
        BackupStep::Thaw if freeze.by == process => Due::Thaw,
        BackupStep::Freeze if freeze.by == process => Due::Freeze,
        _ => Due::Nothing,
    }
}

/// Whether something may be frozen.
pub(super) fn is_held(freeze: &FreezeStatus) -> bool {
    !freeze.thawed && !freeze.mounts.is_empty()
}

/// For how long file systems may be frozen.
pub(super) fn limit(backup: &Backup) -> Duration {
    Duration::from_secs(backup.spec.freeze_seconds.unwrap_or_default().unsigned_abs().into())
}

/// The coordinator's names of them.
pub(super) fn places(freeze: &FreezeStatus) -> Vec<control::Place> {
    let place = |mount: &MountStatus| control::Place { node: mount.node.clone(), path: mount.path.clone() };
    freeze.mounts.values().map(place).collect()
}

/// Whether another operator froze them: nobody knows what it saw.
pub(super) fn of_another(freeze: &FreezeStatus, operator: &str) -> Option<String> {
    (freeze.by != operator)
        .then(|| "the operator that froze the file systems went away before it saw all snapshots".to_owned())
}

/// A claim that a pod has mounted since: its snapshot may hold what was written while the others stood still.
pub(super) fn mounted_since(freeze: &FreezeStatus, now: &BTreeMap<String, MountStatus>) -> Option<String> {
    let new = now.iter().find(|(claim, mount)| freeze.mounts.get(*claim) != Some(*mount));
    new.map(|(claim, _)| format!("claim {claim}: a pod mounted it while the file systems were frozen"))
}

/// What an answer to freezing means.
pub(super) fn frozen(answer: &Answer<()>) -> Next {
    match answer {
        Answer::Given(()) => Next::On,
        Answer::NotAsked => Next::Waits("freezes the file systems".into()),
        Answer::Away(why) => Next::Waits(why.clone()),
        Answer::Refused(why) => Next::Failed(why.clone()),
    }
}

/// What an answer to thawing means. It is noted how long writers waited.
pub(super) fn thawed(freeze: &mut FreezeStatus, answer: &Answer<Vec<control::Thawed>>) -> Next {
    let ended = match answer {
        Answer::Given(ended) => ended,
        Answer::NotAsked => return Next::Waits("thaws the file systems".into()),
        Answer::Away(why) => return Next::Waits(why.clone()),
        Answer::Refused(why) => return Next::Failed(why.clone()),
    };
    if ended.len() != freeze.mounts.len() {
        return Next::Failed(format!("{} of {} file systems were thawed", ended.len(), freeze.mounts.len()));
    }
    freeze.thawed = true;
    freeze.held_ms = ended.iter().map(|mount| i64::from(mount.held_ms)).max();
    let early = freeze.mounts.keys().zip(ended).find(|(_, mount)| mount.early);
    early.map_or(Next::On, |(claim, mount)| {
        Next::Failed(format!(
            "claim {claim}: its file system was thawed before all snapshots were cut: {}",
            mount.reason
        ))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, phase: &str, claims: &[&str]) -> Pod {
        let volume = |claim: &&str| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}});
        serde_json::from_value(json!({
            "metadata": {"name": name, "uid": format!("uid-{name}")},
            "spec": {"nodeName": "n", "containers": [], "volumes": claims.iter().map(volume).collect::<Vec<_>>()},
            "status": {"phase": phase},
        }))
        .unwrap()
    }

    fn volume(name: &str, mode: &str) -> PersistentVolume {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"volumeMode": mode}})).unwrap()
    }

    #[test]
    fn mounts_are_those_of_running_pods() {
        let volumes = ["data", "wal", "raw", "idle"].map(|claim| {
            (claim.to_owned(), volume(&format!("pv-{claim}"), if claim == "raw" { "Block" } else { "Filesystem" }))
        });
        let pods = [pod("db", "Running", &["data", "raw", "not-selected"]), pod("job", "Succeeded", &["idle"])];
        let found = mounts(&pods, &volumes.into(), "/k");
        assert_eq!(found.keys().collect::<Vec<_>>(), ["data"]);
        assert_eq!(found["data"].path, "/k/pods/uid-db/volumes/kubernetes.io~csi/pv-data/mount");
    }

    #[test]
    fn one_that_was_thawed_early_voids_the_run() {
        let mount = MountStatus { node: "n".into(), path: "/m".into() };
        let mounts = [("a".to_owned(), mount.clone()), ("b".to_owned(), mount)].into();
        let start = || FreezeStatus { by: "o".into(), mounts, ..Default::default() };
        let ended = |early| control::Thawed { early, held_ms: 40, reason: "its time was over".into() };
        let mut freeze = start();
        let next = thawed(&mut freeze, &Answer::Given(vec![ended(false), ended(true)]));
        assert!(matches!(next, Next::Failed(why) if why.starts_with("claim b") && why.ends_with("its time was over")));
        assert_eq!((freeze.thawed, freeze.held_ms), (true, Some(40)));
    }
}
