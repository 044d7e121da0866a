//! A directory repository that disappears in the middle of a backup: it is moved, unmounted, or replaced by another
//! one. Nothing is made under the old name, and no success is reported.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use milkrun_tests::binary::{Milkrun, Ran, ran};
use milkrun_tests::device::must;
use milkrun_tests::noise;

/// More than a pack, so that some are stored before the repository goes away.
const HALF: usize = 80 << 20;

fn packs(repository: &Path) -> usize {
    let folders = fs::read_dir(repository.join("packs")).into_iter().flatten().flatten();
    folders.map(|f| fs::read_dir(f.path()).map_or(0, Iterator::count)).sum()
}

/// Backs up a stream, and calls `vanish` once a pack of it is stored.
fn back_up_while(m: &Milkrun, repository: &Path, vanish: impl FnOnce()) -> Ran {
    let before = packs(repository);
    let mut command = m.command(["backup", "shop", "--stream", "d=-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child: Child = command.spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(&noise(HALF, 1)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while packs(repository) == before {
        assert!(Instant::now() < deadline, "no pack was stored");
        std::thread::sleep(Duration::from_millis(20));
    }
    vanish();
    // The backup may have ended by now.
    let _ = pipe.write_all(&noise(HALF, 2));
    drop(pipe);
    ran(child.wait_with_output())
}

fn world() -> (tempfile::TempDir, Milkrun, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let (here, moved) = (folder.path().join("repository"), folder.path().join("moved"));
    (folder, m, here, moved)
}

fn no_point_in(folder: &Path, repository: &Path) {
    let m = Milkrun::at(&format!("file://{}", repository.display()), folder);
    assert_eq!(m.run(["points", "--json"]).ok().json()["points"].as_array().unwrap().len(), 0);
}

#[test]
fn a_repository_that_is_moved_under_a_backup_is_not_made_anew() {
    let (folder, m, here, moved) = world();
    let ran = back_up_while(&m, &here, || fs::rename(&here, &moved).unwrap());
    ran.fails(4, "holds no repository any more");
    assert!(!here.exists(), "the repository's folder was made again");
    no_point_in(folder.path(), &moved);
}

#[test]
fn an_empty_mount_point_is_no_repository() {
    let (folder, m, here, moved) = world();
    let ran = back_up_while(&m, &here, || {
        fs::rename(&here, &moved).unwrap();
        fs::create_dir(&here).unwrap();
    });
    ran.fails(4, "holds no repository any more");
    let written: Vec<_> = fs::read_dir(&here).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(written.is_empty(), "written under the mount point: {written:?}");
    no_point_in(folder.path(), &moved);
}

/// A copy has the same configuration, and lacks what was stored meanwhile in the original.
#[test]
fn a_copy_in_its_place_gets_no_point() {
    let (folder, m, here, moved) = world();
    let copy = folder.path().join("copy");
    must("cp", &["-a", &here.display().to_string(), &copy.display().to_string()]);
    let ran = back_up_while(&m, &here, || {
        fs::rename(&here, &moved).unwrap();
        fs::rename(&copy, &here).unwrap();
    });
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    // The message depends on what is checked first: the repository's location, or a pack that was stored in the
    // original.
    let messages = ["not where this run began", "is not in the store although"];
    assert!(messages.iter().any(|t| ran.err.contains(t)), "{}", ran.err);
    no_point_in(folder.path(), &here);
    no_point_in(folder.path(), &moved);
}

/// While the repository is absent, no object counts as missing.
#[test]
fn verify_of_a_repository_that_went_away_finds_nothing() {
    let (folder, m, here, moved) = world();
    let image = folder.path().join("image");
    fs::write(&image, noise(1 << 20, 3)).unwrap();
    m.run(["backup", "shop", "--volume", &format!("d={}", image.display())]).ok();
    fs::create_dir(&moved).unwrap();
    for name in ["packs", "placements", "index"] {
        fs::rename(here.join(name), moved.join(name)).unwrap();
    }
    let verified = m.run(["verify"]);
    assert!(verified.code == Some(3) && verified.out.contains("placement"), "{verified:?}");
    // A folder with roots but without a configuration is a mount point with left-overs.
    fs::rename(here.join("repository.json"), moved.join("repository.json")).unwrap();
    m.run(["verify"]).fails(1, "there is no repository");
}
