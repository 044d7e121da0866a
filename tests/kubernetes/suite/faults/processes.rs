//! Processes of milkrun that are killed.

use milkrun_tests::seaweed::Seaweed;

use super::{kill, restore, set_switches, wait_for_step, wait_for_success};
use crate::installed::{add_repository, back_up, start_application, with_store};
use crate::playground::Playground;

/// A cluster with the application. Snapshots are slow, so that each step lasts a while; clones hold on to them, so that order matters.
fn start(test: &str) -> Option<(Playground, Seaweed, Vec<String>)> {
    let (cluster, store) = with_store(test, 2)?;
    start_application(&cluster, "shop");
    add_repository(&cluster, &store, true);
    let before = cluster.inventory();
    set_switches(&cluster, r#"{"snapshot_takes_ms": 700, "clones_hold_snapshots": true}"#);
    Some((cluster, store, before))
}

#[test]
fn a_backup_goes_on_when_processes_are_killed() {
    let test = "a_backup_goes_on_when_processes_are_killed";
    let Some((cluster, _store, before)) = start(test) else { return };
    let cases = [
        ("Open", "operator"),
        ("Snapshot", "operator"),
        ("Move", "operator"),
        ("Move", "coordinator"),
        ("Move", "agent"),
        ("Commit", "operator"),
        ("CleanUp", "operator"),
    ];
    for (number, (at, what)) in cases.into_iter().enumerate() {
        let name = format!("killed-{number}");
        back_up(&cluster, "shop", &name);
        wait_for_step(&cluster, "backup", "shop", &name, at);
        kill(&cluster, what);
        wait_for_success(&cluster, "backup", "shop", &name);
        cluster.wait_for_inventory(&before);
    }
}

#[test]
fn a_restore_goes_on_when_processes_are_killed() {
    let test = "a_restore_goes_on_when_processes_are_killed";
    let Some((cluster, _store, before)) = start(test) else { return };
    back_up(&cluster, "shop", "first");
    wait_for_success(&cluster, "backup", "shop", "first");
    cluster.wait_for_inventory(&before);
    let cases = [
        ("Reserve", "operator"),
        ("Data", "operator"),
        ("Data", "coordinator"),
        ("Data", "agent"),
        ("HandOver", "operator"),
        ("CleanUp", "operator"),
    ];
    for (number, (at, what)) in cases.into_iter().enumerate() {
        let name = format!("killed-{number}");
        cluster.kubectl(&format!("create namespace {name}"));
        restore(&cluster, &name, "shop", &name, "");
        wait_for_step(&cluster, "restore", "milkrun", &name, at);
        kill(&cluster, what);
        wait_for_success(&cluster, "restore", "milkrun", &name);
        let bound = format!("-n {name} get pvc -o jsonpath={{.items[*].status.phase}}");
        assert_eq!(cluster.kubectl(&bound), "Bound Bound Bound", "{what} was killed at {at}");
        // Nothing else is left, and a removed namespace takes its volumes with it.
        cluster.kubectl(&format!("delete namespace {name}"));
        cluster.wait_for_inventory(&before);
    }
}
