//! The free space of an ext4 file system is left out if asked for. Nothing else is ever left out.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use milkrun_tests::binary::Milkrun;
use milkrun_tests::device::{Loop, Mount, must};
use milkrun_tests::{is_root, noise, skip};
use serde_json::Value;

use crate::round_trip::volume;

const MIB: u64 = 1 << 20;

struct Disk {
    m: Milkrun,
    folder: tempfile::TempDir,
}

impl Disk {
    /// A file of random bytes with an ext4 file system in it, which has some files. `None` if the tools are not
    /// installed.
    fn new(name: &str, size: u64, options: &[&str]) -> Option<Self> {
        for tool in ["mke2fs", "dumpe2fs", "debugfs", "e2fsck"] {
            if Command::new(tool).arg("-V").output().is_err() {
                skip(name, &format!("{tool} is not here"));
                return None;
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let m = Milkrun::in_folder(folder.path());
        m.run(["init"]).ok();
        let disk = Self { m, folder };
        fs::write(disk.image(), noise(usize::try_from(size).unwrap(), 3)).unwrap();
        let files = disk.folder.path().join("files");
        fs::create_dir(&files).unwrap();
        for n in 0..40 {
            fs::write(files.join(format!("f{n}")), noise(100_000 + n * 7919, n as u64)).unwrap();
        }
        let image = disk.image();
        let fixed = ["-q", "-F", "-t", "ext4", "-E", "nodiscard", "-d", files.to_str().unwrap()];
        must("mke2fs", &[&fixed, options, &[image.to_str().unwrap()]].concat());
        Some(disk)
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// Runs a request of debugfs on it.
    fn debugfs(&self, request: &str) {
        must("debugfs", &["-w", "-R", request, self.image().to_str().unwrap()]);
    }

    fn back_up(&self, more: &[&str]) -> Value {
        let image = volume(&self.image());
        let words = ["backup", "app", "--json", "--volume", &image];
        self.m.run(words.iter().chain(more).copied()).ok().json()["volumes"][0].clone()
    }

    fn restored(&self) -> PathBuf {
        let out = self.folder.path().join("out");
        self.m.run(["restore", "app", "--force", "--volume", &volume(&out)]).ok();
        out
    }

    /// Checks that all blocks that dumpe2fs does not list as free are equal. Returns how many bytes of free blocks
    /// differ.
    fn same_but_for_free(&self, out: &Path) -> u64 {
        let said = Command::new("dumpe2fs").arg(self.image()).output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        let field =
            |name: &str| said.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().parse::<u64>().unwrap();
        let (block, first) = (field("Block size:"), field("First block:"));
        let mut free = BTreeSet::new();
        for list in said.lines().filter_map(|l| l.strip_prefix("  Free blocks: ")) {
            for run in list.split(", ").filter(|r| !r.is_empty()) {
                let (from, to) = run.split_once('-').unwrap_or((run, run));
                free.extend(from.parse::<u64>().unwrap()..=to.parse().unwrap());
            }
        }
        assert!(!free.is_empty() && free.iter().all(|&n| n >= first));
        let (source, restored) = (fs::read(self.image()).unwrap(), fs::read(out).unwrap());
        assert_eq!(source.len(), restored.len());
        let block = usize::try_from(block).unwrap();
        let mut other = 0;
        for (n, (a, b)) in source.chunks(block).zip(restored.chunks(block)).enumerate() {
            if a != b {
                assert!(free.contains(&(n as u64)), "block {n} is not free, and differs");
                other += block as u64;
            }
        }
        must("e2fsck", &["-fn", out.to_str().unwrap()]);
        other
    }
}

fn number(made: &Value, what: &str) -> u64 {
    made[what].as_u64().unwrap()
}

fn notes(made: &Value) -> String {
    made["notes"].to_string()
}

fn left_out(name: &str, size: u64, options: &[&str]) {
    let Some(disk) = Disk::new(name, size, options) else { return };
    let said = Command::new("dumpe2fs").arg(disk.image()).output().unwrap().stdout;
    assert!(String::from_utf8(said).unwrap().contains("BLOCK_UNINIT"), "{name}: no group without a bitmap");
    let all = disk.back_up(&[]);
    assert!(number(&all, "read_bytes") > size * 3 / 4 && !notes(&all).contains("free"), "{all}");
    let made = disk.back_up(&["--skip-free"]);
    assert!(notes(&made).contains("free space was left out: "), "{made}");
    // There are eight MiB of files, a journal and inode tables.
    assert!(number(&made, "read_bytes") < size / 2, "{made}");
    assert_eq!(number(&made, "new_bytes"), 0, "zeros are new to nobody: {made}");
    let out = disk.restored();
    assert!(disk.same_but_for_free(&out) > size / 2);
    // Some files are removed and others written, also where space was free before.
    for n in 0..10 {
        disk.debugfs(&format!("rm f{n}"));
    }
    let more = disk.folder.path().join("more");
    fs::write(&more, noise(3 << 20, 99)).unwrap();
    disk.debugfs(&format!("write {} more", more.display()));
    disk.back_up(&["--skip-free"]);
    disk.same_but_for_free(&disk.restored());
    disk.m.run(["verify", "--data"]).ok();
    // Without `--skip-free`, everything is read again.
    disk.back_up(&[]);
    assert!(fs::read(disk.restored()).unwrap() == fs::read(disk.image()).unwrap());
}

#[test]
fn free_space_of_ext4() {
    left_out("free space of ext4", 300 * MIB, &[]);
}

#[test]
fn free_space_of_ext4_with_small_blocks_and_odd_sizes() {
    // The last group is shorter than the others, and the volume is longer than its file system.
    left_out("free space of ext4, 1 KiB", 101 * MIB + 4096, &["-b", "1024", "-O", "^flex_bg", "-N", "2000"]);
    left_out("free space of ext4, 32 bits", 200 * MIB, &["-b", "4096", "-O", "^64bit,^resize_inode", "-g", "8192"]);
    left_out("free space of ext4, sparse_super2", 200 * MIB, &["-O", "sparse_super2,^resize_inode", "-g", "4096"]);
}

#[test]
fn in_any_doubt_everything_is_read() {
    let read_in_full = |disk: &Disk, why: &str| {
        let made = disk.back_up(&["--skip-free", "--parent", "none"]);
        assert!(notes(&made).contains(why), "{made}");
        // Both hardly read the holes of the file, and both leave out zeros.
        let plain = disk.back_up(&["--parent", "none"]);
        assert_eq!(number(&made, "hole_bytes"), number(&plain, "hole_bytes"), "{made}");
        assert!(number(&made, "read_bytes") > 50 * MIB, "{made}");
        assert!(fs::read(disk.restored()).unwrap() == fs::read(disk.image()).unwrap());
    };
    let new = |options: &[&str]| Disk::new("doubts about ext4", 64 * MIB, options);
    let Some(disk) = new(&[]) else { return };
    let good = fs::read(disk.image()).unwrap();
    disk.debugfs("feature needs_recovery");
    read_in_full(&disk, "its journal needs recovery");
    // One byte of each structure that has a checksum is damaged.
    let said = Command::new("dumpe2fs").arg(disk.image()).output().unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    let bitmap = said.lines().find_map(|l| l.trim().strip_prefix("Block bitmap at ")).unwrap();
    let bitmap: u64 = bitmap.split_whitespace().next().unwrap().parse().unwrap();
    let block: u64 = said.lines().find_map(|l| l.strip_prefix("Block size:")).unwrap().trim().parse().unwrap();
    let table = if block == 1024 { 2048 } else { block };
    for (at, why) in [
        (1024 + 0x200, "superblock's checksum"),
        (table + 5, "checksum of group 0's descriptor is wrong"),
        (bitmap * block + 9, "checksum of group 0's bitmap is wrong"),
    ] {
        fs::write(disk.image(), &good).unwrap();
        let file = fs::File::options().read(true).write(true).open(disk.image()).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        drop(file);
        read_in_full(&disk, why);
    }
    fs::write(disk.image(), noise(64 << 20, 1)).unwrap();
    read_in_full(&disk, "no ext4 file system");
    read_in_full(&new(&["-O", "^metadata_csum,uninit_bg"]).unwrap(), "no checksums of its metadata");
    read_in_full(&new(&["-O", "bigalloc", "-C", "16384"]).unwrap(), "clusters of several blocks");
}

#[test]
fn no_list_is_used_on_a_parent_that_left_free_space_out() {
    let Some(disk) = Disk::new("free space and lists", 64 * MIB, &[]) else { return };
    let image = volume(&disk.image());
    let since = |point: &Value| {
        let path = disk.folder.path().join("list");
        fs::write(&path, format!("since {}\nend\n", point["point"].as_str().unwrap())).unwrap();
        format!("data={}", path.display())
    };
    let back_up = |more: &[&str]| {
        let words = ["backup", "app", "--json", "--volume", &image];
        disk.m.run(words.iter().chain(more).copied()).ok().json()
    };
    let first = back_up(&["--skip-free"]);
    let list = since(&first);
    disk.m
        .run(["backup", "app", "--volume", &image, "--skip-free", "--changed-from", &list])
        .fails(2, "cannot be used with");
    // The left-out space would look like holes to the sample. A full read includes what was free.
    let second = back_up(&["--changed-from", &list]);
    assert_eq!(
        (number(&second["volumes"][0], "lists_in_a_row"), notes(&second["volumes"][0]).as_str()),
        (0, "[]"),
        "{second}"
    );
    assert!(fs::read(disk.restored()).unwrap() == fs::read(disk.image()).unwrap());
    let third = back_up(&["--changed-from", &since(&second)]);
    assert_eq!(number(&third["volumes"][0], "lists_in_a_row"), 1, "{third}");
    assert!(fs::read(disk.restored()).unwrap() == fs::read(disk.image()).unwrap());
}

#[test]
fn a_frozen_file_system_is_clean_and_a_mounted_one_is_not() {
    if !is_root() {
        return skip("free space of a frozen ext4", "loop devices need root");
    }
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let device = Loop::fresh(folder.path(), "source.img", 200 * MIB);
    fs::write(device.path(), noise(200 << 20, 5)).unwrap();
    must("mkfs.ext4", &["-q", "-E", "nodiscard", &device.path()]);
    let mount = Mount::new(&device.path(), &folder.path().join("mnt"), &[]);
    for n in 0..20 {
        fs::write(mount.path().join(format!("f{n}")), noise(300_000, n)).unwrap();
    }
    let v = format!("data={}", device.path());
    let back_up = || m.run(["backup", "app", "--json", "--skip-free", "--allow-mounted", "--volume", &v]).ok().json();
    let live = back_up()["volumes"][0].clone();
    assert!(notes(&live).contains("its journal needs recovery"), "{live}");
    let at = mount.path().display().to_string();
    must("fsfreeze", &["--freeze", &at]);
    let frozen = back_up()["volumes"][0].clone();
    must("fsfreeze", &["--unfreeze", &at]);
    assert!(notes(&frozen).contains("free space was left out: "), "{frozen}");
    assert!(number(&frozen, "hole_bytes") > 100 * MIB, "{frozen}");
    drop(mount);
    let out = Loop::fresh(folder.path(), "target.img", 200 * MIB);
    m.run(["restore", "app", "--volume", &format!("data={}", out.path())]).ok();
    must("e2fsck", &["-fn", &out.path()]);
    let back = Mount::new(&out.path(), &folder.path().join("back"), &["-o", "ro"]);
    for n in 0..20 {
        assert!(fs::read(back.path().join(format!("f{n}"))).unwrap() == noise(300_000, n));
    }
}
