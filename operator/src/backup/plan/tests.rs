//! The plan of a backup against a small world, with an operator that is killed at each moment.

mod freeze;
mod group_world;
mod groups;
mod storage;
mod waves;
mod world;

use milkrun_resources::condition::{COMPLETE, Conditions, FAILED};

use super::*;
use crate::run::RunSeen;
use crate::walk::{Walked, before_each_look, killed_at_each_moment};
use world::{World, claim, now, settings, volume};

#[test]
fn a_backup_ends_with_a_point_and_leaves_nothing() {
    let mut world = World::new(&["a", "b"]);
    world.run();
    let status = world.status();
    assert_eq!((status.point.as_deref(), status.failure), (Some("p"), None));
    assert!(status.conditions.is_true(COMPLETE) && !status.conditions.is_true(FAILED));
    assert_eq!(world.sources, ["a", "b"]);
    assert!(is_clean(&world.seen));
}

#[test]
fn an_operator_that_is_killed_at_any_moment_is_followed_by_one_that_goes_on() {
    walk(|| World::new(&["a", "b"]));
}

/// Kills the operator after each thing of each look of a whole run.
fn walk(new: impl Fn() -> World) {
    walk_and(new, |_, _| {});
}

/// The same; `end` gets the world of each end, and which moment it was.
fn walk_and(new: impl Fn() -> World, end: impl Fn(&World, &str)) {
    killed_at_each_moment(new, |mut world, moment| {
        world.run();
        let of = world.storage;
        assert_eq!(world.status().point.as_deref(), Some("p"), "{of:?}: {moment}");
        assert!(is_clean(&world.seen), "{of:?}: {moment}");
        end(&world, moment);
    });
}

#[test]
fn a_backup_that_is_deleted_at_any_moment_leaves_nothing() {
    delete(|| World::new(&["a", "b"]));
}

/// Deletes the backup before each look of a run.
fn delete(new: impl Fn() -> World) {
    delete_and(new, |_, _| {});
}

/// The same; `end` gets the world of each end, and which moment it was.
fn delete_and(new: impl Fn() -> World, end: impl Fn(&World, &str)) {
    before_each_look(new, |mut world, look| {
        world.backup.metadata.deletion_timestamp = Some(crate::steps::time(now()));
        world.run();
        assert!(is_clean(&world.seen), "{:?}: deleted before look {look}", world.storage);
        end(&world, &format!("deleted before look {look}"));
    });
}

#[test]
fn a_clock_that_is_off_by_an_hour_ends_no_wait_early() {
    for hours in [-1, 1] {
        let start = || {
            let mut world = World::new(&["a"]);
            world.clock = now() + jiff::SignedDuration::from_hours(hours);
            world.seen.nodes = Some(Vec::new());
            for _ in 0..20 {
                world.step(None);
            }
            assert_eq!(world.status().message, "a waits for an agent on node n", "{hours} h");
            world
        };
        let mut world = start();
        world.seen.nodes = Some(vec!["n".into()]);
        world.run();
        assert_eq!(world.status().failure, None, "{hours} h");
        // And waits end.
        let mut world = start();
        world.clock += jiff::SignedDuration::from_hours(2);
        world.run();
        assert_eq!(world.status().failure.as_deref(), Some("claim a: there is no agent on node n"), "{hours} h");
    }
}

#[test]
fn what_cannot_be_backed_up_is_named_before_anything_is_made() {
    let mut world = World::new(&["a"]);
    world.seen.claims.push(claim("waits", "Pending"));
    let mut other = volume("pv-other");
    other.spec.as_mut().unwrap().csi.as_mut().unwrap().driver = "unknown".into();
    world.seen.claims.push(claim("other", "Bound"));
    world.seen.volumes.insert("other".into(), other);
    world.run();
    let why = world.status().failure.unwrap();
    assert!(why.contains("claim waits: it is not bound"), "{why}");
    assert!(why.contains("claim other: there is no VolumeSnapshotClass of its driver unknown"), "{why}");
    assert!(world.seen.snapshots.is_empty() && world.status().conditions.is_true(FAILED));
    // A claim that is named to be left out is no obstacle.
    let mut world = World::new(&["a"]);
    world.seen.claims.push(claim("waits", "Pending"));
    world.backup.spec.skip = vec!["waits".into()];
    world.run();
    assert_eq!(world.status().skipped.len(), 1);
    assert_eq!(world.status().failure, None);
}

#[test]
fn a_run_that_fails_says_why_and_everything_goes() {
    let mut world = World::new(&["a"]);
    for _ in 0..6 {
        world.step(None);
    }
    assert!(!is_clean(&world.seen));
    world.look();
    let failed =
        control::Run { state: control::run::State::Failed.into(), reason: "no space".into(), ..Default::default() };
    world.seen.run = RunSeen::Opened(Box::new(failed));
    let plan = plan(&world.backup, &world.seen, &settings(), now());
    assert_eq!(plan.status.failure.as_deref(), Some("no space"));
    world.backup.status = Some(plan.status);
    world.run();
    assert!(is_clean(&world.seen) && world.status().conditions.is_true(FAILED));
}
