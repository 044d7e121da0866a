//! Who uses a device: mounts, and loop devices whose backing file is mounted.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A mount of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub at: String,
    /// Whether it can be written to.
    pub writable: bool,
}

/// Mounts of the device at `path`; for a regular file, of the loop devices that it backs.
///
/// # Errors
/// What the system says.
pub fn mounts_of(path: &Path) -> io::Result<Vec<Mount>> {
    let meta = fs::metadata(path)?;
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    let mut devices = Vec::new();
    if meta.file_type().is_block_device() {
        devices.push(meta.rdev());
        on_top(Path::new("/sys/dev/block"), meta.rdev(), &mut devices);
    } else {
        let real = fs::canonicalize(path)?;
        for (device, backing) in loops() {
            if backing == real {
                devices.push(device);
            }
        }
    }
    Ok(parse(&mountinfo, &devices))
}

/// What lies on a device: its partitions, and whatever holds it or them (device mapper, RAID).
fn on_top(sys: &Path, device: u64, out: &mut Vec<u64>) {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let node = sys.join(format!("{major}:{minor}"));
    let partitions =
        fs::read_dir(&node).into_iter().flatten().flatten().filter(|e| e.path().join("partition").exists());
    let holders = fs::read_dir(node.join("holders")).into_iter().flatten().flatten();
    for entry in partitions.chain(holders) {
        let Ok(text) = fs::read_to_string(entry.path().join("dev")) else { continue };
        let Some((major, minor)) = text.trim().split_once(':') else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        let found = nix::sys::stat::makedev(major, minor);
        if !out.contains(&found) {
            out.push(found);
            on_top(sys, found, out);
        }
    }
}

fn loops() -> Vec<(u64, PathBuf)> {
    let Ok(entries) = fs::read_dir("/sys/block") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|e| {
            let backing = fs::read_to_string(e.path().join("loop/backing_file")).ok()?;
            let device = fs::read_to_string(e.path().join("dev")).ok()?;
            let (major, minor) = device.trim().split_once(':')?;
            let device = nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?);
            Some((device, PathBuf::from(backing.trim_end())))
        })
        .collect()
}

/// proc(5): fields are id, parent, major:minor, root, mount point, mount options, optional fields, "-", type, source,
/// super options. A read-only mount of a writable super block can't change it, so both must say "rw".
fn parse(mountinfo: &str, devices: &[u64]) -> Vec<Mount> {
    let mut out = Vec::new();
    for line in mountinfo.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let Some(device) = fields.get(2).and_then(|d| d.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (device.0.parse(), device.1.parse()) else { continue };
        // btrfs reports an anonymous device; its source names the real one.
        let source = fields.iter().position(|f| *f == "-").and_then(|i| fields.get(i + 2));
        let by_source = source.and_then(|s| fs::metadata(s).ok()).filter(|m| m.file_type().is_block_device());
        let device = nix::sys::stat::makedev(major, minor);
        if !devices.contains(&device) && !by_source.is_some_and(|m| devices.contains(&m.rdev())) {
            continue;
        }
        let has_rw = |options: Option<&&str>| options.is_some_and(|o| o.split(',').any(|o| o == "rw"));
        let writable = has_rw(fields.get(5)) && has_rw(fields.last());
        out.push(Mount { at: fields.get(4).copied().unwrap_or("?").replace("\\040", " "), writable });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_partitions_and_what_holds_them() {
        let sys = tempfile::tempdir().unwrap();
        let part = sys.path().join("8:0/sda1");
        fs::create_dir_all(&part).unwrap();
        fs::write(part.join("partition"), "1").unwrap();
        fs::write(part.join("dev"), "8:1\n").unwrap();
        let holder = sys.path().join("8:1/holders/dm-0");
        fs::create_dir_all(&holder).unwrap();
        fs::write(holder.join("dev"), "253:0\n").unwrap();
        let mut found = Vec::new();
        on_top(sys.path(), nix::sys::stat::makedev(8, 0), &mut found);
        assert_eq!(found, [nix::sys::stat::makedev(8, 1), nix::sys::stat::makedev(253, 0)]);
    }

    #[test]
    fn tells_read_only_mounts_from_writable_ones() {
        let text = "36 35 7:0 / /mnt/a\\040b rw,noatime master:1 - ext4 /dev/none rw,errors=continue\n\
                    37 35 7:1 / /mnt/c ro - ext4 /dev/none rw\n\
                    38 35 7:2 / /mnt/d rw - ext4 /dev/none ro\n";
        let device = |minor| nix::sys::stat::makedev(7, minor);
        assert_eq!(parse(text, &[device(0)]), [Mount { at: "/mnt/a b".into(), writable: true }]);
        assert_eq!(parse(text, &[device(1), device(2)]).iter().filter(|m| m.writable).count(), 0);
        assert!(parse(text, &[device(9)]).is_empty());
    }
}
