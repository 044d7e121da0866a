//! Keys that somebody deletes: the recovery key opens a repository without key files, and an application whose keys are gone gets
//! new ones, so that it is backed up again.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use milkrun_tests::binary::Milkrun;
use milkrun_tests::noise;
use milkrun_tests::process::wait_for;

use crate::round_trip::volume;

struct World {
    folder: tempfile::TempDir,
    m: Milkrun,
    key: String,
    image: PathBuf,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let m = Milkrun::in_folder(folder.path());
        let key = folder.path().join("recovery.key").display().to_string();
        let made = m.run(["init", "--write-recovery-key", &key, "--json"]).ok().json();
        assert!(made["recovery_key"].is_null(), "it is in the file alone: {made}");
        let image = folder.path().join("image");
        fs::write(&image, noise(3 << 20, 1)).unwrap();
        Self { m, key, image, folder }
    }

    fn backup(&self) -> String {
        let made = self.m.run(["backup", "shop", "--volume", &volume(&self.image), "--json"]).ok().json();
        made["point"].as_str().unwrap().to_owned()
    }

    fn delete(&self, folder: &str) {
        fs::remove_dir_all(self.folder.path().join("repository").join(folder)).unwrap();
    }

    fn restores(&self, point: &str, args: &[&str]) {
        let out = self.folder.path().join("out");
        let _ = fs::remove_file(&out);
        let target = volume(&out);
        self.m.run([&["restore", point, "--volume", &target], args].concat()).ok();
        assert!(fs::read(&out).unwrap() == fs::read(&self.image).unwrap());
    }
}

#[test]
fn the_recovery_key_opens_a_repository_without_key_files() {
    let w = World::new();
    let point = w.backup();
    w.delete("keys");
    w.m.run(["points"]).fails(3, "--recovery-key-file");
    w.restores(&point, &["--recovery-key-file", &w.key]);
    let w2 = World::new();
    w.m.run(["points", "--recovery-key-file", &w2.key]).fails(1, "another repository");
    let text = fs::read_to_string(&w.key).unwrap();
    let mistyped = w.folder.path().join("mistyped").display().to_string();
    fs::write(&mistyped, text.replacen('a', "b", 1)).unwrap();
    w.m.run(["points", "--recovery-key-file", &mistyped]).fails(2, "has a mistake");
    fs::write(&mistyped, "hunter2").unwrap();
    w.m.run(["points", "--recovery-key-file", &mistyped]).fails(2, "no recovery key");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&w.key).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // It is said, and the rest is sound.
    let found = w.m.run(["verify", "--data", "--json", "--recovery-key-file", &w.key]);
    assert_eq!(found.code, Some(3));
    let findings = found.json()["findings"].clone();
    assert!(findings.as_array().unwrap().len() == 1 && findings[0]["object"] == "keys/", "{findings}");
    w.m.run(["init", "--write-recovery-key", &w.key]).fails(2, "exists already");
}

#[test]
fn the_recovery_key_that_is_printed_is_the_one() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    let said = m.run(["init"]).ok().out;
    let key = said.lines().find_map(|l| l.strip_prefix("Recovery key: ")).unwrap();
    let file = folder.path().join("written-down");
    fs::write(&file, key.to_uppercase()).unwrap();
    m.password("forgotten").run(["points", "--recovery-key-file", &file.display().to_string()]).ok();
}

#[test]
fn an_application_whose_keys_are_gone_is_backed_up_again() {
    let w = World::new();
    let first = w.backup();
    let public = w.folder.path().join("key.pub");
    let config = fs::read_to_string(w.folder.path().join("repository/repository.json")).unwrap();
    let signing = config.split("\"signing\":\"").nth(1).unwrap()[..64].to_owned();
    fs::write(&public, signing).unwrap();
    w.m.run(["verify", "--public-key", &public.display().to_string()]).ok();
    w.delete("domains");
    let out = volume(&w.folder.path().join("out"));
    w.m.run(["restore", &first, "--volume", &out]).fails(3, "domains/");
    let proved = w.m.run(["verify", "--public-key", &public.display().to_string()]);
    assert!(proved.code == Some(3) && proved.out.contains("nothing opens the points"), "{}", proved.out);
    assert!(w.m.run(["verify", "--json"]).json()["findings"].to_string().contains("nothing opens the points"));
    // The next backup can't use what it can't open: it is a full one, and whole.
    let second = w.m.run(["backup", "shop", "--volume", &volume(&w.image), "--json"]).ok().json();
    assert_eq!(second["volumes"][0]["new_bytes"], 3 << 20, "{second}");
    w.restores(second["point"].as_str().unwrap(), &[]);
    let listed = w.m.run(["points", "--json"]).ok().json();
    assert_eq!(listed["points"].as_array().unwrap().len(), 1, "{listed}");
    assert!(listed["refused"].to_string().contains("domains/"), "{listed}");
    w.m.run(["backup", "shop", "--volume", &volume(&w.image), "--parent", &first]).fails(2, &first);
}

/// A point whose keys are nowhere would be one that nobody can open.
#[test]
fn keys_that_are_deleted_while_a_backup_uses_them_are_written_again() {
    let w = World::new();
    let mut command = w.m.command(["backup", "shop", "--stream", "dump=-", "--json"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(&noise(1 << 20, 3)).unwrap();
    let domains = w.folder.path().join("repository/domains");
    wait_for("the keys", || domains.exists().then_some(()));
    // The lease is taken after them.
    wait_for("the lease", || fs::read_dir(w.folder.path().join("repository/leases")).ok()?.next().map(drop));
    w.delete("domains");
    drop(input);
    let made = milkrun_tests::binary::ran(child.wait_with_output()).ok();
    let point = made.json()["point"].as_str().unwrap().to_owned();
    w.m.run(["verify", "--data"]).ok();
    let out = w.folder.path().join("dump");
    w.m.run(["restore", &point, "--stream", &format!("dump={}", out.display())]).ok();
    assert!(fs::read(&out).unwrap() == noise(1 << 20, 3));
}

/// What somebody put in place of a domain's keys is none; and a bucket writer can't keep an application from being backed up.
#[test]
fn keys_that_were_replaced_are_refused() {
    let w = World::new();
    let first = w.backup();
    let domains = w.folder.path().join("repository/domains");
    let of_app = fs::read_dir(&domains).unwrap().next().unwrap().unwrap().path();
    let object = of_app.join("00000000");
    let good = fs::read(&object).unwrap();
    let other = World::new();
    other.backup();
    let theirs = fs::read_dir(other.folder.path().join("repository/domains")).unwrap().next().unwrap().unwrap().path();
    let out = volume(&w.folder.path().join("out"));
    for (bad, why) in [
        (fs::read(theirs.join("00000000")).unwrap(), "signature"),
        (good[..100].to_vec(), "domains/"),
        (b"rubbish".to_vec(), "domains/"),
    ] {
        fs::write(&object, bad).unwrap();
        w.m.run(["restore", &first, "--volume", &out]).fails(3, why);
    }
    let second = w.backup();
    w.restores(&second, &[]);
    fs::write(&object, &good).unwrap();
    w.restores(&first, &[]);
    // Of two that are authentic the newer ones are used.
    let third = w.m.run(["backup", "shop", "--volume", &volume(&w.image), "--json"]).ok().json();
    assert_eq!(third["volumes"][0]["new_bytes"], 0, "{third}");
}

/// The bytes of a repository that a build of format 2 made: every later build restores them.
#[test]
fn a_repository_of_format_2_is_read() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("repositories/2");
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("repository");
    milkrun_tests::device::must(
        "cp",
        &["-r", &kept.join("repository").display().to_string(), &copy.display().to_string()],
    );
    let m = Milkrun::in_folder(folder.path());
    let listed = m.run(["points", "--json"]).ok().json();
    let points = listed["points"].as_array().unwrap();
    assert_eq!(points.len(), 2, "{listed}");
    m.run(["verify", "--data"]).ok();
    let key = kept.join("recovery.key").display().to_string();
    for (point, content) in points.iter().zip(["first.img", "second.img"]) {
        let out = folder.path().join(content);
        let id = point["point"].as_str().unwrap();
        let dump = folder.path().join(format!("{content}.dump")).display().to_string();
        m.run(["restore", id, "--volume", &volume(&out), "--stream", &format!("dump={dump}")]).ok();
        let again = volume(&folder.path().join(format!("{content}.again")));
        m.run(["restore", id, "--recovery-key-file", &key, "--volume", &again]).ok();
        let digest = milkrun_tests::device::must("sha256sum", &[&out.display().to_string()]);
        let wanted = fs::read_to_string(kept.join(format!("{content}.sha256"))).unwrap();
        assert_eq!(digest.split(' ').next(), wanted.split_whitespace().next(), "{content}");
        assert!(fs::read(&out).unwrap() == fs::read(folder.path().join(format!("{content}.again"))).unwrap());
        assert_eq!(fs::read_to_string(&dump).unwrap().lines().count(), 1000);
    }
    let shown = m.run(["show", points[1]["point"].as_str().unwrap(), "--cluster-id", "west", "--json"]).ok().json();
    assert_eq!(
        (&shown["cluster"], &shown["namespace"], &shown["class"]),
        (&"west".into(), &"prod".into(), &"daily".into())
    );
    assert_eq!(shown["manifests"].as_array().unwrap().len(), 1, "{shown}");
    // And goes on.
    let image = folder.path().join("second.img");
    let backup =
        ["backup", "shop", "--cluster-id", "west", "--namespace", "prod", "--volume", &volume(&image), "--json"];
    let third = m.run(backup).ok().json();
    assert_eq!(third["volumes"][0]["new_bytes"], 0, "{third}");
}
