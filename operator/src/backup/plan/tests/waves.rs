//! A backup of more volumes than may be exposed at once.

use super::*;

#[test]
fn so_many_volumes_are_exposed_at_once_and_all_get_their_turn() {
    for (max, elsewhere) in [(1, 0), (2, 0), (3, 2)] {
        let mut world = World::new(&["a", "b", "c", "d"]);
        (world.exposed_max, world.seen.exposed_elsewhere) = (max, elsewhere);
        let mut most = 0;
        while world.status().step != BackupStep::Done {
            world.step(None);
            most = most.max(world.seen.work_claims.len());
            let waits = world.status().message;
            assert!(!waits.contains("one of the") || waits.contains(&format!("one of the {max} volumes")), "{waits}");
        }
        assert_eq!(most, max - elsewhere, "{max} at once, {elsewhere} of others");
        assert_eq!(world.status().point.as_deref(), Some("p"));
        assert_eq!(world.sources, ["a", "b", "c", "d"]);
        assert!(is_clean(&world.seen));
    }
}

#[test]
fn while_others_have_all_slots_it_waits_and_says_so() {
    let mut world = World::new(&["a"]);
    (world.exposed_max, world.seen.exposed_elsewhere) = (3, 3);
    for _ in 0..20 {
        world.step(None);
    }
    assert_eq!(world.status().message, "a waits for one of the 3 volumes that are exposed at once");
    world.clock += jiff::SignedDuration::from_hours(30);
    world.step(None);
    world.seen.exposed_elsewhere = 0;
    world.run();
    assert_eq!(world.status().failure, None, "it waited for others");
}
