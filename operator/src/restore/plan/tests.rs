//! The plan of a restore against a small world, with an operator that is killed at each moment.

mod world;

use milkrun_resources::condition::{Conditions, FAILED};
use serde_json::json;

use super::super::hand_over::policy;
use super::*;
use crate::walk::{Walked, before_each_look, killed_at_each_moment};
use world::{World, now, of};

fn plain() -> World {
    World::new(json!({"repository": "prod", "point": "shop@latest"}))
}

/// In place, where the application has let go.
fn swapped() -> World {
    let mut world = World::in_place();
    world.seen.pods.clear();
    world
}

#[test]
fn a_restore_gives_each_claim_its_volume_and_leaves_nothing_else() {
    let mut world = plain();
    world.run();
    assert!(world.is_restored(), "{:?}", world.status());
    assert_eq!(world.volumes.len(), 2);
    assert!(world.volumes.values().all(|volume| policy(volume) == Some("Delete")), "as the class says");
}

#[test]
fn an_operator_that_is_killed_at_any_moment_is_followed_by_one_that_goes_on() {
    for new in [plain, swapped, World::in_waves] {
        killed_at_each_moment(new, |mut world, moment| {
            world.run();
            assert!(world.is_restored(), "{moment}: {:?}", world.status());
        });
    }
}

#[test]
fn more_volumes_than_there_are_slots_are_written_in_waves() {
    let mut world = World::in_waves();
    world.run();
    assert!(world.is_restored(), "{:?}", world.status());
    assert_eq!(world.status().wave, 1);
}

#[test]
fn a_restore_that_is_deleted_at_any_moment_leaves_all_or_nothing() {
    for new in [plain, World::in_waves] {
        before_each_look(new, |mut world, look| {
            world.restore.metadata.deletion_timestamp = Some(crate::steps::time(now()));
            world.run();
            assert!(world.is_tidy(), "deleted before look {look}: {:?}", world.disks);
            for name in ["data", "wal"] {
                let whole = world.disk(name).is_some() || !world.seen.claims.contains_key(name);
                assert!(whole, "deleted before look {look}: {name} waits for ever");
            }
        });
    }
}

#[test]
fn a_restore_in_place_that_is_deleted_leaves_the_claims_as_they_were_or_restored() {
    before_each_look(swapped, |mut world, look| {
        world.restore.metadata.deletion_timestamp = Some(crate::steps::time(now()));
        world.run();
        assert!(world.is_tidy(), "deleted before look {look}: {:?}", world.disks);
        let disks = ["data", "wal"].map(|name| world.disk(name).unwrap());
        let old = disks == ["old-disk-data", "old-disk-wal"];
        assert!(old || disks == ["disk-data", "disk-wal"], "deleted before look {look}: {disks:?}");
        for name in ["data", "wal"] {
            assert_eq!(world.disks.get(&format!("old-disk-{name}")), Some(&false), "the volume of before is kept");
            let wanted = if old { "Delete" } else { "Retain" };
            assert_eq!(policy(&world.volumes[&format!("old-{name}")]), Some(wanted), "deleted before look {look}");
        }
    });
}

#[test]
fn a_claim_that_somebody_removes_at_any_moment_fails_the_restore_and_leaves_no_disk() {
    let mut lost = 0;
    before_each_look(plain, |mut world, look| {
        if world.seen.claims.remove("data").is_none() || world.status().step == RestoreStep::Done {
            return;
        }
        world.reclaim();
        world.run();
        assert!(world.is_tidy(), "removed before look {look}: {:?} {:?}", world.disks, world.status());
        // Before it is needed, it is just made again.
        if !world.is_restored() && world.status().failure.is_some() {
            lost += 1;
            let why = world.status().failure.unwrap();
            assert!(why.contains("somebody removed the claim data"), "{why}");
            assert!(!world.disks.contains_key("disk-data"), "removed before look {look}");
        }
    });
    assert!(lost > 5, "{lost}");
}

#[test]
fn a_claim_that_somebody_else_makes_meanwhile_is_not_taken() {
    let mut world = plain();
    world.step(None);
    let other = of(json!({"metadata": {"name": "data", "namespace": "shop", "uid": "other"}, "spec": {}}));
    world.seen.claims.insert("data".into(), other);
    world.run();
    let why = world.status().failure.unwrap();
    assert!(why.contains("there is another claim data meanwhile"), "{why}");
    assert!(world.is_tidy() && world.seen.claims["data"].uid().as_deref() == Some("other"));
    assert!(!world.seen.claims.contains_key("wal"), "the other reserved claim waits for ever");
}

#[test]
fn nothing_is_replaced_while_a_pod_uses_any_of_the_claims() {
    let mut world = World::in_place();
    for _ in 0..40 {
        world.step(None);
    }
    let status = world.status();
    assert_eq!(status.step, RestoreStep::HandOver);
    assert!(status.message.contains("pod db-0 (scale down its StatefulSet db) to let go"), "{}", status.message);
    for name in ["data", "wal"] {
        assert_eq!(world.disk(name), Some(format!("old-disk-{name}")));
        // Whoever scales down may remove the claims.
        assert_eq!(policy(&world.volumes[&format!("old-{name}")]), Some("Retain"));
    }
    world.seen.pods.clear();
    world.run();
    assert!(world.is_restored(), "{:?}", world.status());
    assert_eq!(world.seen.claims["data"].labels().get("app").map(String::as_str), Some("db"));
    for name in ["data", "wal"] {
        assert_eq!(policy(&world.volumes[&format!("old-{name}")]), Some("Retain"), "kept");
        let undo = world.status().volumes[name].undo.clone().unwrap();
        assert!(undo.contains(&format!("kubectl patch pv old-{name}")) && undo.contains(r#""app":"db""#), "{undo}");
    }
}

#[test]
fn a_claim_that_goes_when_its_pods_are_scaled_down_loses_no_data() {
    before_each_look(World::in_place, |mut world, look| {
        let begun = world.status().step > RestoreStep::Reserve;
        world.seen.pods.clear();
        let old = |claim: &k8s_openapi::api::core::v1::PersistentVolumeClaim| {
            claim.uid().is_some_and(|uid| uid.starts_with("old-"))
        };
        world.seen.claims.retain(|name, claim| name != "data" || !old(claim));
        world.reclaim();
        world.run();
        assert!(world.is_restored(), "gone before look {look}: {:?}", world.status());
        assert!(!begun || world.disks.contains_key("old-disk-data"), "gone before look {look}");
        assert!(!begun || world.status().volumes["data"].undo.is_some(), "gone before look {look}");
    });
}

#[test]
fn a_volume_of_somebody_else_is_not_taken_for_that_of_the_claim() {
    let mut world = World::in_place();
    let volume = world.seen.replaced.get_mut("data").unwrap();
    volume.spec.as_mut().unwrap().claim_ref.as_mut().unwrap().uid = Some("another".into());
    world.run();
    let why = world.status().failure.unwrap();
    assert!(why.contains("the claim data is not bound to its volume"), "{why}");
}

#[test]
fn a_claim_that_is_there_stops_a_restore_that_is_not_in_place() {
    let mut world = World::in_place();
    world.restore.spec.in_place = false;
    world.run();
    let why = world.status().failure.unwrap();
    assert!(why.contains("volume data: there is a claim data already"), "{why}");
    assert_eq!(world.disk("data").as_deref(), Some("old-disk-data"));
    assert!(world.status().conditions.is_true(FAILED));
}

#[test]
fn what_the_cluster_would_refuse_is_known_before_anything_is_made() {
    let mut world = plain();
    world.seen.admission = Admission::Away("a webhook does not answer".into());
    world.step(None);
    assert_eq!(
        (world.status().step, world.status().message.as_str()),
        (RestoreStep::Check, "a webhook does not answer")
    );
    world.seen.admission = Admission::Refused(vec!["no room".into(), "no right".into()]);
    world.run();
    assert_eq!(world.status().failure.as_deref(), Some("no room; no right"));
    assert!(!world.status().steps.contains_key("Reserve"));
    assert!(world.disks.is_empty() && world.seen.claims.is_empty());
}
