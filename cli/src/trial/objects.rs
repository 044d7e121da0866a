//! The objects of a trial.

use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, Pod};
use milkrun_resources::{Backup, BackupSpec, Restore, RestoreSpec};
use serde_json::json;

use super::Trial;

pub(super) const WRITER: &str = "writer";
pub(super) const READER: &str = "reader";
pub(super) const RESTORE: &str = "trial";
const FILES: &str = "files";
const BLOCK: &str = "block";

fn of<T: serde::de::DeserializeOwned + Default>(value: serde_json::Value) -> T {
    // The values of this file have the right form: a test reads all of them.
    serde_json::from_value(value).unwrap_or_default()
}

/// A namespace with a name that nobody else has.
pub(super) fn namespace() -> Namespace {
    let name = format!("milkrun-trial-{}", hex::encode(milkrun_repository::clock::entropy::<4>()));
    of(json!({"metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "milkrun"}}}))
}

/// A claim with a file system, and one that is a device.
pub(super) fn claims(trial: &Trial, namespace: &str) -> [PersistentVolumeClaim; 2] {
    [(FILES, "Filesystem"), (BLOCK, "Block")].map(|(name, mode)| {
        of(json!({
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": trial.class,
                "volumeMode": mode,
                "resources": {"requests": {"storage": trial.size}},
            },
        }))
    })
}

fn pod(namespace: &str, name: &str, image: &str, what: &str, suffix: &str) -> Pod {
    of(json!({
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "automountServiceAccountToken": false,
            "restartPolicy": "Never",
            "containers": [{
                "name": what,
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["/milkrun-operator", "probe", what, "/files/probe", "/dev/block"],
                // What a program says at its end becomes the pod's message.
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "securityContext": {"runAsUser": 0, "allowPrivilegeEscalation": false},
                "volumeMounts": [{"name": "files", "mountPath": "/files"}],
                "volumeDevices": [{"name": "block", "devicePath": "/dev/block"}],
            }],
            "volumes": [
                {"name": "files", "persistentVolumeClaim": {"claimName": format!("{FILES}{suffix}")}},
                {"name": "block", "persistentVolumeClaim": {"claimName": format!("{BLOCK}{suffix}")}},
            ],
        },
    }))
}

/// Writes to both claims.
pub(super) fn writer(namespace: &str, image: &str) -> Pod {
    pod(namespace, WRITER, image, "write", "")
}

/// Compares what is in the restored claims.
pub(super) fn reader(namespace: &str, image: &str) -> Pod {
    pod(namespace, READER, image, "check", "-restored")
}

/// A backup of both claims, whose point is locked as short as possible.
pub(super) fn backup(trial: &Trial, repository: &str, namespace: &str, name: &str, read_only_many: bool) -> Backup {
    let spec = BackupSpec {
        repository: repository.to_owned(),
        application: Some("milkrun-trial".into()),
        claims: None,
        skip: Vec::new(),
        lock_days: Some(1),
        freeze_seconds: None,
        separate_snapshots: false,
        read_only_many: if read_only_many { vec![trial.class.clone()] } else { Vec::new() },
    };
    let mut backup = Backup::new(name, spec);
    backup.metadata.namespace = Some(namespace.to_owned());
    backup
}

/// A restore beside what is there.
pub(super) fn restore(repository: &str, namespace: &str, point: &str) -> Restore {
    let volumes = [FILES, BLOCK].map(|name| json!({"volume": name, "claim": format!("{name}-restored")}));
    let spec = json!({"repository": repository, "point": point, "volumes": volumes});
    let mut restore = Restore::new(RESTORE, of::<RestoreSpec>(spec));
    restore.metadata.namespace = Some(namespace.to_owned());
    restore
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_objects_have_the_right_form() {
        let trial = Trial {
            class: "fast".into(),
            repository: None,
            namespace: "milkrun".into(),
            size: "1Gi".into(),
            limit: std::time::Duration::ZERO,
        };
        assert!(namespace().metadata.name.unwrap().starts_with("milkrun-trial-"));
        let modes = claims(&trial, "t").map(|claim| claim.spec.unwrap().volume_mode.unwrap());
        assert_eq!(modes, ["Filesystem", "Block"]);
        assert_eq!(writer("t", "i").spec.unwrap().volumes.unwrap().len(), 2);
        let claim = reader("t", "i").spec.unwrap().volumes.unwrap()[1].persistent_volume_claim.clone().unwrap();
        assert_eq!(claim.claim_name, "block-restored");
        assert_eq!(restore("prod", "t", "p").spec.volumes[1].claim.as_deref(), Some("block-restored"));
        assert_eq!(backup(&trial, "prod", "t", "b", true).spec.read_only_many, ["fast"]);
    }
}
