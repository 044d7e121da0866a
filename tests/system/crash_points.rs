//! `kill -9` before and after every store call and every fsync, of a backup and of a restore. The points are not listed
//! here: the faulty store and the directory count them. Afterwards nothing unfinished is listed, nothing is lost, and a
//! clean run succeeds.

use std::fs;
use std::path::Path;
use std::process::Command;

use milkrun_tests::binary::{Milkrun, ran};
use milkrun_tests::{noise, skip};

use crate::round_trip::volume;

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// How many crash points a run passes; 0 if the binary was built without them.
fn count(mut command: Command, log: &Path) -> usize {
    let _ = fs::remove_file(log);
    ran(command.env("MILKRUN_CRASH_LOG", log).output()).ok();
    fs::read_to_string(log).unwrap_or_default().lines().count()
}

pub(crate) fn points(m: &Milkrun) -> Vec<String> {
    let listed = m.run(["points", "--json"]).ok().json();
    listed["points"].as_array().unwrap().iter().map(|p| p["point"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_backup_killed_anywhere_leaves_no_half_point() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init", "--lock", "compliance", "--lock-for", "1h"]).ok();
    let image = folder.path().join("image");
    fs::write(&image, noise(300_000, 1)).unwrap();
    let manifest = folder.path().join("m.yaml");
    fs::write(&manifest, "apiVersion: v1\nkind: Secret\nmetadata: {name: b}\n").unwrap();
    let v = volume(&image);
    let manifest = manifest.display().to_string();
    let args = ["backup", "shop", "--volume", &v, "--manifests", &manifest];
    m.run(args).ok();
    let first = points(&m);
    fs::write(&image, [noise(300_000, 1), noise(200_000, 2)].concat()).unwrap();

    let repository = folder.path().join("repository");
    let before = folder.path().join("before");
    copy(&repository, &before);
    let total = count(m.command(args), &folder.path().join("log"));
    if total == 0 {
        skip(
            "crash points of a backup",
            "the binary was built without the feature `faults` (cargo xtask test builds it)",
        );
        return;
    }
    assert!(total > 50, "only {total} points");
    let (mut committed, mut killed) = (0, 0);
    // Until a run succeeds: if a lock has to be extended meanwhile, there are more crash points than were counted.
    for at in 1..=total * 3 {
        copy(&before, &repository);
        // The copy is older than what this machine has recorded, so the record is removed.
        let _ = fs::remove_dir_all(folder.path().join("cache"));
        let crashed = ran(m.command(args).env("MILKRUN_CRASH_AT", at.to_string()).output());
        if crashed.code == Some(0) {
            break;
        }
        killed += 1;
        let left = points(&m);
        assert!(left.starts_with(&first) && left.len() <= 2, "point {at}: {left:?}");
        committed += left.len() - 1;
        // Each listed point is whole.
        let verified = m.run(["verify", "--data"]);
        assert_eq!(verified.code, Some(0), "point {at}: {} {}", verified.out, verified.err);
        m.run(args).ok();
        if at % 10 == 0 {
            let out = folder.path().join("out");
            m.run(["restore", "shop", "--volume", &volume(&out)]).ok();
            assert!(fs::read(&out).unwrap() == fs::read(&image).unwrap(), "point {at}");
            fs::remove_file(out).unwrap();
        }
    }
    assert!(killed * 10 > total * 9, "{killed} of {total} were killed");
    assert!(committed > 0 && committed < killed / 2, "{committed} of {killed} had committed when they were killed");
}

#[test]
fn a_restore_killed_anywhere_leaves_no_half_volume() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let image = folder.path().join("image");
    fs::write(&image, [noise(3_000_000, 1), vec![0; 1 << 20]].concat()).unwrap();
    m.run(["backup", "shop", "--volume", &volume(&image)]).ok();
    let out = folder.path().join("out");
    let v = volume(&out);
    let args = ["restore", "shop", "--volume", &v];
    let total = count(m.command(args), &folder.path().join("log"));
    if total == 0 {
        skip(
            "crash points of a restore",
            "the binary was built without the feature `faults` (cargo xtask test builds it)",
        );
        return;
    }
    for at in 1..=total {
        let _ = fs::remove_file(&out);
        let _ = ran(m.command(args).env("MILKRUN_CRASH_AT", at.to_string()).output());
        if out.exists() {
            assert!(fs::read(&out).unwrap() == fs::read(&image).unwrap(), "point {at}: half a volume under its name");
        } else {
            m.run(args).ok();
            assert!(fs::read(&out).unwrap() == fs::read(&image).unwrap(), "point {at}");
        }
    }
}
