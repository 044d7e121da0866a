//! Storage that does what real storage does.

use super::{restore, set_switches, small, start_small, wait_for_failure, wait_for_message, wait_for_success};
use crate::installed::{add_repository, back_up, set_values, start_application, with_store};
use crate::playground::Playground;

#[test]
fn a_backup_that_cannot_go_on_says_why_and_leaves_nothing() {
    let test = "a_backup_that_cannot_go_on_says_why_and_leaves_nothing";
    let Some((cluster, store)) = with_store(test, 1) else { return };
    start_application(&cluster, "shop");
    add_repository(&cluster, &store, true);
    let before = cluster.inventory();

    // What lasts is said, and a Backup that is deleted meanwhile leaves nothing.
    for (name, switches, message) in [
        ("never-ready", r#"{"snapshot_never_ready": true}"#, "its snapshot to be ready"),
        ("vanished", r#"{"snapshots_vanish": true}"#, "its snapshot to be ready in the work namespace"),
        ("no-block", r#"{"no_block": true}"#, "Block"),
        ("read-only", r#"{"snapshots_are_read_only": true}"#, "can only be read here"),
    ] {
        set_switches(&cluster, switches);
        back_up(&cluster, "shop", name);
        wait_for_message(&cluster, "backup", "shop", name, message);
        cluster.kubectl(&format!("-n shop delete backup {name} --wait=false"));
        cluster.wait_for("it to go", "-n shop get backups -o name", str::is_empty);
        set_switches(&cluster, "{}");
        cluster.wait_for_inventory(&before);
    }

    // What ends by itself is waited for: an array that is full, nodes that take no more volumes.
    for (name, switches, message) in [
        ("full", r#"{"snapshot_error": "the array is full"}"#, "the array is full"),
        ("limit", r#"{"volumes_per_node": 4}"#, "4 volumes are attached"),
    ] {
        set_switches(&cluster, switches);
        back_up(&cluster, "shop", name);
        wait_for_message(&cluster, "backup", "shop", name, message);
        set_switches(&cluster, "{}");
        wait_for_success(&cluster, "backup", "shop", name);
        cluster.wait_for_inventory(&before);
    }

    // A class whose snapshots can only be read has a rule.
    set_switches(&cluster, r#"{"snapshots_are_read_only": true}"#);
    cluster.apply(
        "apiVersion: milkrun.dev/v1alpha1\nkind: Backup\nmetadata: {name: with-rule, namespace: shop}\n\
         spec: {repository: prod, readOnlyMany: [ext4, xfs]}\n",
    );
    wait_for_success(&cluster, "backup", "shop", "with-rule");
    set_switches(&cluster, "{}");
    cluster.wait_for_inventory(&before);

    // A claim that nobody bound.
    cluster.apply(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: waits, namespace: shop}\n\
         spec: {accessModes: [ReadWriteOnce], storageClassName: ext4, resources: {requests: {storage: 64Mi}}}\n",
    );
    back_up(&cluster, "shop", "unbound");
    wait_for_failure(&cluster, "backup", "shop", "unbound", "claim waits: it is not bound");
    cluster.kubectl("-n shop delete pvc waits");
    layered(&cluster);
    cluster.wait_for_inventory(&before);
    classes(&cluster);
    cluster.wait_for_inventory(&before);
}

/// A driver that encrypts: the device does not hold what the claim says, and would be of no use on another volume.
fn layered(cluster: &Playground) {
    set_switches(cluster, r#"{"layer": true}"#);
    start_small(cluster, "sealed", "data");
    set_switches(cluster, "{}");
    let before = cluster.inventory();
    back_up(cluster, "sealed", "layered");
    wait_for_failure(cluster, "backup", "sealed", "layered", "should hold ext4, and holds crypto_LUKS");
    cluster.wait_for_inventory(&before);
    cluster.kubectl("delete namespace sealed");
}

/// Classes of snapshots that can't be used.
fn classes(cluster: &Playground) {
    cluster.kubectl("delete volumesnapshotclass milkrun-test");
    back_up(cluster, "shop", "no-class");
    wait_for_failure(cluster, "backup", "shop", "no-class", "there is no VolumeSnapshotClass of its driver");
    cluster.apply(
        "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotClass\nmetadata: {name: templated}\n\
         driver: csi.milkrun.test\ndeletionPolicy: Delete\n\
         parameters: {csi.storage.k8s.io/snapshotter-secret-name: \"${volumesnapshot.namespace}-secret\"}\n",
    );
    back_up(cluster, "shop", "templated");
    wait_for_failure(cluster, "backup", "shop", "templated", "names its secrets by template");
}

#[test]
fn storage_that_rounds_sizes_and_holds_on_to_snapshots_is_left_as_it_was() {
    let test = "storage_that_rounds_sizes_and_holds_on_to_snapshots_is_left_as_it_was";
    let Some((cluster, store)) = with_store(test, 1) else { return };
    let switches = r#"{"whole_gibibytes": true, "clones_hold_snapshots": true, "snapshot_ready_after_s": 2, "forgets_retained": true}"#;
    set_switches(&cluster, switches);
    start_small(&cluster, "shop", "data");
    add_repository(&cluster, &store, true);
    let before = cluster.inventory();
    back_up(&cluster, "shop", "rounded");
    wait_for_success(&cluster, "backup", "shop", "rounded");
    cluster.wait_for_inventory(&before);
    cluster.kubectl("create namespace copy");
    restore(&cluster, "rounded", "shop", "copy", "");
    wait_for_success(&cluster, "restore", "milkrun", "rounded");
    let size = cluster.kubectl("-n copy get pvc data -o jsonpath={.status.capacity.storage}");
    assert_eq!(size, "1Gi");
    // A volume that the storage has forgotten can't be attached.
    let small = small("copy", "reader", "data");
    cluster.apply(small.split("---\n").last().unwrap());
    cluster.kubectl("-n copy wait --for=condition=Ready pod/reader --timeout=120s");
    cluster.kubectl("delete namespace copy");
    cluster.wait_for_inventory(&before);
}

#[test]
fn one_slot_is_enough_for_all_volumes() {
    let Some((cluster, store)) = with_store("one_slot_is_enough_for_all_volumes", 1) else { return };
    start_application(&cluster, "shop");
    add_repository(&cluster, &store, true);
    set_values(&cluster, "operator.exposedMax=1");
    set_switches(&cluster, r#"{"volumes_per_node": 4}"#);
    back_up(&cluster, "shop", "one-slot");
    wait_for_success(&cluster, "backup", "shop", "one-slot");
    set_switches(&cluster, "{}");
    cluster.apply(&format!("{}---\n{}", small("shop", "more", "more"), small("shop", "other", "other")));
    for pod in ["more", "other"] {
        cluster.kubectl(&format!("-n shop wait --for=condition=Ready pod/{pod} --timeout=120s"));
    }
    back_up(&cluster, "shop", "two-more");
    wait_for_success(&cluster, "backup", "shop", "two-more");
    let before = cluster.inventory();
    // The five volumes of the namespace, and those of the largest pod.
    set_switches(&cluster, r#"{"volumes_per_node": 8}"#);
    cluster.kubectl("create namespace waves");
    restore(&cluster, "waves", "shop", "waves", "");
    wait_for_success(&cluster, "restore", "milkrun", "waves");
    let waves = cluster.kubectl("-n milkrun get restore waves -o jsonpath={.status.volumes.*.wave}");
    let mut waves: Vec<&str> = waves.split_whitespace().collect();
    waves.sort_unstable();
    assert_eq!(waves, ["1", "2", "2", "2"], "the first wave has no number");
    assert_eq!(cluster.kubectl("-n waves get pvc -o jsonpath={.items[*].status.phase}"), ["Bound"; 5].join(" "));
    set_switches(&cluster, "{}");
    cluster.kubectl("delete namespace waves");
    cluster.wait_for_inventory(&before);
}
