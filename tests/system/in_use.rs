//! Devices that are in use without a mount that this process sees, and paths that are no valid targets.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use milkrun_tests::binary::Milkrun;
use milkrun_tests::device::{Loop, Mount, must};
use milkrun_tests::{is_root, noise, skip};

use crate::round_trip::volume;

/// Checks that a device is refused as a source and as a target. Only `--allow-mounted` allows it as a source, and the
/// point then says so.
fn in_use(m: &Milkrun, device: &str, by: &str) {
    let v = format!("data={device}");
    m.run(["backup", "used", "--volume", &v]).fails(1, by);
    let made = m.run(["backup", "used", "--volume", &v, "--allow-mounted", "--json"]).ok().json();
    assert!(made["volumes"][0]["notes"].to_string().contains(by), "{made}");
    for force in [None, Some("--force")] {
        m.run(["restore", "small", "--volume", &v].into_iter().chain(force)).fails(1, by);
        m.run(["restore", "small", "--stream", &v].into_iter().chain(force)).fails(1, by);
    }
    // Its own file system writes to it, too, so only the bytes of the volume must not be there.
    let mut start = [0; 64];
    fs::File::open(device).unwrap().read_exact(&mut start).unwrap();
    assert!(start != noise(64, 1)[..], "{device} was written to");
}

/// A mount in a namespace of its own, as in a container.
struct NamespaceMount(Child);

impl NamespaceMount {
    fn mount(device: &str, at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        let script = format!("mount {device} {at} && touch {at}/mounted && exec sleep 600", at = at.display());
        let mut child = Command::new("unshare");
        child.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        let child = child.stdout(Stdio::null()).spawn().unwrap();
        let mounts = format!("/proc/{}/mountinfo", child.id());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !fs::read_to_string(&mounts).unwrap_or_default().contains(&at.display().to_string()) {
            assert!(Instant::now() < deadline, "not mounted");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self(child)
    }
}

impl Drop for NamespaceMount {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_device_that_the_kernel_uses_is_neither_read_nor_written() {
    if !is_root() {
        return skip("devices in use elsewhere", "needs root");
    }
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let small = folder.path().join("small");
    fs::write(&small, noise(1 << 20, 1)).unwrap();
    m.run(["backup", "small", "--volume", &volume(&small)]).ok();

    let device = Loop::fresh(folder.path(), "namespace", 64 << 20);
    must("mkfs.ext4", &["-q", &device.path()]);
    let elsewhere = NamespaceMount::mount(&device.path(), &folder.path().join("elsewhere"));
    in_use(&m, &device.path(), "another namespace");
    // The image below it is in use, too.
    let image = format!("data={}", folder.path().join("namespace").display());
    m.run(["backup", "used", "--volume", &image]).fails(1, "another namespace");
    m.run(["restore", "small", "--volume", &image, "--force"]).fails(1, "another namespace");
    drop(elsewhere);
    m.run(["backup", "used", "--volume", &format!("data={}", device.path())]).ok();

    // A device below a loop device.
    let top = Loop::attach(Path::new(&device.path()));
    let elsewhere = NamespaceMount::mount(&top.path(), &folder.path().join("top"));
    in_use(&m, &device.path(), "another namespace");
    drop(elsewhere);
    drop(top);

    // An external journal.
    let journal = Loop::fresh(folder.path(), "journal", 16 << 20);
    must("mke2fs", &["-q", "-O", "journal_dev", "-b", "4096", &journal.path()]);
    must("mkfs.ext4", &["-q", "-F", "-b", "4096", "-J", &format!("device={}", journal.path()), &device.path()]);
    let mounted = Mount::new(&device.path(), &folder.path().join("journaled"), &[]);
    in_use(&m, &journal.path(), "external journal");
    drop(mounted);
}

#[test]
fn the_second_device_of_a_btrfs_is_in_use_with_the_first() {
    if !is_root() || !Path::new("/sbin/mkfs.btrfs").exists() {
        return skip("a btrfs of two devices", "needs root and btrfs-progs");
    }
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let small = folder.path().join("small");
    fs::write(&small, noise(1 << 20, 1)).unwrap();
    m.run(["backup", "small", "--volume", &volume(&small)]).ok();
    let (one, two) = (Loop::fresh(folder.path(), "one", 128 << 20), Loop::fresh(folder.path(), "two", 128 << 20));
    must("mkfs.btrfs", &["-q", "-f", "-d", "single", "-m", "raid1", &one.path(), &two.path()]);
    let mounted = Mount::new(&one.path(), &folder.path().join("btrfs"), &[]);
    in_use(&m, &two.path(), "btrfs");
    drop(mounted);
}

#[test]
fn a_device_whose_end_can_not_be_read_is_an_error() {
    if !is_root() {
        return skip("a device with odd sectors", "needs root");
    }
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let image = folder.path().join("odd");
    fs::write(&image, noise((4 << 20) + 512, 1)).unwrap();
    let words = ["--find", "--show", "--sector-size", "4096"];
    let image_text = image.display().to_string();
    let device = must("losetup", &words.into_iter().chain([image_text.as_str()]).collect::<Vec<_>>());
    // Some kernels round the size down themselves.
    let size = must("blockdev", &["--getsize64", &device]);
    let ran = m.run(["backup", "odd", "--volume", &format!("data={device}")]);
    must("losetup", &["--detach", &device]);
    if size.parse::<u64>().unwrap().is_multiple_of(4096) {
        return skip("a device with odd sectors", "this kernel makes none");
    }
    ran.fails(1, "no multiple of its sectors of 4096");
}

#[test]
fn paths_that_are_no_targets_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let image = folder.path().join("image");
    fs::write(&image, noise(1 << 20, 1)).unwrap();
    m.run(["backup", "shop", "--volume", &volume(&image)]).ok();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(folder.path().join("nowhere"), &link).unwrap();
    let dev = folder.path().join("dev");
    std::os::unix::fs::symlink("/dev", &dev).unwrap();
    for (path, why) in [
        (link.as_path(), "a link to something that isn't there"),
        (Path::new("/dev/milkrun-no-such-device"), "no such device"),
        (&dev.join("milkrun-no-such-device"), "no such device"),
    ] {
        for kind in ["--volume", "--stream"] {
            m.run(["restore", "shop", kind, &volume(path)]).fails(1, why);
            m.run(["restore", "shop", kind, &volume(path), "--force"]).fails(1, why);
        }
        assert!(!path.exists());
    }
    // A name of any length works, and only the owner may read the file.
    for len in [219, 255] {
        let out = folder.path().join("n".repeat(len));
        for kind in ["--volume", "--stream"] {
            m.run(["restore", "shop", kind, &volume(&out)]).ok();
            assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
            assert!(fs::read(&out).unwrap() == noise(1 << 20, 1));
            fs::remove_file(&out).unwrap();
        }
    }
}

/// Two restores to one name: the second is refused, and the first succeeds.
#[test]
fn a_second_restore_to_one_name_leaves_the_first_alone() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let image = folder.path().join("image");
    fs::write(&image, noise(64 << 20, 1)).unwrap();
    m.run(["backup", "shop", "--volume", &volume(&image)]).ok();
    let out = folder.path().join("out");
    // The first restore hangs before its first byte is durable.
    let mut first = m.command(["restore", "shop", "--volume", &volume(&out)]);
    first.env("MILKRUN_HANG_AT", "before fsync of the target");
    let mut first = first.spawn().unwrap();
    let partial = || {
        let names = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|n| n.contains("milkrun-partial")).collect::<Vec<_>>()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while partial().is_empty() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
    let kept = partial();
    m.run(["restore", "shop", "--volume", &volume(&out)]).fails(1, "being restored to by another process");
    assert_eq!(partial(), kept);
    first.kill().unwrap();
    first.wait().unwrap();
    // An unfinished file that nobody has locked is removed.
    m.run(["restore", "shop", "--volume", &volume(&out)]).ok();
    assert_eq!(partial(), [""; 0]);
}
