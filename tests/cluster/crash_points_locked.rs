//! Like `crash_points`, on a real S3 server with a compliance lock: nothing can be deleted there, so the left-overs of
//! one crash stay for the next.
//!
//! CI takes every eleventh crash point; `MILKRUN_TEST_EVERY=5` takes every fifth.

use std::fs;

use milkrun_tests::cluster::Cluster;
use milkrun_tests::seaweed::Seaweed;
use milkrun_tests::{noise, skip};

use crate::crash_points::{all_is_well, lines, order_until_crash, points};
use crate::many_nodes::two_nodes;
use crate::network_partitions::make_bucket;

#[test]
fn a_coordinator_killed_anywhere_over_a_locked_bucket_is_followed_by_one_that_goes_on() {
    let Some(server) = Seaweed::start("crash points over a locked bucket") else { return };
    make_bucket(&server);
    let folder = tempfile::tempdir().unwrap();
    let repository = server.milkrun("cluster", "crashes", folder.path());
    repository.run(["init", "--lock", "compliance", "--lock-for", "1h"]).ok();
    let env = server.env().map(|(k, v)| (k.to_owned(), v)).to_vec();
    let mut c = Cluster::in_bucket(repository, env, None);
    two_nodes(&c);
    fs::write(c.folder().join("data.img"), noise(350_000, 1)).unwrap();
    fs::write(c.folder().join("wal.img"), noise(200_000, 2)).unwrap();
    let agents = [c.agent("node-a"), c.agent("node-b")];

    let log = c.folder().join("points");
    // Calls for a leader's beats are not counted: their number depends on the clock.
    let pass_over = ("MILKRUN_CRASH_PASS_OVER".to_owned(), "leases/leader/".to_owned());
    c.coordinator_env = vec![pass_over.clone(), ("MILKRUN_CRASH_LOG".into(), log.display().to_string())];
    let mut counted = c.coordinator();
    c.wait_for_agents(&["node-a", "node-b"]);
    let opened = lines(&log);
    c.run(&["backup", "shop"]).ok();
    let total = lines(&log) - opened;
    counted.signal(nix::sys::signal::Signal::SIGTERM);
    counted.wait();
    if total == 0 {
        skip(
            "crash points over a locked bucket",
            "the binaries were built without the feature `faults` (cargo xtask test builds them)",
        );
        return;
    }
    let every = std::env::var("MILKRUN_TEST_EVERY").map_or(11, |n| n.parse().unwrap());
    let (mut walked, mut killed, mut gone_on, mut committed) = (0, 0, 0, 0);
    let crashes = c.folder().join("crashes");
    let mut crashed_at = String::new();
    // Each backup finds more objects than the one before and makes more calls, until one is not killed any more. (How
    // many journal entries go into one object differs, so some backups in between may not be killed either.)
    for at in (opened..opened + 2 * total).step_by(every) {
        walked += 1;
        // New content each time, or nothing would be uploaded.
        fs::write(c.folder().join("data.img"), noise(350_000, 100 + at as u64)).unwrap();
        let before = points(&c);
        c.coordinator_env = vec![
            pass_over.clone(),
            ("MILKRUN_CRASH_AT".into(), at.to_string()),
            ("MILKRUN_CRASH_LOG".into(), crashes.display().to_string()),
        ];
        let mut dying = c.coordinator_with("dying", &["--take-over-after", "1s"]);
        let alive = order_until_crash(&c, &mut dying);
        killed += usize::from(!alive);
        drop(dying);
        let calls = fs::read_to_string(&crashes).unwrap_or_default();
        crashed_at += calls.lines().last().filter(|_| !alive).unwrap_or_default();
        crashed_at += "\n";
        let _ = fs::remove_file(&crashes);
        c.coordinator_env.clear();
        let next = c.coordinator_with("next", &["--take-over-after", "1s"]);
        next.wait_for_log("serving");
        committed += all_is_well(&c, &before, &format!("point {at}"), &next);
        gone_on += usize::from(next.log().contains("goes on"));
        drop(next);
        fs::remove_file(c.folder().join("next.log")).unwrap();
        if alive && at > opened + total {
            break;
        }
    }
    println!("{walked} walked, {killed} killed, {gone_on} gone on, {committed} committed:\n{crashed_at}");
    assert!(killed * every > total * 7 / 10, "only {killed} crashes in a backup of {total} calls");
    assert!(gone_on * 3 > walked, "only {gone_on} of {walked} runs went on");
    assert!(committed * 10 > walked * 4, "only {committed} of {walked} were committed");
    // Each listed point is whole.
    c.repository().run(["verify", "--data"]).ok();
    let _coordinator = c.coordinator_with("last", &["--take-over-after", "1s"]);
    c.wait_for_agents(&["node-a", "node-b"]);
    c.run(&["backup", "shop"]).ok();
    let back = c.folder().join("data.back");
    c.repository().run(["restore", "shop", "--volume", &format!("data={}", back.display())]).ok();
    assert!(fs::read(c.folder().join("data.img")).unwrap() == fs::read(back).unwrap());
    drop(agents);
}
