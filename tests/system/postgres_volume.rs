//! A real PostgreSQL with page checksums on ext4. Three frozen generations are backed up between runs of pgbench. Each
//! is restored to a new device, checked, started, and queried. The repository is once in a directory, and once in a
//! bucket with a compliance lock.

use std::fs;
use std::path::Path;
use std::process::Command;

use milkrun_tests::binary::Milkrun;
use milkrun_tests::device::{Loop, Mount, must};
use milkrun_tests::postgres::{Cluster, is_here};
use milkrun_tests::seaweed::Seaweed;
use milkrun_tests::{is_root, skip};

const ASK: &str = "select count(*), sum(abalance), (select count(*) from pgbench_history) from pgbench_accounts";
const SIZE: u64 = 768 << 20;

struct Generation {
    time: String,
    answer: String,
}

/// Frozen copies of a live volume, backed up one after the other.
fn generations(folder: &Path, m: &Milkrun) -> Vec<Generation> {
    let image = folder.join("pg.img");
    let device = Loop::fresh(folder, "pg.img", SIZE);
    must("mkfs.ext4", &["-q", &device.path()]);
    let mount = Mount::new(&device.path(), &folder.join("pg"), &[]);
    let mut cluster = Cluster::init(mount.path(), &folder.join("socket"));
    cluster.start();
    cluster.client("pgbench -i -q -s 10");
    let mut out = Vec::new();
    for i in 0..3 {
        cluster.client("pgbench -n -c 2 -t 500");
        cluster.query("checkpoint");
        let answer = cluster.query(ASK);
        // A frozen image is like a storage snapshot.
        let at = mount.path().display().to_string();
        must("fsfreeze", &["--freeze", &at]);
        let copied = Command::new("cp").arg("--sparse=always").arg(&image).arg(folder.join("snapshot.img")).status();
        must("fsfreeze", &["--unfreeze", &at]);
        assert!(copied.unwrap().success());
        let v = format!("pg={}", folder.join("snapshot.img").display());
        let made = m.run(["backup", "shop", "--volume", &v, "--json"]).ok().json();
        let new = made["volumes"][0]["new_bytes"].as_u64().unwrap();
        assert!(i == 0 || new < SIZE / 2, "generation {i} stored {new} new bytes");
        out.push(Generation { time: made["time"].as_str().unwrap().to_owned(), answer });
    }
    cluster.stop("fast");
    out
}

fn prove(folder: &Path, m: &Milkrun, generation: &Generation) {
    let device = Loop::fresh(folder, "restored.img", SIZE);
    m.run(["restore", &format!("shop@{}", generation.time), "--volume", &format!("pg={}", device.path())]).ok();
    // A frozen ext4 is consistent: freezing empties its journal.
    must("e2fsck", &["-fn", &device.path()]);
    let mount = Mount::new(&device.path(), &folder.join("restored"), &[]);
    let mut cluster = Cluster::existing(mount.path(), &folder.join("socket"));
    let _ = fs::remove_file(mount.path().join("pg/postmaster.pid"));
    // The image was taken from a running server. PostgreSQL recovers from its log; then every page is checked.
    cluster.start();
    assert_eq!(cluster.query(ASK), generation.answer);
    cluster.stop("fast");
    let checked = cluster.check_pages();
    assert!(checked.contains("Bad checksums:  0"), "{checked}");
}

fn ready(test: &str) -> bool {
    if !is_root() {
        skip(test, "loop devices need root");
        return false;
    }
    if !is_here() {
        skip(test, "PostgreSQL 15 is not here (as root, cargo xtask test installs it)");
        return false;
    }
    true
}

/// PostgreSQL's user must be able to reach its sockets and data.
fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    must("chmod", &["755", &folder.path().display().to_string()]);
    folder
}

#[test]
fn in_a_directory() {
    if !ready("PostgreSQL in a directory") {
        return;
    }
    let folder = open_folder();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    for generation in generations(folder.path(), &m) {
        prove(folder.path(), &m, &generation);
    }
    m.run(["verify", "--data"]).ok();
}

#[test]
fn in_a_bucket_with_a_compliance_lock() {
    if !ready("PostgreSQL in a locked bucket") {
        return;
    }
    let Some(server) = Seaweed::start("PostgreSQL in a locked bucket") else { return };
    crate::locked_bucket::make_bucket(&server.endpoint(), "postgres", true);
    let folder = open_folder();
    let m = server.milkrun("postgres", "pg", folder.path());
    m.run(["init", "--lock", "compliance", "--lock-for", "1h"]).ok();
    for generation in generations(folder.path(), &m) {
        prove(folder.path(), &m, &generation);
    }
    m.run(["verify", "--data"]).ok();
}
