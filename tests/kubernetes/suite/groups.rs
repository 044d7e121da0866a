//! Claims of one driver are cut at one moment, and nothing of the group stays: no object, no snapshot, no label.

use crate::faults::{kill, restore, set_switches, wait_for_failure, wait_for_message, wait_for_step, wait_for_success};
use crate::installed::{add_repository, back_up, with_store};
use crate::playground::Playground;

/// A driver whose snapshots of several volumes are of one moment.
const CLASS: &str = "apiVersion: groupsnapshot.storage.k8s.io/v1\nkind: VolumeGroupSnapshotClass\n\
                     metadata: {name: together}\ndriver: csi.milkrun.test\ndeletionPolicy: Delete\n";

/// An application that writes each number to one volume, and then to the other.
fn start(cluster: &Playground) {
    cluster.kubectl("create namespace shop");
    cluster.wait_for("the account", "-n shop get serviceaccount default -o name", |_| true);
    let claim = |name: &str| {
        format!(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}, namespace: shop, labels: {{app: shop}}}}\n\
             spec: {{accessModes: [ReadWriteOnce], storageClassName: ext4, volumeMode: Block, \
             resources: {{requests: {{storage: 64Mi}}}}}}\n---\n"
        )
    };
    let command = "n=0; while true; do n=$((n+1)); for at in log data; do \
                   printf %08d $n | dd of=/dev/$at bs=8 conv=notrunc,fsync 2>/dev/null; done; usleep 100000; done";
    cluster.apply(&format!("{}{}{}", claim("data"), claim("log"), pod("shop", command)));
    cluster.kubectl("-n shop wait --for=condition=Ready pod/writer --timeout=120s");
}

/// A pod with both volumes.
fn pod(namespace: &str, command: &str) -> String {
    let volumes = ["log", "data"];
    let of = |volume: &str| format!("{{name: {volume}, persistentVolumeClaim: {{claimName: {volume}}}}}");
    let at = |volume: &str| format!("{{name: {volume}, devicePath: /dev/{volume}}}");
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: writer, namespace: {namespace}}}\nspec:\n  \
         terminationGracePeriodSeconds: 0\n  containers:\n    - name: main\n      image: milkrun.test/busybox:1\n      \
         imagePullPolicy: Never\n      command: [sh, -c, '{command}']\n      volumeDevices: [{}]\n  volumes: [{}]\n",
        volumes.map(at).join(", "),
        volumes.map(of).join(", ")
    )
}

/// The labels of the application's claims.
fn labels(cluster: &Playground) -> String {
    cluster.kubectl("-n shop get pvc -o jsonpath={.items[*].metadata.labels}")
}

/// Everything is as before, and the claims have no label but their own.
fn is_as_before(cluster: &Playground, before: &[String]) {
    cluster.wait_for_inventory(before);
    assert_eq!(labels(cluster), r#"{"app":"shop"} {"app":"shop"}"#);
}

#[test]
fn volumes_of_one_driver_are_cut_at_one_moment() {
    let Some((cluster, store)) = with_store("volumes_of_one_driver_are_cut_at_one_moment", 1) else { return };
    start(&cluster);
    cluster.apply(CLASS);
    add_repository(&cluster, &store, true);
    let before = cluster.inventory();

    back_up(&cluster, "shop", "together");
    let status = cluster.wait_for_run("backup", "shop", "together");
    assert!(status["failure"].is_null(), "{status}");
    let groups = status["groups"].as_object().unwrap();
    let group = groups.values().next().unwrap();
    assert_eq!((groups.len(), group["class"].as_str()), (1, Some("together")), "{status}");
    assert_eq!(group["claims"], serde_json::json!(["data", "log"]), "{status}");
    is_as_before(&cluster, &before);
    // Nobody can have written to one volume what the other does not know of.
    cluster.kubectl("create namespace copy");
    restore(&cluster, "copy", "shop", "copy", "");
    wait_for_success(&cluster, "restore", "milkrun", "copy");
    cluster.wait_for("the account", "-n copy get serviceaccount default -o name", |_| true);
    cluster.apply(&pod("copy", "sleep 3600"));
    cluster.kubectl("-n copy wait --for=condition=Ready pod/writer --timeout=120s");
    let read = |volume: &str| -> u32 {
        cluster.exec("copy", "writer", &format!("head -c 8 /dev/{volume}")).trim().parse().unwrap()
    };
    let (log, data) = (read("log"), read("data"));
    assert!(data > 0 && (log == data || log == data + 1), "the log says {log}, the data {data}");
    cluster.kubectl("delete namespace copy");
    cluster.wait_for_inventory(&before);
    interrupted(&cluster, &before);
    refused(&cluster, &before);
}

/// The operator is killed, the backup is deleted, somebody removes the group.
fn interrupted(cluster: &Playground, before: &[String]) {
    let slow = r#"{"snapshot_takes_ms": 2000, "clones_hold_snapshots": true, "snapshot_ready_after_s": 4}"#;
    set_switches(cluster, slow);
    for at in ["Open", "Snapshot", "CleanUp"] {
        let name = format!("killed-at-{}", at.to_lowercase());
        back_up(cluster, "shop", &name);
        wait_for_step(cluster, "backup", "shop", &name, at);
        kill(cluster, "operator");
        wait_for_success(cluster, "backup", "shop", &name);
        is_as_before(cluster, before);
    }
    let (slower, never) = (r#"{"snapshot_takes_ms": 5000}"#, r#"{"snapshot_never_ready": true}"#);
    for (at, switches) in [("Snapshot", slower), ("Move", never)] {
        let name = format!("deleted-at-{}", at.to_lowercase());
        set_switches(cluster, switches);
        back_up(cluster, "shop", &name);
        wait_for_step(cluster, "backup", "shop", &name, at);
        cluster.kubectl(&format!("-n shop delete backup {name} --wait=false"));
        cluster.wait_for("it to go", "-n shop get backups -o name", |said| !said.contains(&name));
        set_switches(cluster, "{}");
        is_as_before(cluster, before);
    }
    set_switches(cluster, never);
    back_up(cluster, "shop", "no-group");
    wait_for_message(cluster, "backup", "shop", "no-group", "its snapshot to be ready");
    cluster.kubectl("-n shop delete volumegroupsnapshots --all");
    wait_for_failure(cluster, "backup", "shop", "no-group", "somebody removed its snapshot");
    set_switches(cluster, "{}");
    is_as_before(cluster, before);
}

/// A driver that can't.
fn refused(cluster: &Playground, before: &[String]) {
    set_switches(cluster, r#"{"groups_fail": "the volumes are in two pools"}"#);
    back_up(cluster, "shop", "two-pools");
    wait_for_message(cluster, "backup", "shop", "two-pools", "the volumes are in two pools");
    cluster.kubectl("-n shop delete backup two-pools");
    cluster.apply(
        "apiVersion: milkrun.dev/v1alpha1\nkind: Backup\nmetadata: {name: apart, namespace: shop}\n\
         spec: {repository: prod, separateSnapshots: true}\n",
    );
    wait_for_success(cluster, "backup", "shop", "apart");
    set_switches(cluster, "{}");
    is_as_before(cluster, before);
}
