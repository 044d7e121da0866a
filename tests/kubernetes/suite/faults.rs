//! What goes wrong in a cluster: nothing is lost, nothing is left behind, and status says why.

use crate::installed::{add_repository, back_up, start_application, with_store};
use crate::playground::Playground;

fn set_switches(cluster: &Playground, json: &str) {
    let line = format!("echo '{json}' > /run/milkrun-disk/switches.json");
    cluster.on("node1", &["/bin/sh", "-c", &line]);
}

/// The step that a backup is in.
fn step(name: &str) -> String {
    format!("-n shop get backup {name} -o jsonpath={{.status.step}}")
}

#[test]
fn a_backup_that_cannot_go_on_says_why_and_leaves_nothing() {
    let test = "a_backup_that_cannot_go_on_says_why_and_leaves_nothing";
    let Some((cluster, store)) = with_store(test, 1) else { return };
    start_application(&cluster, "shop");
    add_repository(&cluster, &store, true);
    let before = cluster.inventory();

    // A snapshot that never becomes ready, and a Backup that is deleted meanwhile.
    set_switches(&cluster, r#"{"snapshot_never_ready": true}"#);
    back_up(&cluster, "shop", "never-ready");
    let message = "-n shop get backup never-ready -o jsonpath={.status.message}";
    cluster.wait_for("its status", message, |said| said.contains("its snapshot to be ready"));
    cluster.kubectl("-n shop delete backup never-ready --wait=false");
    cluster.wait_for("it to go", "-n shop get backups -o name", str::is_empty);
    cluster.wait_for_inventory(&before);

    // Snapshots that fail say so; when the storage works again, the same backup goes on.
    set_switches(&cluster, r#"{"snapshot_error": "the array is full"}"#);
    back_up(&cluster, "shop", "full");
    let message = "-n shop get backup full -o jsonpath={.status.message}";
    cluster.wait_for("its status", message, |said| said.contains("the array is full"));
    set_switches(&cluster, "{}");
    let status = cluster.wait_for_run("backup", "shop", "full");
    assert!(status["failure"].is_null(), "{status}");
    cluster.wait_for_inventory(&before);

    // A claim that nobody bound.
    cluster.apply(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: waits, namespace: shop}\n\
         spec: {accessModes: [ReadWriteOnce], storageClassName: ext4, resources: {requests: {storage: 64Mi}}}\n",
    );
    back_up(&cluster, "shop", "unbound");
    let status = cluster.wait_for_run("backup", "shop", "unbound");
    assert!(status["failure"].as_str().unwrap().contains("claim waits: it is not bound"), "{status}");
    cluster.kubectl("-n shop delete pvc waits");
    cluster.wait_for_inventory(&before);
}

#[test]
fn processes_that_are_killed_in_the_middle_are_followed_by_others() {
    let test = "processes_that_are_killed_in_the_middle_are_followed_by_others";
    let Some((cluster, store)) = with_store(test, 2) else { return };
    start_application(&cluster, "shop");
    add_repository(&cluster, &store, true);
    let before = cluster.inventory();
    let kill = |what: &str| {
        cluster.kubectl(&format!(
            "-n milkrun delete pod -l app.kubernetes.io/name=milkrun-{what} --grace-period=0 --force"
        ));
    };
    for (number, (at, what)) in [
        ("Snapshot", "operator"),
        ("Move", "operator"),
        ("Move", "coordinator"),
        ("Move", "agent"),
        ("CleanUp", "operator"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("killed-{number}");
        // Snapshots are slow, so that each step lasts a while.
        set_switches(&cluster, r#"{"snapshot_takes_ms": 700}"#);
        back_up(&cluster, "shop", &name);
        cluster.wait_for(at, &step(&name), |said| said == at);
        kill(what);
        let status = cluster.wait_for_run("backup", "shop", &name);
        assert!(status["failure"].is_null(), "{what} was killed at {at}: {status}");
        cluster.wait_for_inventory(&before);
    }
}
