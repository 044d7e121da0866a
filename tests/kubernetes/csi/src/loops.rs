//! Loop devices of volumes.

use std::path::Path;

use tonic::Status;

use crate::commands::run;

/// The loop devices that offer a file, in no order; also those of a file that was removed meanwhile. All nodes of a test share one
/// kernel, so all nodes' devices are among them.
pub(crate) fn of(file: &Path) -> Result<Vec<String>, Status> {
    let out = run(&["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"])?;
    let file = file.display().to_string();
    let offers = |line: &str| {
        let (device, offered) = line.split_once(' ')?;
        let offered = offered.trim();
        (offered.strip_suffix(" (deleted)").unwrap_or(offered) == file).then(|| device.to_owned())
    };
    Ok(out.lines().filter_map(offers).collect())
}

/// The device that offers a file on this node, if its name was kept and is still right.
pub(crate) fn attached(file: &Path, kept: Option<&String>) -> Result<Option<String>, Status> {
    let Some(kept) = kept else { return Ok(None) };
    Ok(of(file)?.into_iter().find(|device| device == kept))
}

/// Offers a file as a device of this sector size.
pub(crate) fn attach(file: &Path, sector: u32, read_only: bool) -> Result<String, Status> {
    let (file, sector) = (file.display().to_string(), sector.to_string());
    let mut line = vec!["losetup", "--find", "--show", "--sector-size", &sector];
    if read_only {
        line.push("--read-only");
    }
    line.push(&file);
    run(&line)
}

/// Offers what of a device lies behind so many bytes.
pub(crate) fn attach_behind(device: &str, offset: u64) -> Result<String, Status> {
    run(&["losetup", "--find", "--show", "--offset", &offset.to_string(), device])
}

pub(crate) fn detach(device: &str) -> Result<(), Status> {
    run(&["losetup", "--detach", device]).map(drop)
}

/// Makes a device see that its file has grown.
pub(crate) fn grow(device: &str) -> Result<(), Status> {
    run(&["losetup", "--set-capacity", device]).map(drop)
}
