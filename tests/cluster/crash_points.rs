//! `kill -9` before and after every store call of a coordinator, and of an agent, during a backup. The crash points are
//! not listed here: the processes count them. Then another process takes over: the run ends with one point, or nothing
//! of it is listed.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use milkrun_tests::cluster::{Cluster, is_over};
use milkrun_tests::process::{Process, wait_for};
use milkrun_tests::{noise, skip};

use crate::many_nodes::two_nodes;

/// Restores the copy of the repository, and removes the coordinator's cache, which may remember something newer.
fn back(c: &Cluster) {
    copy(&c.folder().join("before"), &c.folder().join("repository"));
    let _ = fs::remove_dir_all(c.folder().join("coordinator-cache"));
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

pub(crate) fn points(c: &Cluster) -> Vec<String> {
    let listed = c.repository().run(["points", "--json"]).ok().json();
    listed["points"].as_array().unwrap().iter().map(|p| p["point"].as_str().unwrap().to_owned()).collect()
}

fn order(c: &Cluster) -> Child {
    let roles = ["view", "backup", "restore", "operate"];
    c.command("root", &roles, &["backup", "shop"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// A cluster with one point, changed volumes, and a copy of its repository.
fn ready() -> Cluster {
    let c = Cluster::in_directory();
    c.repository().run(["init", "--lock", "compliance", "--lock-for", "1h"]).ok();
    two_nodes(&c);
    fs::write(c.folder().join("data.img"), noise(300_000, 1)).unwrap();
    fs::write(c.folder().join("wal.img"), noise(200_000, 2)).unwrap();
    let mut coordinator = c.coordinator();
    let agents = [c.agent("node-a"), c.agent("node-b")];
    c.wait_for_agents(&["node-a", "node-b"]);
    c.run(&["backup", "shop"]).ok();
    drop(agents);
    coordinator.signal(nix::sys::signal::Signal::SIGTERM);
    coordinator.wait();
    fs::write(c.folder().join("data.img"), noise(350_000, 3)).unwrap();
    copy(&c.folder().join("repository"), &c.folder().join("before"));
    c
}

/// Orders a backup from a coordinator that will be killed, and waits until it is, or the backup has ended. Returns
/// whether the coordinator still runs.
pub(crate) fn order_until_crash(c: &Cluster, dying: &mut Process) -> bool {
    let mut child = wait_for("somebody to order from, or its end", || {
        if !dying.runs() {
            return Some(None);
        }
        let agents = c.run(&["agents", "--json"]);
        let there = agents.code == Some(0) && agents.out.matches("\"connected\": true").count() == 2;
        there.then(|| Some(order(c)))
    });
    wait_for("the crash, or the end of the backup", || {
        let ended = child.as_mut().is_none_or(|c| c.try_wait().unwrap().is_some());
        (!dying.runs() || ended).then_some(())
    });
    if let Some(child) = &mut child {
        let _ = child.kill();
        let _ = child.wait();
    }
    dying.runs()
}

pub(crate) fn lines(path: &Path) -> usize {
    fs::read_to_string(path).unwrap_or_default().lines().count()
}

/// Checks what must be true once all processes run again: no run is open, and there is at most one more point, which is
/// whole.
pub(crate) fn all_is_well(c: &Cluster, first: &[String], what: &str, coordinator: &Process) -> usize {
    wait_for(&format!("the end of all runs ({what})"), || {
        let runs = c.run(&["runs", "--json"]);
        let document = (runs.code == Some(0)).then(|| runs.json())?;
        document["runs"].as_array()?.iter().all(is_over).then_some(())
    });
    let left = points(c);
    assert!(left.starts_with(first) && left.len() <= first.len() + 1, "{what}: {left:?}\n{}", coordinator.log());
    let verified = c.repository().run(["verify", "--data"]);
    assert_eq!(verified.code, Some(0), "{what}: {} {}", verified.out, verified.err);
    left.len() - first.len()
}

#[test]
fn a_coordinator_killed_anywhere_is_followed_by_one_that_goes_on() {
    let mut c = ready();
    let first = points(&c);
    let log = c.folder().join("points");
    let reset = back;

    c.coordinator_env = vec![("MILKRUN_CRASH_LOG".into(), log.display().to_string())];
    let agents = [c.agent("node-a"), c.agent("node-b")];
    let counted = c.coordinator();
    c.wait_for_agents(&["node-a", "node-b"]);
    let opened = lines(&log);
    c.run(&["backup", "shop"]).ok();
    let total = lines(&log);
    drop(counted);
    if total == 0 {
        skip(
            "crash points of a coordinator",
            "the binaries were built without the feature `faults` (cargo xtask test builds them)",
        );
        return;
    }
    assert!(total > opened + 40, "only {total} points, {opened} of them before the backup");
    let (mut killed, mut committed, mut gone_on) = (0, 0, 0);
    // The crash points before the backup belong to the start: the coordinator dies before it serves. Every fifth is
    // enough.
    for at in (1..opened).step_by(5).chain(opened..=total) {
        reset(&c);
        c.coordinator_env = vec![("MILKRUN_CRASH_AT".into(), at.to_string())];
        let mut dying = c.coordinator_with("dying", &[]);
        killed += usize::from(!order_until_crash(&c, &mut dying));
        drop(dying);
        c.coordinator_env.clear();
        let next = c.coordinator_with("next", &["--take-over-after", "1s"]);
        next.wait_for_log("serving");
        gone_on += usize::from(next.log().contains("goes on"));
        committed += all_is_well(&c, &first, &format!("point {at}"), &next);
        drop(next);
        fs::remove_file(c.folder().join("next.log")).unwrap();
    }
    drop(agents);
    assert!(killed * 10 > (total - opened) * 8, "{killed} of {total} were killed");
    assert!(gone_on > 5, "only {gone_on} runs went on");
    // The next coordinator finished most of the runs that had begun.
    assert!(committed * 10 > (total - opened) * 5, "only {committed} of {} were committed", total - opened);
}

#[test]
fn an_agent_killed_anywhere_is_followed_by_one_that_goes_on() {
    let mut c = ready();
    let first = points(&c);
    let log = c.folder().join("points");
    let coordinator = c.coordinator();
    let _b = c.agent("node-b");
    c.agent_env = vec![("MILKRUN_CRASH_LOG".into(), log.display().to_string())];
    let counted = c.agent("node-a");
    c.wait_for_agents(&["node-a", "node-b"]);
    c.run(&["backup", "shop"]).ok();
    let total = lines(&log);
    drop(counted);
    if total == 0 {
        skip(
            "crash points of an agent",
            "the binaries were built without the feature `faults` (cargo xtask test builds them)",
        );
        return;
    }
    let (mut points_before, mut killed) = (points(&c).len(), 0);
    assert_eq!(points_before, first.len() + 1);
    for at in 1..=total {
        // Another change each time, or nothing would be uploaded.
        fs::write(c.folder().join("data.img"), noise(350_000, 100 + at as u64)).unwrap();
        c.agent_env = vec![("MILKRUN_CRASH_AT".into(), at.to_string())];
        let mut dying = c.agent("node-a");
        c.wait_for_agents(&["node-a"]);
        let mut child = order(&c);
        wait_for("the crash, or the end of the backup", || {
            (!dying.runs() || child.try_wait().unwrap().is_some()).then_some(())
        });
        c.agent_env.clear();
        let crashed = !dying.runs();
        drop(dying);
        let _fresh = c.agent("node-a");
        let code = wait_for("the backup's end", || child.try_wait().unwrap()).code();
        assert_eq!(code, Some(0), "point {at}: {}", coordinator.log());
        killed += usize::from(crashed);
        let now = points(&c).len();
        assert_eq!(now, points_before + 1);
        points_before = now;
    }
    // Some crash points are passed only if a folder has to be made.
    assert!(killed * 10 >= total * 7, "{killed} of {total} were killed");
    c.repository().run(["verify", "--data"]).ok();
}

/// The coordinator is killed before and after each write that a restore makes to the store: the next leader goes on
/// with the restore, or it has never begun. A target gets its name only when it is whole.
#[test]
fn a_coordinator_killed_anywhere_in_a_restore_is_followed_by_one_that_goes_on() {
    let mut c = ready();
    fs::write(c.folder().join("data.img"), noise(300_000, 1)).unwrap();
    let targets = ["data", "wal"].map(|v| c.folder().join(format!("{v}.back")));
    let volumes = [("data", "node-b"), ("wal", "node-a")].map(|(v, node)| {
        let back = c.folder().join(format!("{v}.back"));
        format!("{v}={node}:{}", back.display())
    });
    let args = ["restore", "shop", "--volume", &volumes[0], "--volume", &volumes[1]];
    let came_back = |c: &Cluster, what: &str| {
        for v in ["data", "wal"] {
            let read = |name: String| fs::read(c.folder().join(name));
            assert!(read(format!("{v}.img")).unwrap() == read(format!("{v}.back")).unwrap(), "{what}: {v}");
        }
    };
    let clean = || {
        for target in &targets {
            let _ = fs::remove_file(target);
        }
    };
    let log = c.folder().join("points");
    c.coordinator_env = vec![("MILKRUN_CRASH_LOG".into(), log.display().to_string())];
    let agents = [c.agent("node-a"), c.agent("node-b")];
    let counted = c.coordinator();
    c.wait_for_agents(&["node-a", "node-b"]);
    c.run(&args).ok();
    came_back(&c, "undisturbed");
    drop(counted);
    let text = fs::read_to_string(&log).unwrap_or_default();
    let writes = |l: &&str| {
        let leader = l.contains("leases/leader/");
        (l.contains(" create ") || l.contains(" delete ")) && !leader
    };
    let chosen: Vec<&str> = text.lines().filter(writes).filter_map(|l| l.split(' ').next()).collect();
    if chosen.is_empty() {
        skip(
            "crash points of a restore's coordinator",
            "the binaries were built without the feature `faults` (cargo xtask test builds them)",
        );
        return;
    }
    let (mut killed, mut gone_on) = (0, 0);
    for at in &chosen {
        clean();
        // With the same state of the repository it makes the same calls.
        back(&c);
        c.coordinator_env = vec![("MILKRUN_CRASH_AT".into(), (*at).to_owned())];
        let mut dying = c.coordinator_with("dying", &[]);
        dying.wait_for_log("serving");
        c.wait_for_agents(&["node-a", "node-b"]);
        let mut command = c.command("root", &[], &args);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for("the crash, or the end of the restore", || {
            (!dying.runs() || child.try_wait().unwrap().is_some()).then_some(())
        });
        let crashed = !dying.runs();
        let _ = child.kill();
        let done = child.wait().unwrap().success();
        drop(dying);
        killed += usize::from(crashed);
        c.coordinator_env.clear();
        let next = c.coordinator_with("next", &["--take-over-after", "1s"]);
        next.wait_for_log("serving");
        let left = next.log().contains("goes on");
        gone_on += usize::from(left);
        let what = format!("point {at}");
        wait_for(&format!("the end of all runs ({what})"), || {
            let runs = c.run(&["runs", "--json"]);
            let document = (runs.code == Some(0)).then(|| runs.json())?;
            document["runs"].as_array()?.iter().all(is_over).then_some(())
        });
        if done || left {
            came_back(&c, &format!("{what}\n{}", next.log()));
        } else {
            // A target that has its name is whole in any case.
            for v in ["data", "wal"] {
                if let Ok(found) = fs::read(c.folder().join(format!("{v}.back"))) {
                    assert!(found == fs::read(c.folder().join(format!("{v}.img"))).unwrap(), "{what}: {v}");
                }
            }
            // A restore that was not begun does not block another one.
            c.wait_for_agents(&["node-a", "node-b"]);
            let again = c.run(&[&args[..], &["--force"]].concat());
            assert_eq!(again.code, Some(0), "{what}: {}\n{}", again.err, next.log());
            came_back(&c, &what);
        }
        let leases = fs::read_dir(c.folder().join("repository/leases")).unwrap();
        let leases: Vec<_> = leases.map(|e| e.unwrap().file_name()).filter(|n| n != "leader").collect();
        assert!(leases.is_empty(), "{what}: {leases:?}");
        drop(next);
        fs::remove_file(c.folder().join("next.log")).unwrap();
        fs::remove_file(c.folder().join("dying.log")).unwrap();
    }
    drop(agents);
    assert!(killed * 10 > chosen.len() * 7, "{killed} of {} were killed", chosen.len());
    assert!(gone_on > 3, "only {gone_on} restores went on");
}

/// Regions that a journal calls unchanged are taken from the parent. If the parent is gone when another leader reads
/// the journal, the run fails: nothing replaces what can't be read.
#[test]
fn a_parent_that_is_lost_before_a_take_over_never_becomes_holes() {
    let mut c = ready();
    let first = points(&c);
    let log = c.folder().join("points");
    // The data volume is unchanged.
    fs::write(c.folder().join("data.img"), noise(300_000, 1)).unwrap();
    let agents = [c.agent("node-a"), c.agent("node-b")];
    c.coordinator_env = vec![("MILKRUN_CRASH_LOG".into(), log.display().to_string())];
    let counted = c.coordinator();
    c.wait_for_agents(&["node-a", "node-b"]);
    c.run(&["backup", "shop"]).ok();
    drop(counted);
    let text = fs::read_to_string(&log).unwrap_or_default();
    let last = text.lines().rfind(|l| l.contains(" after create journal/"));
    let Some(at) = last.and_then(|l| l.split(' ').next()) else {
        skip(
            "a lost parent at a take-over",
            "the binaries were built without the feature `faults` (cargo xtask test builds them)",
        );
        return;
    };
    back(&c);
    c.coordinator_env = vec![("MILKRUN_CRASH_AT".into(), at.into())];
    let mut dying = c.coordinator_with("dying", &[]);
    dying.wait_for_log("serving");
    c.wait_for_agents(&["node-a", "node-b"]);
    let mut child = order(&c);
    wait_for("the crash", || (!dying.runs()).then_some(()));
    let _ = child.kill();
    let _ = child.wait();
    drop(dying);
    // All packs of the parent are removed.
    let packs = c.folder().join("before/packs");
    for folder in fs::read_dir(&packs).unwrap().flatten() {
        for pack in fs::read_dir(folder.path()).unwrap().flatten() {
            let name = pack.path().strip_prefix(c.folder().join("before")).unwrap().to_owned();
            fs::remove_file(c.folder().join("repository").join(name)).unwrap();
        }
    }
    c.coordinator_env.clear();
    let next = c.coordinator_with("next", &["--take-over-after", "1s"]);
    next.wait_for_log("goes on");
    let ended = wait_for("the run's end", || {
        let runs = c.run(&["runs", "--json"]);
        let document = (runs.code == Some(0)).then(|| runs.json())?;
        document["runs"].as_array()?.iter().find(|r| is_over(r)).cloned()
    });
    assert_eq!(ended["state"], "failed", "{ended}\n{}", next.log());
    assert!(ended["reason"].as_str().unwrap().contains("unchanged"), "for another reason: {ended}");
    assert_eq!(points(&c), first, "{}", next.log());
    // A new backup succeeds.
    c.run(&["backup", "shop", "--parent", "none"]).ok();
    let back = c.folder().join("back");
    c.repository().run(["restore", "shop", "--volume", &format!("data={}", back.display())]).ok();
    assert!(fs::read(c.folder().join("data.img")).unwrap() == fs::read(back).unwrap());
    drop(agents);
}
