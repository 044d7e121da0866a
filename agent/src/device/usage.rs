//! Finds out who uses a device or an image file: mounts, also those in other mount namespaces (each container has one),
//! and any other exclusive use by the kernel.
//!
//! Mounts of this namespace are listed in `/proc/self/mountinfo`. About all other uses the kernel says only *that* a
//! device is in use: an exclusive open (`O_EXCL`, open(2)) is refused with EBUSY. This covers a mount in another
//! namespace, a further device of a btrfs, an external journal, active swap, and a member of a RAID or of LVM. A loop
//! device on top does not block an exclusive open; it is found by its backing file.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A use of a device or file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// A description for people: "mounted at /mnt".
    pub by: String,
    /// Whether it may be written to.
    pub writable: bool,
    /// A mount that this process sees.
    pub mounted: bool,
}

/// A mount in this namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    at: String,
    writable: bool,
    /// The superblock is read-only: no other mount can write to it either.
    frozen: bool,
}

/// How often an exclusive open is tried: tools that look at devices hold them for a moment.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);

/// Who uses what is at `path`.
///
/// # Errors
/// What the system says.
pub fn uses_of(path: &Path) -> io::Result<Vec<Use>> {
    let meta = fs::metadata(path)?;
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    let block = meta.file_type().is_block_device();
    let devices = devices_of(path, &meta);
    let mut uses = Vec::new();
    let swaps = swaps();
    let swap = |device: u64| swaps.contains(&(0, device));
    if !block && swaps.contains(&(meta.dev(), meta.ino())) {
        uses.push(Use { by: "used as swap space".into(), writable: true, mounted: false });
    }
    // A use of a device on top was found, which explains why this one is in use.
    let mut explained = false;
    for (device, node) in devices.iter().rev() {
        let of = if node == path { String::new() } else { format!(" of {}", node.display()) };
        let mounts = parse(&mountinfo, &[*device]);
        let mounted = !mounts.is_empty();
        let settled = mounts.iter().all(|m| m.writable || m.frozen);
        uses.extend(mounts.into_iter().map(|m| Use {
            by: format!("mounted at {}", m.at),
            writable: m.writable,
            mounted: true,
        }));
        if swap(*device) {
            uses.push(Use { by: format!("used as swap space{of}"), writable: true, mounted: false });
            explained = true;
            continue;
        }
        if mounted && settled {
            explained = true;
            continue;
        }
        // A disk is in use because of its partitions, and these were checked already.
        if explained && !mounted && devices.len() > 1 && *device == meta.rdev() {
            continue;
        }
        match is_held(node) {
            Ok(false) => {}
            Ok(true) => {
                let by = format!(
                    "a use{of} that the kernel does not name: a mount in another namespace (a container's volume), a further \
                     device of a btrfs, an external journal, RAID or LVM"
                );
                uses.push(Use { by, writable: true, mounted: false });
                explained = true;
            }
            Err(e) if node == path => return Err(e),
            // In a container, /sys may list a device for which there is no node.
            Err(e) => tracing::debug!(?node, error = %e, "can't tell whether it is in use"),
        }
    }
    Ok(uses)
}

/// Devices with their nodes: the device itself, those that lie on it, and loop devices on top of these.
fn devices_of(path: &Path, meta: &fs::Metadata) -> Vec<(u64, PathBuf)> {
    let mut devices: Vec<(u64, PathBuf)> = Vec::new();
    let add = |device: u64, node: PathBuf, devices: &mut Vec<(u64, PathBuf)>| {
        let mut above = Vec::new();
        on_top(Path::new("/sys/dev/block"), device, &mut above);
        devices.push((device, node));
        for device in above {
            if !devices.iter().any(|(known, _)| *known == device) {
                devices.push((device, node_of(device)));
            }
        }
    };
    let mut below: Vec<(u64, u64)> = Vec::new();
    if meta.file_type().is_block_device() {
        add(meta.rdev(), path.to_owned(), &mut devices);
        below.extend(devices.iter().map(|(device, _)| (0, *device)));
    } else {
        below.push((meta.dev(), meta.ino()));
    }
    let loops = loops();
    while let Some(thing) = below.pop() {
        for l in loops.iter().filter(|l| l.backing == Some(thing)) {
            if !devices.iter().any(|(known, _)| *known == l.device) {
                let from = devices.len();
                add(l.device, l.node.clone(), &mut devices);
                below.extend(devices[from..].iter().map(|(device, _)| (0, *device)));
            }
        }
    }
    devices
}

/// The usual node of a device.
fn node_of(device: u64) -> PathBuf {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let name = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok();
    let name = name.as_deref().and_then(Path::file_name).map(PathBuf::from);
    Path::new("/dev").join(name.unwrap_or_else(|| format!("block/{major}:{minor}").into()))
}

/// Whether the kernel refuses an exclusive open.
fn is_held(node: &Path) -> io::Result<bool> {
    for tried in 1.. {
        match OpenOptions::new().read(true).custom_flags(nix::libc::O_EXCL | nix::libc::O_CLOEXEC).open(node) {
            Ok(_) => return Ok(false),
            Err(e) if e.raw_os_error() != Some(nix::libc::EBUSY) => return Err(e),
            Err(_) if tried >= TRIES => break,
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
    Ok(true)
}

/// Active swap: (0, block device), or (file system, inode).
fn swaps() -> Vec<(u64, u64)> {
    let text = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let names = text.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    let metas = names.filter_map(|name| fs::metadata(name.replace("\\040", " ")).ok());
    metas.map(|m| if m.file_type().is_block_device() { (0, m.rdev()) } else { (m.dev(), m.ino()) }).collect()
}

/// The devices that lie on a device: its partitions, and the holders of it or of these (device mapper, RAID).
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

/// A loop device.
struct Loop {
    device: u64,
    node: PathBuf,
    /// Its backing: a file by (file system, inode), or (0, block device).
    backing: Option<(u64, u64)>,
}

fn loops() -> Vec<Loop> {
    let Ok(entries) = fs::read_dir("/sys/block") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|e| {
            let backing = fs::read_to_string(e.path().join("loop/backing_file")).ok()?;
            let device = fs::read_to_string(e.path().join("dev")).ok()?;
            let (major, minor) = device.trim().split_once(':')?;
            let device = nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?);
            let backing =
                fs::metadata(backing.trim_end_matches('\n')).ok().map(|m| match m.file_type().is_block_device() {
                    true => (0, m.rdev()),
                    false => (m.dev(), m.ino()),
                });
            Some(Loop { device, node: Path::new("/dev").join(e.file_name()), backing })
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
        let frozen = !has_rw(fields.last());
        let writable = has_rw(fields.get(5)) && !frozen;
        out.push(Mount { at: fields.get(4).copied().unwrap_or("?").replace("\\040", " "), writable, frozen });
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
        assert_eq!(parse(text, &[device(0)]), [Mount { at: "/mnt/a b".into(), writable: true, frozen: false }]);
        assert_eq!(parse(text, &[device(1), device(2)]).iter().filter(|m| m.writable).count(), 0);
        assert!(parse(text, &[device(9)]).is_empty());
    }
}
