//! Claims that are cut together, with an operator that is killed and a backup that is deleted at each moment.

use kube::ResourceExt;
use milkrun_resources::backup::BackupStep;

use super::world::{Storage, World};
use super::{delete_and, walk_and};
use crate::claim_facts::ClaimFacts;
use crate::walk::Walked;

const GROUPS: Storage = Storage { cut: 0, ready: 0, twin: 0, made: 0, runs: 0, groups: true, forgets: false };
const NEVER: u32 = u32::MAX;

/// Whether a claim still has a group's label.
fn is_labelled(world: &World) -> bool {
    world.seen.groups.claims.values().any(|claim| !claim.labels().is_empty())
}

#[test]
fn claims_of_one_driver_are_cut_together_and_the_point_says_so() {
    let mut world = World::on(GROUPS);
    world.run();
    let status = world.status();
    assert_eq!((status.point.as_deref(), status.failure), (Some("p"), None));
    let (name, group) = status.groups.first_key_value().unwrap();
    assert_eq!((group.claims.as_slice(), group.swept), (["a".to_owned(), "b".to_owned()].as_slice(), true));
    assert!(!is_labelled(&world));
    assert_eq!(world.facts.len(), 2);
    for facts in &world.facts {
        assert_eq!(ClaimFacts::read(facts).unwrap().group.as_ref(), Some(name));
    }
    // Only if that is wanted, and if there are several.
    let mut apart = World::on(GROUPS);
    apart.storage.groups = false;
    apart.backup.spec.separate_snapshots = true;
    apart.run();
    assert!(apart.status().groups.is_empty() && apart.status().point.is_some());
    let mut alone = World::on(GROUPS);
    alone.storage.groups = false;
    alone.seen.claims.truncate(1);
    alone.run();
    assert!(alone.status().groups.is_empty() && alone.status().point.is_some());
}

#[test]
fn an_operator_that_is_killed_or_a_backup_that_is_deleted_leaves_no_group_and_no_label() {
    for storage in [
        GROUPS,
        Storage { cut: 3, ..GROUPS },
        Storage { ready: 3, ..GROUPS },
        Storage { twin: 2, made: 2, runs: 2, ..GROUPS },
        Storage { forgets: true, ..GROUPS },
        Storage { cut: 2, ready: 2, forgets: true, ..GROUPS },
    ] {
        let end = |world: &World, moment: &str| assert!(!is_labelled(world), "{storage:?}: {moment}");
        walk_and(|| World::on(storage), end);
        delete_and(|| World::on(storage), end);
    }
    for storage in
        [Storage { cut: NEVER, ..GROUPS }, Storage { ready: NEVER, ..GROUPS }, Storage { made: NEVER, ..GROUPS }]
    {
        delete_and(|| World::on(storage), |world, moment| assert!(!is_labelled(world), "{storage:?}: {moment}"));
    }
}

#[test]
fn a_group_of_other_volumes_is_no_backup() {
    let mut world = World::on(Storage { cut: 2, ..GROUPS });
    while world.seen.groups.snapshots.is_empty() {
        world.step(None);
    }
    // Somebody takes the label away before the snapshot controller looks.
    world.seen.groups.claims.get_mut("b").unwrap().labels_mut().clear();
    world.run();
    let why = world.status().failure.unwrap();
    assert!(why.contains("the group snapshot of a, b is not of their volumes"), "{why}");
    assert_eq!(world.status().step, BackupStep::Done);
}

#[test]
fn a_group_that_somebody_removes_is_not_made_anew_and_no_moment_of_it_counts() {
    let mut world = World::on(Storage { ready: NEVER, ..GROUPS });
    // It was cut, and another claim's snapshot is still waited for.
    while world.status().volumes.is_empty() || world.status().volumes["a"].moment.is_none() {
        world.step(None);
    }
    let mut status = world.status();
    status.step = BackupStep::Snapshot;
    world.backup.status = Some(status);
    world.seen.groups.snapshots.clear();
    world.seen.groups.contents.clear();
    world.seen.snapshots.clear();
    world.seen.contents.clear();
    world.run();
    let why = world.status().failure.unwrap();
    assert!(why.contains("somebody removed the group snapshot of a, b"), "{why}");
    // One whose storage is about to go is not read, and not kept from going.
    let mut world = World::on(Storage { ready: NEVER, ..GROUPS });
    while world.status().step != BackupStep::Move {
        world.step(None);
    }
    let content = world.seen.groups.contents.values_mut().next().unwrap();
    content.metadata.deletion_timestamp = Some(crate::steps::time(crate::walk::now()));
    content.spec.deletion_policy = "Delete".into();
    world.run();
    let why = world.status().failure.unwrap();
    assert!(why.contains("somebody removed its snapshot"), "{why}");
}

#[test]
fn an_error_of_the_storage_is_said_and_believed_when_it_stays() {
    let mut world = World::on(Storage { cut: NEVER, ..GROUPS });
    for _ in 0..10 {
        world.step(None);
    }
    let message = world.status().message;
    assert!(message.contains("the snapshot of a, b") && message.contains("the array is full"), "{message}");
    world.clock += jiff::SignedDuration::from_secs(61);
    world.run();
    let why = world.status().failure.unwrap();
    assert!(why.contains("the array is full (spec.separateSnapshots"), "{why}");
}
