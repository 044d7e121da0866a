//! File systems of volumes: made, mounted, grown.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tonic::Status;

use crate::commands::run;

/// What a volume holds, as `blkid` names it.
fn found(device: &str) -> Option<String> {
    // It fails if there is nothing.
    run(&["blkid", "--probe", "--match-tag", "TYPE", "--output", "value", device]).ok().filter(|t| !t.is_empty())
}

/// Mounts a device, and makes a file system on it if there is nothing at all. Another file system is never overwritten.
pub(crate) fn format_and_mount(
    device: &str,
    wanted: &str,
    place: &Path,
    flags: &[String],
    read_only: bool,
) -> Result<(), Status> {
    match found(device) {
        Some(kind) if kind == wanted && kind == "ext4" && !read_only => grow_unmounted(device)?,
        Some(kind) if kind == wanted => {}
        Some(kind) => return Err(Status::internal(format!("the volume holds {kind}, and not {wanted}"))),
        None if read_only => return Err(Status::internal("the volume holds no file system, and is read-only")),
        None if wanted == "xfs" => run(&["mkfs.xfs", "-q", device]).map(drop)?,
        None => run(&[&format!("mkfs.{wanted}"), "-q", device]).map(drop)?,
    }
    fs::create_dir_all(place).map_err(|e| Status::internal(format!("{}: {e}", place.display())))?;
    let mut options: Vec<String> = flags.to_vec();
    if wanted == "xfs" {
        // A clone has its original's UUID, and both may be mounted here.
        options.push("nouuid".into());
    }
    if read_only {
        options.push("ro".into());
    }
    let options = options.join(",");
    let mut line = vec!["mount", "-t", wanted];
    if !options.is_empty() {
        line.extend(["-o", &options]);
    }
    let place = place.display().to_string();
    line.extend([device, &place]);
    run(&line).map(drop)
}

/// Makes an ext4 as large as its device before it is mounted, as many drivers do: growing a mounted one needs a right
/// (`CAP_SYS_RESOURCE`) that root does not have everywhere.
fn grow_unmounted(device: &str) -> Result<(), Status> {
    // It replays the journal; status 1 says that it did.
    let checked = Command::new("e2fsck").args(["-fp", device]).stdin(Stdio::null()).output();
    let checked = checked.map_err(|e| Status::internal(format!("e2fsck: {e}")))?;
    if !matches!(checked.status.code(), Some(0 | 1)) {
        return Err(Status::internal(format!("e2fsck {device}: {}", String::from_utf8_lossy(&checked.stdout).trim())));
    }
    run(&["resize2fs", device]).map(drop)
}

/// Makes a file system as large as its device.
pub(crate) fn grow(device: &str, kind: &str, place: &Path) -> Result<(), Status> {
    match kind {
        "xfs" => run(&["xfs_growfs", &place.display().to_string()]).map(drop),
        _ => run(&["resize2fs", device]).map(drop),
    }
}

/// Shows a folder or a device at another place.
pub(crate) fn bind(source: &Path, place: &Path, read_only: bool) -> Result<(), Status> {
    let failed = |e: nix::Error| Status::internal(format!("{}: {e}", place.display()));
    mount(Some(source), place, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(failed)?;
    if read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, place, None::<&str>, flags, None::<&str>).map_err(failed)?;
    }
    Ok(())
}

/// Whether something is mounted at a place.
pub(crate) fn is_mounted(place: &Path) -> Result<bool, Status> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| Status::internal(e.to_string()))?;
    let place = place.display().to_string();
    Ok(mounts.lines().any(|line| line.split(' ').nth(4) == Some(place.as_str())))
}

/// Unmounts a place, if anything is mounted there.
pub(crate) fn unmount(place: &Path) -> Result<(), Status> {
    while is_mounted(place)? {
        umount2(place, MntFlags::empty()).map_err(|e| Status::internal(format!("{}: {e}", place.display())))?;
    }
    Ok(())
}
