//! A layer between a volume's device and its file system, as drivers have one that encrypt. This one writes how LUKS begins, and
//! offers what lies behind: the kernels of test machines need not have dm-crypt.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use tonic::Status;

use crate::loops;

/// How LUKS begins ("LUKS2 On-Disk Format Specification", 2.1).
const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
/// Where the file system begins.
const OFFSET: u64 = 1 << 20;

fn failed(device: &str) -> impl Fn(std::io::Error) -> Status + '_ {
    move |e| Status::internal(format!("{device}: {e}"))
}

/// The device of the file system of a volume: what lies behind its layer, if it has one. `new`: a blank volume gets one.
pub(crate) fn open(device: &str, new: bool) -> Result<String, Status> {
    let mut head = [0; MAGIC.len()];
    File::open(device).and_then(|file| file.read_exact_at(&mut head, 0)).map_err(failed(device))?;
    if new && head == [0; MAGIC.len()] {
        let file = OpenOptions::new().write(true).open(device).map_err(failed(device))?;
        file.write_all_at(MAGIC, 0).and_then(|()| file.sync_all()).map_err(failed(device))?;
    } else if head != *MAGIC {
        return Ok(device.to_owned());
    }
    match loops::of(Path::new(device))?.into_iter().next() {
        Some(open) => Ok(open),
        None => loops::attach_behind(device, OFFSET),
    }
}

/// Closes the layer, if there is one.
pub(crate) fn close(device: &str) -> Result<(), Status> {
    loops::of(Path::new(device))?.iter().try_for_each(|open| loops::detach(open))
}
