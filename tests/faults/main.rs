//! Devices and stores that fail, tested through coordinator and agent. An error stops the run, names the volume and the
//! offset, and loses nothing. Transient faults are retried. Nothing unfinished is listed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod statements;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use milkrun_agent::device::scripted::{Mishap, Scripted};
use milkrun_repository::clock::Moment;
use milkrun_repository::config::{LockMode, LockPolicy};
use milkrun_repository::store::faulty::{Fault, Script};
use milkrun_repository::store::memory::Memory;
use milkrun_repository::store::{Key, Operation, Trouble};
use milkrun_tests::embedded::{World, sound};
use milkrun_tests::noise;
use tonic::Code;

const LOCKED: LockPolicy = LockPolicy { mode: LockMode::Compliance, period: Duration::from_secs(3600) };

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn a_device_that_fails_in_the_middle_fails_the_run_and_names_the_offset() {
    runtime().block_on(async {
        let world = World::new(LockPolicy::NONE).await;
        world.content("good", noise(20 << 20, 1));
        for (mishap, text) in [(Mishap::Error, "Input/output error"), (Mishap::Short, "read error")] {
            let content = Arc::new(noise(40 << 20, 2));
            world.device("bad", Scripted { content, mishap: Some((25 << 20, mishap)), size_at_end: None });
            let status = world.back_up(&["good", "bad"], sound()).await.unwrap_err();
            assert!(status.message().contains("volume bad"), "{status}");
            assert!(status.message().contains(text), "{status}");
            assert!(status.message().contains(&(25 << 20).to_string()), "{status}");
        }
        let content = Arc::new(noise(1 << 20, 2));
        world.device("bad", Scripted { content, mishap: None, size_at_end: Some(5) });
        let status = world.back_up(&["bad"], sound()).await.unwrap_err();
        assert!(status.message().contains("changed while it was read"), "{status}");
        assert_eq!(world.points().await, 0);
        // A clean run succeeds afterwards.
        world.back_up(&["good"], sound()).await.unwrap();
        assert!(world.verify().await.findings.is_empty());
    });
}

/// Each n-th call fails with a transient fault.
#[test]
fn transient_faults_of_the_store_change_nothing() {
    runtime().block_on(async {
        for fault in [
            Fault::Before(Trouble::Unreachable),
            Fault::Before(Trouble::Busy),
            Fault::After(Trouble::Unreachable),
            Fault::Truncate,
            Fault::Stall(Duration::from_secs(3)),
        ] {
            let world = World::new(LOCKED).await;
            let content = noise(40 << 20, 3);
            world.content("data", content.clone());
            let every = if matches!(fault, Fault::Stall(_)) { 11 } else { 4 };
            let script: Script = Arc::new(move |n, operation, _| {
                // A body that is cut off is noticed where its length is known: where a grant is redeemed.
                let fits = fault != Fault::Truncate || operation == Operation::Get;
                (fits && n.is_multiple_of(every)).then_some(fault)
            });
            if fault != Fault::Truncate {
                world.back_up(&["data"], script.clone()).await.unwrap();
            } else {
                world.back_up(&["data"], sound()).await.unwrap();
            }
            let restored = world.restore(&["data"], if fault == Fault::Truncate { sound() } else { script }).await;
            restored.unwrap();
            assert!(std::fs::read(world.target("data")).unwrap() == content, "{fault:?}");
            let report = world.verify().await;
            assert!(report.findings.is_empty(), "{fault:?}: {:?}", report.findings);
            assert_eq!(world.points().await, 1);
        }
    });
}

#[test]
fn permanent_faults_are_reported_and_leave_no_point() {
    runtime().block_on(async {
        for (trouble, code, text) in [
            (Trouble::Unreachable, Code::Unavailable, "does not answer"),
            (Trouble::Busy, Code::Unavailable, "overloaded"),
            (Trouble::Denied, Code::FailedPrecondition, "access denied"),
            (Trouble::Full, Code::FailedPrecondition, "no space left"),
        ] {
            let world = World::new(LOCKED).await;
            world.content("data", noise(5 << 20, 4));
            let script: Script = Arc::new(move |_, operation, key| {
                (operation == Operation::Create && key.starts_with("packs/")).then_some(Fault::Before(trouble))
            });
            let status = world.back_up(&["data"], script).await.unwrap_err();
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().contains(text), "{status}");
            assert_eq!(world.points().await, 0);
            world.back_up(&["data"], sound()).await.unwrap();
            assert!(world.verify().await.findings.is_empty());
        }
    });
}

/// A store that reports success and keeps nothing: sealing and the commit check the object, and the run fails.
#[test]
fn a_store_that_lies_never_gets_a_point_committed() {
    runtime().block_on(async {
        for prefix in ["packs/", "placements/", "points/"] {
            let world = World::new(LOCKED).await;
            world.content("data", noise(5 << 20, 5));
            let script: Script = Arc::new(move |_, operation, key| {
                (operation == Operation::Create && key.starts_with(prefix)).then_some(Fault::Lie)
            });
            let status = world.back_up(&["data"], script).await.unwrap_err();
            assert!(status.message().contains("is not in the store"), "{status}");
            assert_eq!(world.points().await, 0, "{prefix}");
        }
    });
}

/// Anybody with write access to the bucket can take the root's key before the run ends. This is distinguished from a
/// run that another leader has ended.
#[test]
fn a_root_key_that_is_taken_by_rubbish_is_reported() {
    runtime().block_on(async {
        let memory = Arc::new(Memory::new());
        let world = World::over(memory.clone(), memory.clone(), LOCKED).await;
        world.content("data", noise(5 << 20, 5));
        let plant = memory.clone();
        let script: Script = Arc::new(move |_, operation, key| {
            if operation == Operation::Create && key.starts_with("points/") {
                plant.overwrite(&Key::new(key), "rubbish", None);
            }
            None
        });
        let status = world.back_up(&["data"], script).await.unwrap_err();
        assert!(status.message().contains("taken by what is no restore point (rubbish)"), "{status}");
        assert_eq!(world.points().await, 0);
        // Ids have a resolution of a second. Of two points of one second, the one that can't be read might be the newer
        // one, and a restore must not guess.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        world.back_up(&["data"], sound()).await.unwrap();
        world.restore(&["data"], sound()).await.unwrap();
    });
}

/// Damaged bytes are never written to a target.
#[test]
fn flipped_bits_are_never_written_to_a_target() {
    runtime().block_on(async {
        let world = World::new(LockPolicy::NONE).await;
        world.content("data", noise(5 << 20, 6));
        world.back_up(&["data"], sound()).await.unwrap();
        let script: Script = Arc::new(|_, operation, key| {
            (operation == Operation::Get && key.starts_with("packs/")).then_some(Fault::Flip)
        });
        let status = world.restore(&["data"], script).await.unwrap_err();
        assert_eq!(status.code(), Code::DataLoss, "{status}");
        assert!(!world.target("data").exists());
    });
}

#[test]
fn a_wrong_clock_is_an_error_before_it_is_a_loss() {
    runtime().block_on(async {
        let memory = Arc::new(Memory::new());
        let world = World::over(memory.clone(), memory.clone(), LOCKED).await;
        world.content("data", noise(100_000, 7));
        memory.set_clock(Moment::now().plus(Duration::from_secs(3600)));
        let status = world.back_up(&["data"], sound()).await.unwrap_err();
        assert!(status.message().contains("clock"), "{status}");
        assert_eq!(world.points().await, 0);
    });
}

/// A reused pack whose lock is short is extended before the commit, and at most once per quantum.
#[test]
fn locks_of_reused_packs_are_extended_before_the_commit() {
    runtime().block_on(async {
        let world = World::new(LOCKED).await;
        world.content("data", noise(5 << 20, 8));
        let first = world.back_up(&["data"], sound()).await.unwrap();
        assert_eq!(first.locks_extended, 0);
        let again = world.back_up(&["data"], sound()).await.unwrap();
        assert!(again.packs_reused > 0);
        assert!(world.verify().await.findings.is_empty());
        // The commit stops if an extension is refused, or if the store only pretends to make it.
        let refused = Arc::new(AtomicBool::new(false));
        let seen = refused.clone();
        let script: Script = Arc::new(move |_, operation, _| {
            (operation == Operation::ExtendLock).then(|| {
                seen.store(true, Ordering::SeqCst);
                Fault::Before(Trouble::Denied)
            })
        });
        let result = world.back_up(&["data"], script).await;
        assert_eq!(result.is_err(), refused.load(Ordering::SeqCst));
        assert!(world.verify().await.findings.is_empty());
    });
}

/// Two volumes with the same content in one run are stored once.
#[test]
fn equal_volumes_are_stored_once() {
    runtime().block_on(async {
        let world = World::new(LockPolicy::NONE).await;
        let content = noise(40 << 20, 9);
        world.content("a", content.clone());
        world.content("b", content.clone());
        let done = world.back_up(&["a", "b"], sound()).await.unwrap();
        assert!(done.stored_bytes < 42 << 20, "{}", done.stored_bytes);
        world.restore(&["a", "b"], sound()).await.unwrap();
        for name in ["a", "b"] {
            assert!(std::fs::read(world.target(name)).unwrap() == content);
        }
    });
}

/// Volumes of one run share packs: when one is finished long before the other, the other's packs must not be lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_volume_beside_a_large_one() {
    let world = World::new(LockPolicy::NONE).await;
    for round in 0..4u64 {
        world.content("small", noise(40_000, round));
        world.content("large", noise(20 << 20, 100 + round));
        let done = world.back_up(&["small", "large"], sound()).await.unwrap();
        assert_eq!(done.volumes.len(), 2);
    }
    assert!(world.verify().await.findings.is_empty());
}

/// A hash of a seed and a number: with the same seed, the same call has the same fault.
fn dice(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(n.wrapping_mul(0xbf58_476d_1ce4_e5b9));
    z = (z ^ (z >> 30)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A seed decides on faults at any call, transient or not. A backup is whole or not listed, a restore gives the right
/// bytes or none, and once the store works again everything succeeds. `MILKRUN_TEST_SEED` runs one seed.
#[test]
fn whatever_a_store_does_a_point_is_whole_or_not_listed() {
    let seeds = match std::env::var("MILKRUN_TEST_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..40).collect(),
    };
    let (mut backups, mut restores) = ([0, 0], [0, 0]);
    for seed in seeds {
        runtime().block_on(async {
            let world = World::new(LOCKED).await;
            let content = |round: u64| [noise(3 << 20, round), vec![0; 1 << 20], noise(2 << 20, seed)].concat();
            world.content("data", content(0));
            world.back_up(&["data"], sound()).await.unwrap();
            // One of so many calls fails: from nearly none to every second one.
            let one_in = 2 + dice(seed, 1) % 40;
            let script: Script = Arc::new(move |n, operation, _| {
                let roll = dice(seed, 1000 + n);
                if !roll.is_multiple_of(one_in) {
                    return None;
                }
                let faults = [
                    Fault::Before(Trouble::Unreachable),
                    Fault::Before(Trouble::Busy),
                    Fault::Before(Trouble::Denied),
                    Fault::Before(Trouble::Full),
                    Fault::After(Trouble::Unreachable),
                    Fault::After(Trouble::Busy),
                    Fault::Lie,
                    Fault::Flip,
                    Fault::Truncate,
                ];
                let fault = faults[usize::try_from((roll >> 32) % faults.len() as u64).unwrap()];
                // A fault that makes no sense for a call is left out.
                let reads = operation == Operation::Get;
                let fits = match fault {
                    Fault::Flip | Fault::Truncate => reads,
                    Fault::Lie => operation == Operation::Create,
                    _ => true,
                };
                fits.then_some(fault)
            });
            let before = world.points().await;
            world.content("data", content(1 + seed));
            let backed_up = world.back_up(&["data"], script.clone()).await;
            let after = world.points().await;
            match &backed_up {
                Ok(_) => assert_eq!(after, before + 1, "seed {seed}"),
                // If the outcome of the root's PUT is unknown, the root may exist. It is whole then, as the end of this
                // test shows.
                Err(e) => assert!(after == before || after == before + 1, "seed {seed}: {e}"),
            }
            backups[usize::from(backed_up.is_ok())] += 1;
            let wanted = if after > before { content(1 + seed) } else { content(0) };
            let restored = world.restore(&["data"], script).await;
            restores[usize::from(restored.is_ok())] += 1;
            match restored {
                Ok(_) => assert!(std::fs::read(world.target("data")).unwrap() == wanted, "seed {seed}: other bytes"),
                Err(e) => assert!(!world.target("data").exists(), "seed {seed}: {e}"),
            }
            let _ = std::fs::remove_file(world.target("data"));
            world.restore(&["data"], sound()).await.unwrap();
            assert!(std::fs::read(world.target("data")).unwrap() == wanted, "seed {seed}: other bytes");
            world.back_up(&["data"], sound()).await.unwrap();
            let findings = world.verify().await.findings;
            assert!(findings.is_empty(), "seed {seed}: {findings:?}");
        });
    }
    println!("failed and done: {backups:?} backups, {restores:?} restores");
    if std::env::var("MILKRUN_TEST_SEED").is_err() {
        let some = |n: [i32; 2]| n.iter().all(|&n| n > 3);
        assert!(some(backups) && some(restores), "nothing was put to the test: {backups:?}, {restores:?}");
    }
}
