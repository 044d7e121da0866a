//! Storage that is late, or never does what it should, with an operator that is killed and a backup that is deleted at each moment.

use milkrun_resources::backup::BackupStep;

use super::world::{Storage, World};
use super::{delete, walk};
use crate::walk::Walked;

const NEVER: u32 = u32::MAX;

#[test]
fn an_operator_that_is_killed_at_any_moment_bears_with_storage_that_is_late() {
    for storage in [
        Storage { cut: 3, ready: 3, ..Storage::default() },
        Storage { ready: 4, ..Storage::default() },
        Storage { twin: 3, ..Storage::default() },
        Storage { made: 3, ..Storage::default() },
        Storage { runs: 3, ..Storage::default() },
        Storage { cut: 2, ready: 4, twin: 2, made: 2, runs: 2, groups: false, forgets: false },
    ] {
        walk(|| World::on(storage));
        delete(|| World::on(storage));
    }
}

#[test]
fn a_backup_that_is_deleted_at_any_moment_leaves_nothing_where_the_storage_never_does_its_part() {
    for storage in [
        Storage { cut: NEVER, ready: NEVER, ..Storage::default() },
        Storage { ready: NEVER, ..Storage::default() },
        Storage { twin: NEVER, ..Storage::default() },
        Storage { made: NEVER, ..Storage::default() },
        Storage { runs: NEVER, ..Storage::default() },
    ] {
        delete(|| World::on(storage));
    }
}

#[test]
fn a_snapshot_that_the_storage_has_lost_is_waited_for_ten_minutes() {
    let mut world = World::on(Storage { twin: NEVER, ..Storage::default() });
    for _ in 0..20 {
        world.step(None);
    }
    assert!(world.status().message.contains("to be ready in the work namespace"), "{}", world.status().message);
    assert_eq!(world.status().step, BackupStep::Move);
    world.clock += jiff::SignedDuration::from_mins(11);
    world.run();
    assert!(world.status().failure.unwrap().contains("for 600 s it waited for its snapshot to be ready"));
}
