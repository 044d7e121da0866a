//! A backup that freezes, with an operator that is killed or replaced at each moment.

use milkrun_resources::backup::MountStatus;

use super::*;

fn world() -> World {
    let mut world = World::new(&["a", "b"]);
    world.backup.spec.freeze_seconds = Some(10);
    let mount = MountStatus { node: "n".into(), path: "/k/a".into() };
    world.seen.mounts.insert("a".into(), mount);
    world
}

#[test]
fn file_systems_are_frozen_while_snapshots_are_cut_and_the_point_says_how_long() {
    let mut world = world();
    world.run();
    let status = world.status();
    assert_eq!((status.failure, status.point.as_deref()), (None, Some("p")));
    assert!(!world.frozen);
    assert_eq!(status.freeze.unwrap().held_ms, Some(40));
    let steps: Vec<&String> = status.steps.keys().collect();
    assert!(steps.contains(&&"Freeze".to_owned()) && steps.contains(&&"Thaw".to_owned()), "{steps:?}");
}

#[test]
fn nothing_stays_frozen_whoever_goes_on_at_any_moment() {
    killed_at_each_moment(world, |mut world, moment| {
        let held = world.frozen;
        world.process = "another one";
        world.run();
        assert!(!world.frozen && is_clean(&world.seen), "{moment}");
        let failure = world.status().failure.unwrap_or_default();
        // It is void if the file systems were frozen, and nobody knows until when.
        assert!(!held || failure.contains("went away"), "{moment}: {failure}");
    });
    before_each_look(world, |mut world, look| {
        world.backup.metadata.deletion_timestamp = Some(crate::steps::time(now()));
        world.run();
        assert!(!world.frozen && is_clean(&world.seen), "deleted before look {look}");
    });
}

#[test]
fn a_snapshot_that_takes_longer_than_file_systems_stay_frozen_voids_the_run() {
    let mut world = world();
    while world.status().step != BackupStep::Snapshot {
        world.step(None);
    }
    (world.seen.snapshots, world.seen.contents) = Default::default();
    world.clock += jiff::SignedDuration::from_secs(11);
    world.run();
    let failure = world.status().failure.unwrap_or_default();
    assert!(failure.starts_with("no snapshot of a, b after 1"), "{failure}");
    assert!(!world.frozen);
}

#[test]
fn what_no_pod_has_mounted_is_not_frozen() {
    let mut world = world();
    world.seen.mounts.clear();
    for _ in 0..3 {
        world.step(None);
    }
    // Whoever goes on.
    world.process = "another one";
    world.run();
    assert_eq!((world.status().failure, world.status().point.as_deref()), (None, Some("p")));
}

#[test]
fn a_pod_that_comes_while_others_stand_still_voids_the_run() {
    let mut world = world();
    for nothing_before in [false, true] {
        if nothing_before {
            world = self::world();
            world.seen.mounts.clear();
        }
        while world.status().step != BackupStep::Snapshot {
            world.step(None);
        }
        (world.seen.snapshots, world.seen.contents) = Default::default();
        let mount = MountStatus { node: "n".into(), path: "/k/b".into() };
        world.seen.mounts.insert("b".into(), mount);
        world.run();
        let failure = world.status().failure.unwrap_or_default();
        assert!(failure.starts_with("claim b: a pod mounted it"), "{failure}");
        assert!(!world.frozen && is_clean(&world.seen));
    }
}
