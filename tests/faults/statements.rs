//! What `verify` checks: every statement of each placement counts, each lock is the lock of the version in use, and the
//! public key alone is enough to check as much of it.

use std::sync::Arc;

use milkrun_repository::clock::Moment;
use milkrun_repository::point::Placement;
use milkrun_repository::repository::OpenPoint;
use milkrun_repository::store::memory::Memory;
use milkrun_repository::store::{Firmness, Key, Lock};
use milkrun_repository::verify::{Options, Report, verify_public};
use milkrun_tests::embedded::{World, sound};
use milkrun_tests::noise;

use crate::{LOCKED, runtime};

/// Two points with the same content, which share all data packs.
async fn two_points() -> (Arc<Memory>, World, Vec<OpenPoint>) {
    let memory = Arc::new(Memory::new());
    let world = World::over(memory.clone(), memory.clone(), LOCKED).await;
    world.content("data", noise(3 << 20, 1));
    let mut points = Vec::new();
    for _ in 0..2 {
        world.back_up(&["data"], sound()).await.unwrap();
    }
    for found in world.repository().catalog().list(None).await.unwrap().points {
        points.push(world.repository().open_point(found).await.unwrap());
    }
    assert_eq!(points.len(), 2);
    assert_eq!(world.verify().await.findings, []);
    assert_eq!(public(&memory, &world).await.findings, []);
    (memory, world, points)
}

async fn public(memory: &Memory, world: &World) -> Report {
    let options = Options { parallel: 4, ..Options::default() };
    verify_public(memory, world.repository().config.keys.signing, &options).await.unwrap().1
}

fn finds(report: &Report, object: &str, reason: &str) {
    let found = report.findings.iter().any(|f| f.object.starts_with(object) && f.reason.contains(reason));
    assert!(found, "no {reason:?} of {object} in {:?}", report.findings);
}

/// Stores a changed copy as the point's next placement.
fn place_anew(memory: &Memory, world: &World, point: &OpenPoint, change: impl FnOnce(&mut Placement)) {
    let mut placement = Placement { number: point.placement.number + 1, ..point.placement.placement.clone() };
    change(&mut placement);
    let id = point.found.root.id();
    let until = point.found.root.lock_until.unwrap();
    let lock = Some(Lock { firmness: Firmness::Compliance, until });
    let bytes = placement.encode(&world.repository().ring);
    memory.overwrite(&Key::placement(&id, placement.number), bytes, lock);
}

#[test]
fn each_placement_of_a_pack_is_checked_by_itself() {
    runtime().block_on(async {
        for second in [0, 1] {
            let (memory, world, points) = two_points().await;
            let shared = points[0].placement.packs[0].id;
            place_anew(&memory, &world, &points[second], |p| {
                let pack = p.packs.iter_mut().find(|p| p.id == shared).unwrap();
                pack.key.ciphertext[0] ^= 1;
            });
            let report = world.verify().await;
            let object = Key::pack(&shared).to_string();
            finds(&report, &object, "placements disagree about its sealed key");
            finds(&report, &object, "its footer is another than the placement signs");
            finds(&public(&memory, &world).await, &object, "placements disagree about its sealed key");

            place_anew(&memory, &world, &points[second], |p| {
                p.number += 1;
                let pack = p.packs.iter_mut().find(|p| p.id == shared).unwrap();
                pack.digest[0] ^= 1;
            });
            let report = public(&memory, &world).await;
            finds(&report, &object, "placements disagree about the digest");
            finds(&report, &object, "its bytes are not those");
        }
    });
}

/// Somebody puts a locked version of rubbish on top: the version below is the one in use.
#[test]
fn the_lock_of_the_version_in_use_counts() {
    runtime().block_on(async {
        let (memory, world, points) = two_points().await;
        let root = &points[0].found.root;
        let placement = Key::placement(&root.id(), points[0].placement.number);
        let long =
            Lock { firmness: Firmness::Compliance, until: Moment::now().plus(std::time::Duration::from_secs(1 << 30)) };
        let bytes = points[0].placement.encode(&world.repository().ring);
        for lock in [None, Some(Lock { firmness: Firmness::Governance, ..long })] {
            memory.lose(&placement);
            memory.overwrite(&placement, bytes.clone(), lock);
            memory.overwrite(&placement, "rubbish", Some(long));
            let reason = if lock.is_none() { "not locked" } else { "can be bypassed" };
            finds(&world.verify().await, placement.as_str(), reason);
            finds(&public(&memory, &world).await, placement.as_str(), reason);
        }
        let config = Key::config();
        memory.lose(&config);
        memory.overwrite(&config, world.repository().config_bytes(), None);
        finds(&public(&memory, &world).await, config.as_str(), "not locked");
    });
}

/// An accidental delete hides everything. Nothing is lost, and `verify` finds nothing but the delete markers.
#[test]
fn keys_behind_delete_markers_are_reported_as_hidden_only() {
    runtime().block_on(async {
        let (memory, world, _) = two_points().await;
        for key in memory.keys() {
            memory.hide(&key);
        }
        for report in [world.verify().await, public(&memory, &world).await] {
            assert!(!report.findings.is_empty());
            assert!(
                report.findings.iter().all(|f| f.reason.contains("hidden by a delete marker")),
                "{:?}",
                report.findings
            );
        }
        world.restore(&["data"], sound()).await.unwrap();
    });
}
