//! File systems of running pods are frozen while their snapshots are cut, and thawed whatever happens.

use std::time::{Duration, Instant};

use crate::faults::{kill, set_switches, wait_for_failure, wait_for_step, wait_for_success};
use crate::installed::{add_repository, start_application, with_store};
use crate::playground::Playground;

fn back_up(cluster: &Playground, name: &str, seconds: u32) {
    cluster.apply(&format!(
        "apiVersion: milkrun.dev/v1alpha1\nkind: Backup\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{repository: prod, freezeSeconds: {seconds}}}\n"
    ));
}

/// Writes to both file systems of the application. Returns how long that took.
fn write(cluster: &Playground) -> Duration {
    let began = Instant::now();
    cluster.exec("shop", "writer", "echo x > /ext4/written; echo x > /xfs/written; sync");
    began.elapsed()
}

#[test]
fn writers_wait_while_snapshots_are_cut_and_no_longer() {
    let Some((cluster, store)) = with_store("writers_wait_while_snapshots_are_cut_and_no_longer", 2) else { return };
    start_application(&cluster, "shop");
    add_repository(&cluster, &store, true);
    let before = cluster.inventory();

    set_switches(&cluster, r#"{"snapshot_takes_ms": 8000}"#);
    back_up(&cluster, "frozen", 120);
    wait_for_step(&cluster, "backup", "shop", "frozen", "Snapshot");
    let waited = write(&cluster);
    assert!(waited > Duration::from_secs(3), "it was written after {waited:?}");
    wait_for_success(&cluster, "backup", "shop", "frozen");
    let status = cluster.wait_for_run("backup", "shop", "frozen");
    let mounts: Vec<&String> = status["freeze"]["mounts"].as_object().unwrap().keys().collect();
    assert_eq!(mounts, ["ext4", "xfs"], "{status}");
    let held = status["freeze"]["heldMs"].as_i64().unwrap();
    assert!((8000..100_000).contains(&held), "{status}");
    cluster.wait_for_inventory(&before);

    // Snapshots that take longer than writers may wait.
    back_up(&cluster, "slow", 5);
    wait_for_failure(&cluster, "backup", "shop", "slow", "no snapshot of");
    write(&cluster);
    cluster.wait_for_inventory(&before);

    // Whoever goes away, writers go on, and the run is void.
    set_switches(&cluster, r#"{"snapshot_takes_ms": 20000}"#);
    for (what, reason) in [("agent", "was thawed before"), ("operator", "went away")] {
        let name = format!("no-{what}");
        back_up(&cluster, &name, 120);
        wait_for_step(&cluster, "backup", "shop", &name, "Snapshot");
        kill(&cluster, what);
        let waited = write(&cluster);
        assert!(waited < Duration::from_secs(100), "the {what} was killed, and writers waited {waited:?}");
        wait_for_failure(&cluster, "backup", "shop", &name, reason);
        cluster.wait_for_inventory(&before);
    }
    set_switches(&cluster, "{}");
    let refused = cluster.try_apply(
        "apiVersion: milkrun.dev/v1alpha1\nkind: Backup\nmetadata: {name: too-long, namespace: shop}\n\
         spec: {repository: prod, freezeSeconds: 301}\n",
    );
    assert!(!refused.ok && refused.out.contains("1 to 300 seconds"), "{}", refused.out);
}
