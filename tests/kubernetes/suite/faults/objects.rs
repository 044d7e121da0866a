//! Objects that somebody removes in the middle, and objects that are as large as they may be.

use super::{restore, set_switches, start_small, wait_for_failure, wait_for_message, wait_for_success};
use crate::installed::{add_repository, back_up, with_store};
use crate::playground::Playground;

const NEVER_READY: &str = r#"{"snapshot_never_ready": true}"#;

#[test]
fn objects_that_somebody_removes_end_a_run_and_leave_nothing() {
    let test = "objects_that_somebody_removes_end_a_run_and_leave_nothing";
    let Some((cluster, store)) = with_store(test, 1) else { return };
    add_repository(&cluster, &store, true);
    let nothing = cluster.inventory();
    start_small(&cluster, "shop", "data");
    let before = cluster.inventory();

    // The snapshot, while it is waited for.
    set_switches(&cluster, NEVER_READY);
    back_up(&cluster, "shop", "no-snapshot");
    wait_for_message(&cluster, "backup", "shop", "no-snapshot", "its snapshot to be ready");
    cluster.kubectl("-n shop delete volumesnapshots --all --wait=false");
    wait_for_failure(&cluster, "backup", "shop", "no-snapshot", "somebody removed its snapshot");
    cluster.wait_for_inventory(&before);

    // Its content: it stays until the snapshot goes.
    back_up(&cluster, "shop", "no-content");
    wait_for_message(&cluster, "backup", "shop", "no-content", "its snapshot to be ready");
    cluster.kubectl("delete volumesnapshotcontents --all --wait=false");
    set_switches(&cluster, "{}");
    cluster.wait_for_run("backup", "shop", "no-content");
    cluster.wait_for_inventory(&before);

    // Two backups of one application: one after the other.
    back_up(&cluster, "shop", "first");
    back_up(&cluster, "shop", "second");
    for name in ["first", "second"] {
        wait_for_success(&cluster, "backup", "shop", name);
    }
    cluster.wait_for_inventory(&before);

    removed_restores(&cluster, &before);

    // The application with its claim, and then its namespace.
    set_switches(&cluster, NEVER_READY);
    back_up(&cluster, "shop", "no-claim");
    wait_for_message(&cluster, "backup", "shop", "no-claim", "its snapshot to be ready");
    cluster.kubectl("-n shop delete pod user --now");
    cluster.kubectl("-n shop delete pvc data --wait=false");
    // The snapshot controller holds on to a claim until its snapshot is ready.
    set_switches(&cluster, "{}");
    cluster.wait_for("the claim to go", "-n shop get pvc -o name", str::is_empty);
    cluster.wait_for_run("backup", "shop", "no-claim");
    cluster.wait_for_inventory(&nothing);
    set_switches(&cluster, NEVER_READY);
    start_small(&cluster, "second", "data");
    back_up(&cluster, "second", "no-namespace");
    wait_for_message(&cluster, "backup", "second", "no-namespace", "its snapshot to be ready");
    cluster.kubectl("delete namespace second --wait=false");
    let there = "get namespaces -o name";
    cluster.wait_for("the namespace to go", there, |said| !said.contains("namespace/second"));
    cluster.wait_for_inventory(&nothing);
}

/// Restores whose claim, namespace, or whose object somebody removes.
fn removed_restores(cluster: &Playground, before: &[String]) {
    let step = |name: &str, step: &str| {
        let words = format!("-n milkrun get restore {name} -o jsonpath={{.status.steps}}");
        cluster.wait_for(step, &words, |said| said.contains(&format!("\"{step}\"")));
    };
    for (name, at) in [("claim-at-data", "Data"), ("claim-at-end", "HandOver")] {
        cluster.kubectl(&format!("create namespace {name}"));
        restore(cluster, name, "shop", name, "");
        step(name, at);
        cluster.kubectl(&format!("-n {name} delete pvc data --wait=false --ignore-not-found"));
        cluster.wait_for_run("restore", "milkrun", name);
        cluster.kubectl(&format!("delete namespace {name}"));
        cluster.wait_for_inventory(before);
    }
    for (name, at) in [("space-at-data", "Data"), ("space-at-end", "HandOver")] {
        cluster.kubectl(&format!("create namespace {name}"));
        restore(cluster, name, "shop", name, "");
        step(name, at);
        cluster.kubectl(&format!("delete namespace {name}"));
        cluster.wait_for_run("restore", "milkrun", name);
        cluster.wait_for_inventory(before);
    }
    for (name, at) in [("self-at-data", "Data"), ("self-at-end", "HandOver")] {
        cluster.kubectl(&format!("create namespace {name}"));
        restore(cluster, name, "shop", name, "");
        step(name, at);
        cluster.kubectl(&format!("-n milkrun delete restore {name}"));
        cluster.kubectl(&format!("delete namespace {name}"));
        cluster.wait_for_inventory(before);
    }
    // Into a namespace that is about to go.
    cluster.kubectl("create namespace going");
    cluster.apply(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: holds, namespace: going, finalizers: [test/holds]}\n",
    );
    cluster.kubectl("delete namespace going --wait=false");
    restore(cluster, "going", "shop", "going", "");
    wait_for_failure(cluster, "restore", "milkrun", "going", "the namespace going is being deleted");
    cluster.kubectl("-n going patch configmap holds --type=merge -p {\"metadata\":{\"finalizers\":null}}");
    cluster.wait_for_inventory(before);
}

#[test]
fn names_may_be_as_long_as_kubernetes_lets_them_be() {
    let Some((cluster, store)) = with_store("names_may_be_as_long_as_kubernetes_lets_them_be", 1) else { return };
    add_repository(&cluster, &store, true);
    let namespace = format!("n{}", "s".repeat(62));
    // A label's value has 63 characters at most, a name 253.
    let (claim, run) = (format!("c{}.{}", "l".repeat(62), "x".repeat(189)), format!("b{}", "k".repeat(252)));
    assert_eq!((namespace.len(), claim.len(), run.len()), (63, 253, 253));
    start_small(&cluster, &namespace, &claim);
    let before = cluster.inventory();
    back_up(&cluster, &namespace, &run);
    wait_for_success(&cluster, "backup", &namespace, &run);
    cluster.wait_for_inventory(&before);
    cluster.wait_for("the point", &format!("-n {namespace} get restorepoints -o name"), |said| !said.is_empty());
    let copy = format!("c{}", "p".repeat(62));
    cluster.kubectl(&format!("create namespace {copy}"));
    restore(&cluster, &run, &namespace, &copy, "");
    wait_for_success(&cluster, "restore", "milkrun", &run);
    let phase = format!("-n {copy} get pvc {claim} -o jsonpath={{.status.phase}}");
    assert_eq!(cluster.kubectl(&phase), "Bound");
    cluster.kubectl(&format!("delete namespace {copy}"));
    cluster.wait_for_inventory(&before);
}
