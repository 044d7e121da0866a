//! Real loop devices with real file systems.

use std::fs;
use std::path::Path;
use std::process::Command;

use milkrun_tests::binary::Milkrun;
use milkrun_tests::device::{Loop, Mount, must};
use milkrun_tests::{is_root, noise, skip};

fn has(program: &str) -> bool {
    Command::new(program).arg("-V").output().is_ok()
}

fn files(at: &Path) -> Vec<(String, Vec<u8>)> {
    let mut out: Vec<(String, Vec<u8>)> = fs::read_dir(at)
        .unwrap()
        .map(|e| e.unwrap())
        .filter(|e| e.file_type().unwrap().is_file())
        .map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap()))
        .collect();
    out.sort();
    out
}

fn file_system(name: &str, check: &[&str]) {
    if !is_root() {
        return skip(name, "loop devices need root");
    }
    let mkfs = format!("mkfs.{name}");
    if !has(&mkfs) {
        return skip(name, &format!("{mkfs} is not here"));
    }
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let size = 400 << 20;
    let source = Loop::fresh(folder.path(), "source.img", size);
    let quiet: &[&str] = if name == "btrfs" { &["-q", "-f"] } else { &["-q"] };
    must(&mkfs, &[quiet, &[source.path().as_str()]].concat());
    let mount = Mount::new(&source.path(), &folder.path().join("mnt"), &[]);
    for i in 0..20_u64 {
        fs::write(mount.path().join(format!("file{i}")), noise(1 << 20, i)).unwrap();
    }
    let v = format!("data={}", source.path());
    // A device that is mounted read-write is refused, unless that is allowed; the point then says so.
    m.run(["backup", "shop", "--volume", &v]).fails(1, "mounted read-write");
    let image = format!("data={}", folder.path().join("source.img").display());
    m.run(["backup", "shop", "--volume", &image]).fails(1, "mounted read-write");
    let made = m.run(["backup", "live", "--volume", &v, "--allow-mounted", "--json"]).ok().json();
    assert!(made["volumes"][0]["notes"][0].as_str().unwrap().contains("mounted read-write"));
    let wanted = files(mount.path());
    drop(mount);

    let made = m.run(["backup", "shop", "--volume", &v, "--json"]).ok().json();
    assert_eq!(made["volumes"][0]["size_bytes"], size);
    assert!(made["volumes"][0]["hole_bytes"].as_u64().unwrap() > 100 << 20, "zeros are holes: {made}");

    // A larger device must be empty, or `--force` be passed.
    let target = Loop::fresh(folder.path(), "target.img", size + (8 << 20));
    let t = format!("data={}", target.path());
    m.run(["restore", "shop", "--volume", &t]).ok();
    m.run(["restore", "shop", "--volume", &t]).fails(1, "not empty");
    must(check[0], &[&check[1..], &[target.path().as_str()]].concat());
    let mount = Mount::new(&target.path(), &folder.path().join("back"), &["-o", "ro"]);
    assert!(files(mount.path()) == wanted, "the files differ");
    m.run(["restore", "shop", "--volume", &t]).fails(1, "mounted");
    drop(mount);
    // Written over other data: every byte is the volume's, also in holes.
    let fill = noise(8 << 20, 77);
    fs::write(target.path(), &fill).unwrap();
    m.run(["restore", "shop", "--volume", &t, "--force"]).ok();
    let (a, b) = (source.path(), target.path());
    must("cmp", &["-n", &size.to_string(), &a, &b]);

    // A device that is too small is refused before a byte is written. Other sector sizes work.
    let small = Loop::fresh(folder.path(), "small.img", size - (1 << 20));
    m.run(["restore", "shop", "--volume", &format!("data={}", small.path())]).fails(1, "at least that size");
    m.run(["verify", "--data"]).ok();
}

#[test]
fn ext4() {
    file_system("ext4", &["e2fsck", "-fn"]);
}

#[test]
fn xfs() {
    file_system("xfs", &["xfs_repair", "-n"]);
}

#[test]
fn btrfs() {
    file_system("btrfs", &["btrfs", "check", "--readonly"]);
}

#[test]
fn a_full_disk_ends_cleanly_on_both_sides() {
    if !is_root() {
        return skip("full disks", "mounting a small file system needs root");
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    fs::write(&image, noise(60 << 20, 1)).unwrap();
    let small = Mount::new("none", &folder.path().join("small"), &["-t", "tmpfs", "-o", "size=40m"]);
    let v = format!("data={}", image.display());

    let full = Milkrun::at(&format!("file://{}/repository", small.path().display()), folder.path());
    full.run(["init"]).ok();
    full.run(["backup", "shop", "--volume", &v]).fails(1, "no space left");
    assert_eq!(full.run(["points", "--json"]).ok().json()["points"].as_array().unwrap().len(), 0);
    full.run(["verify"]).ok();

    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    m.run(["backup", "shop", "--volume", &v]).ok();
    let out = small.path().join("out");
    let ran = m.run(["restore", "shop", "--volume", &format!("data={}", out.display())]);
    ran.fails(1, "out\" at byte");
    assert!(!out.exists(), "half a volume was left");
}

/// A file system or volume group on several devices: a point that has only some of them says so; a point with all of
/// them does not.
#[test]
fn a_point_says_that_it_has_only_a_part_of_a_set() {
    if !is_root() {
        return skip("sets of devices", "loop devices need root");
    }
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let pair = |name: &str| ["1", "2"].map(|n| Loop::fresh(folder.path(), &format!("{name}{n}"), 256 << 20));
    let notes = |app: &str, devices: &[&Loop]| {
        let mut args = vec!["backup".to_owned(), app.to_owned(), "--json".to_owned()];
        for (n, device) in devices.iter().enumerate() {
            args.extend(["--volume".to_owned(), format!("v{n}={}", device.path())]);
        }
        m.run(&args).ok().json()["volumes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v["notes"].to_string())
            .collect::<Vec<_>>()
    };
    let is_told = |name: &str, kind: &str, [a, b]: &[Loop; 2]| {
        let half = notes(&format!("half {name}"), &[a]);
        assert!(half[0].contains(&format!("one of a set of 2 devices: {kind}")), "{half:?}");
        assert!(half[0].contains("THIS POINT HAS 1 OF THE 2 DEVICES"), "{half:?}");
        let whole = notes(&format!("whole {name}"), &[a, b]);
        assert!(whole.iter().all(|n| n.contains("one of a set of 2") && !n.contains("THIS POINT HAS")), "{whole:?}");
    };
    if has("mkfs.btrfs") {
        let devices = pair("btrfs");
        must("mkfs.btrfs", &["-q", "-f", &devices[0].path(), &devices[1].path()]);
        is_told("btrfs", "btrfs ", &devices);
        must("mkfs.btrfs", &["-q", "-f", &devices[0].path()]);
        assert!(!notes("one btrfs", &[&devices[0]])[0].contains("one of a set"));
    } else {
        skip("a btrfs of two devices", "mkfs.btrfs is not here");
    }
    if has("vgcreate") {
        let devices = pair("lvm");
        // The volume group's name is visible on the whole machine.
        let group = format!("milkrun{}", std::process::id());
        must("vgcreate", &["--yes", &group, &devices[0].path(), &devices[1].path()]);
        is_told("lvm", &format!("LVM volume group {group} "), &devices);
    } else {
        skip("an LVM volume group of two devices", "vgcreate is not here");
    }
}
