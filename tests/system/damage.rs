//! Objects that are damaged, missing, replaced or forged: each is noticed and named with the points that it affects,
//! and no wrong byte is restored.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use milkrun_tests::binary::Milkrun;
use milkrun_tests::noise;

use crate::round_trip::volume;

struct World {
    folder: tempfile::TempDir,
    m: Milkrun,
    points: Vec<String>,
}

/// Two points of one application.
fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    let key = folder.path().join("key.pub");
    m.run(["init", "--write-public-key", &key.display().to_string()]).ok();
    let image = folder.path().join("image");
    let mut points = Vec::new();
    for seed in [1, 2] {
        fs::write(&image, [noise(3 << 20, 7), noise(1 << 20, seed)].concat()).unwrap();
        let made = m.run(["backup", "shop", "--volume", &volume(&image), "--json"]).ok().json();
        points.push(made["point"].as_str().unwrap().to_owned());
    }
    World { folder, m, points }
}

fn objects(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut open = vec![folder.join("repository").join(prefix)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else {
            out.push(path);
        }
    }
    out.sort();
    out
}

fn restored(w: &World) -> (milkrun_tests::binary::Ran, PathBuf) {
    let out = w.folder.path().join("out");
    let _ = fs::remove_file(&out);
    (w.m.run(["restore", "shop", "--volume", &volume(&out)]), out)
}

#[test]
fn every_object_that_is_flipped_cut_or_gone_is_found() {
    let w = world();
    w.m.run(["verify", "--data"]).ok();
    let key = w.folder.path().join("key.pub").display().to_string();
    w.m.run(["verify", "--public-key", &key]).ok();
    type Change = fn(&mut Vec<u8>);
    let flip: Change = |b| {
        let at = b.len() / 2;
        b[at] ^= 1;
    };
    let cut: Change = |b| b.truncate(b.len() / 2);
    let foreign: Change = |b| *b = b"something else entirely".to_vec();
    let mut tried = 0;
    for prefix in ["packs", "points", "placements"] {
        for path in objects(w.folder.path(), prefix) {
            let good = fs::read(&path).unwrap();
            for change in [Some(flip), Some(cut), Some(foreign), None] {
                match change {
                    Some(change) => {
                        let mut bad = good.clone();
                        change(&mut bad);
                        fs::write(&path, bad).unwrap();
                    }
                    None => fs::remove_file(&path).unwrap(),
                }
                let found = w.m.run(["verify", "--data", "--json"]);
                // Only its placement still refers to a root that is gone.
                if !(prefix == "points" && change.is_none()) {
                    assert_eq!(found.code, Some(3), "{path:?}: {} {}", found.out, found.err);
                    let findings = found.json()["findings"].as_array().unwrap().clone();
                    let name = path.file_name().unwrap().to_str().unwrap();
                    let point = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
                    let named = |f: &serde_json::Value| {
                        let object = f["object"].as_str().unwrap();
                        object.contains(name) || object.contains(point)
                    };
                    assert!(findings.iter().any(named), "{path:?}: {findings:?}");
                    if prefix == "packs" {
                        assert!(findings.iter().any(|f| !f["points"].as_array().unwrap().is_empty()));
                    }
                    let public = w.m.run(["verify", "--public-key", &key]);
                    assert_eq!(public.code, Some(3), "{path:?}: {} {}", public.out, public.err);
                    assert!(!public.err.contains("panicked"));
                }
                // A restore gives exactly the bytes, or it fails and leaves no target.
                let (ran, out) = restored(&w);
                assert!(!ran.err.contains("panicked"), "{}", ran.err);
                if ran.code == Some(0) {
                    let bytes = fs::read(&out).unwrap();
                    let good = [1, 2].iter().any(|&s| bytes == [noise(3 << 20, 7), noise(1 << 20, s)].concat());
                    assert!(good, "{path:?}: restored something else");
                } else {
                    assert!(!out.exists(), "{path:?}: left half a volume");
                    // Any change of a pack is reported as damage.
                    let codes: &[i32] = if prefix == "packs" { &[3] } else { &[1, 3] };
                    assert!(ran.code.is_some_and(|c| codes.contains(&c)), "{path:?}: {ran:?}");
                }
                fs::write(&path, &good).unwrap();
                tried += 1;
            }
        }
    }
    assert!(tried >= 24, "{tried}");
    w.m.run(["verify", "--data"]).ok();
}

#[test]
fn a_lost_or_damaged_index_is_rebuilt() {
    let w = world();
    let image = w.folder.path().join("image");
    for damage in [true, false] {
        for path in objects(w.folder.path(), "index") {
            if damage { fs::write(&path, b"rot").unwrap() } else { fs::remove_file(&path).unwrap() }
        }
        let _ = fs::remove_dir_all(w.folder.path().join("cache"));
        // Restores need no index.
        let (ran, _) = restored(&w);
        ran.ok();
        // A backup finds known chunks by the parent's maps.
        let moved = [noise(16 << 20, 99), fs::read(&image).unwrap()].concat();
        let other = w.folder.path().join("other");
        fs::write(&other, moved).unwrap();
        let made = w.m.run(["backup", "shop", "--volume", &volume(&other), "--json"]).ok().json();
        let new = made["volumes"][0]["new_bytes"].as_u64().unwrap();
        // Beside a changed run, a chunk may be cut differently.
        assert!(new <= 18 << 20, "{made}");
        fs::remove_dir_all(w.folder.path().join("cache")).unwrap();
    }
    w.m.run(["verify", "--data"]).ok();
}

#[test]
fn a_lost_pack_is_uploaded_again_and_later_points_are_whole() {
    let w = world();
    let packs = objects(w.folder.path(), "packs");
    for path in &packs {
        fs::remove_file(path).unwrap();
    }
    let image = w.folder.path().join("image");
    let made = w.m.run(["backup", "shop", "--volume", &volume(&image), "--json"]).ok().json();
    assert_eq!(made["volumes"][0]["new_bytes"], 4 << 20, "{made}");
    let (ran, out) = restored(&w);
    ran.ok();
    assert!(fs::read(out).unwrap() == fs::read(image).unwrap());
    w.m.run(["verify", made["point"].as_str().unwrap(), "--data"]).ok();
    w.m.run(["verify", &w.points[0]]).fails_or_finds();
}

/// Packs that rot while their names, lengths and directories stay the same: only reading their data shows it.
#[test]
fn a_rotten_pack_is_set_aside_and_its_content_stored_again() {
    rot_and_set_aside(&|bytes: &mut Vec<u8>| bytes[100] ^= 1, true);
}

/// The next backup is made right after the damage was found. The parent's packs are rotten at their beginning, or
/// elsewhere.
#[test]
fn a_rotten_parent_predicts_nothing_that_was_set_aside() {
    rot_and_set_aside(&|bytes: &mut Vec<u8>| bytes[100] ^= 1, false);
    let middle = |bytes: &mut Vec<u8>| {
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
    };
    rot_and_set_aside(&middle, false);
}

/// Cuts depend on the repository's random key: in each of the four runs of data, one chunk of at most 1 MiB may be cut
/// differently with a parent than without.
const CUT_DIFFERENTLY: u64 = 4 << 20;

fn rot_and_set_aside(rot: &dyn Fn(&mut Vec<u8>), refer_first: bool) {
    let w = world();
    // The map has several leaves, and a node above them.
    let file = fs::File::options().write(true).open(w.folder.path().join("image")).unwrap();
    for leaf in 1..4 {
        file.write_all_at(&noise(1 << 20, 10 + leaf), leaf << 26).unwrap();
    }
    w.m.run(["backup", "shop", "--volume", &volume(&w.folder.path().join("image"))]).ok();
    let image = w.folder.path().join("image");
    let backup = |parent: &str| {
        let made = w.m.run(["backup", "shop", "--volume", &volume(&image), "--parent", parent, "--json"]).ok().json();
        (made["point"].as_str().unwrap().to_owned(), made["volumes"][0]["new_bytes"].as_u64().unwrap())
    };
    for path in objects(w.folder.path(), "packs") {
        let mut bytes = fs::read(&path).unwrap();
        rot(&mut bytes);
        fs::write(&path, bytes).unwrap();
    }
    // Nothing shows yet that the content is damaged. (A chunk may be cut differently without the parent.)
    if refer_first {
        let (referring, new) = backup("none");
        assert!(new <= CUT_DIFFERENTLY, "{new}");
        w.m.run(["verify", &referring, "--data"]).fails_or_finds();
    }
    let found = w.m.run(["verify", "--data"]);
    found.fails_or_finds();
    assert!(found.out.contains("--set-aside"), "{}", found.out);

    let aside = w.m.run(["verify", "--data", "--set-aside", "--json"]);
    aside.fails_or_finds();
    assert!(aside.json()["set_aside"].as_u64() > Some(0), "{}", aside.out);
    let again = w.m.run(["verify", "--data", "--set-aside", "--json"]);
    assert_eq!(again.json()["set_aside"], 0);
    // With a parent that refers to these packs: its prediction for their content is not used any more.
    let (whole, new) = backup("auto");
    assert!(new > 6 << 20, "{new}");
    w.m.run(["verify", &whole, "--data"]).ok();
    let (ran, out) = restored(&w);
    ran.ok();
    assert!(fs::read(out).unwrap() == fs::read(&image).unwrap());
    // The content is stored once. From then on its chunks are known, wherever they lie.
    for parent in ["auto", "none"] {
        let (point, new) = backup(parent);
        assert!(new <= CUT_DIFFERENTLY, "{parent}: {new}");
        w.m.run(["verify", &point, "--data"]).ok();
    }
    // A note that was altered sets nothing aside, and does no harm.
    for note in objects(w.folder.path(), "damaged") {
        fs::write(note, b"something else").unwrap();
    }
    let anew = w.m.run(["verify", "--data", "--set-aside", "--json"]);
    assert_eq!(anew.json()["set_aside"], aside.json()["set_aside"]);
}

trait Finds {
    fn fails_or_finds(&self);
}

impl Finds for milkrun_tests::binary::Ran {
    fn fails_or_finds(&self) {
        assert_eq!(self.code, Some(3), "{} {}", self.out, self.err);
    }
}

#[test]
fn roots_that_were_replaced_are_refused() {
    let w = world();
    let all = objects(w.folder.path(), "points");
    // The points in the order in which they were made: the names of two points of one second are in any order.
    let root_of = |point: &String| all.iter().find(|r| format!("rp-{}", r.file_name().unwrap().display()) == *point);
    let roots: Vec<PathBuf> = w.points.iter().map(|p| root_of(p).unwrap().clone()).collect();
    let (first, second) = (fs::read(&roots[0]).unwrap(), fs::read(&roots[1]).unwrap());
    // Another valid root takes its place.
    fs::write(&roots[1], &first).unwrap();
    let listed = w.m.run(["points", "--json"]).ok().json();
    assert_eq!(listed["points"].as_array().unwrap().len(), 1);
    assert!(listed["refused"][0]["reason"].as_str().unwrap().contains("another point"));
    assert_eq!(w.m.run(["verify"]).code, Some(3));
    // A restore of the newest point does not use an older one instead. An older one must be named.
    let out = w.folder.path().join("instead");
    for selector in ["shop", "shop@latest", "shop@2100-01-01T00:00:00Z"] {
        w.m.run(["show", selector]).fails(3, "the newest, is refused");
        w.m.run(["restore", selector, "--volume", &volume(&out)]).fails(3, "the newest, is refused");
    }
    assert!(!out.exists());
    w.m.run(["restore", &w.points[0], "--volume", &volume(&out)]).ok();
    fs::write(&roots[1], &second).unwrap();

    // A root of another repository, signed with another key, under the name of our application.
    let strange = tempfile::tempdir().unwrap();
    let stranger = Milkrun::in_folder(strange.path());
    stranger.run(["init"]).ok();
    let image = w.folder.path().join("image");
    stranger.run(["backup", "shop", "--volume", &volume(&image)]).ok();
    let theirs = objects(strange.path(), "points");
    fs::write(&roots[1], fs::read(&theirs[0]).unwrap()).unwrap();
    w.m.run(["show", &w.points[1]]).fails(3, "refused");
    fs::write(&roots[1], &second).unwrap();
    fs::copy(&theirs[0], roots[0].parent().unwrap().join(theirs[0].file_name().unwrap())).unwrap();
    let listed = w.m.run(["points", "--json"]).ok().json();
    assert_eq!(listed["points"].as_array().unwrap().len(), 2);
    assert_eq!(listed["refused"].as_array().unwrap().len(), 1);
}

#[test]
fn a_configuration_of_a_newer_format_or_of_a_stranger_is_refused() {
    let w = world();
    let path = w.folder.path().join("repository/repository.json");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, good.replace("\"version\":2", "\"version\":9")).unwrap();
    w.m.run(["points"]).fails(1, "format version 9");
    fs::write(&path, good.replace("\"version\":2", "\"version\":1")).unwrap();
    w.m.run(["points"]).fails(1, "begin a new repository");
    fs::write(&path, good.replace("compliance", "none").replace("\"avg_pages\":64", "\"avg_pages\":128")).unwrap();
    w.m.run(["points"]).fails(3, "repository.json");
    fs::write(&path, "{").unwrap();
    w.m.run(["points"]).fails(3, "repository.json");
    fs::write(&path, &good).unwrap();
    let strange = tempfile::tempdir().unwrap();
    let stranger = Milkrun::in_folder(strange.path());
    let key = strange.path().join("key.pub").display().to_string();
    stranger.run(["init", "--write-public-key", &key]).ok();
    w.m.run(["verify", "--public-key", &key]).fails(3, "another signing key");
    let keys = objects(w.folder.path(), "keys");
    fs::write(&keys[0], "{}").unwrap();
    w.m.run(["points"]).fails(3, "none of the objects under keys/ is a key file");
    fs::remove_file(&keys[0]).unwrap();
    w.m.run(["points"]).fails(3, "no key file");
}
