//! What is checked before a target is written: it is not in use, it is empty, it is what was meant.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use milkrun_repository::chunk::is_zero;

use super::TargetError;
use crate::device::{partial, usage};

/// Bytes at the start and at the end of a device that are read to check that it is empty: file systems, partition
/// tables and volume managers all keep something there.
const CHECKED_BYTES: u64 = 4 << 20;

/// Refuses a device or file that is in use. With `force`, a mount that this process sees is accepted; any other use is
/// not.
pub(super) fn check_use(path: &Path, force: bool) -> Result<(), TargetError> {
    let uses = usage::uses_of(path).map_err(|source| TargetError::Open { path: path.to_owned(), source })?;
    match uses.into_iter().find(|u| !u.mounted || !force) {
        None => Ok(()),
        Some(u) if u.mounted => Err(TargetError::Mounted { path: path.to_owned(), by: u.by }),
        Some(u) => Err(TargetError::InUse { path: path.to_owned(), by: u.by }),
    }
}

/// Refuses a device that has something at its start or its end.
pub(super) fn check_empty(path: &Path, file: &File, capacity: u64) -> Result<(), TargetError> {
    let mut bytes = vec![0; usize::try_from(CHECKED_BYTES.min(capacity)).unwrap_or(0)];
    for at in [0, capacity - bytes.len() as u64] {
        file.read_exact_at(&mut bytes, at).map_err(|source| TargetError::Open { path: path.to_owned(), source })?;
        if !is_zero(&bytes) {
            return Err(TargetError::NotEmpty { path: path.to_owned() });
        }
    }
    Ok(())
}

/// Refuses to make a file where a device was probably meant, or through a dangling link.
pub(super) fn check_new(path: &Path) -> Result<(), TargetError> {
    let missing = |why| Err(TargetError::Missing { path: path.to_owned(), why });
    if fs::symlink_metadata(path).is_ok() {
        return missing("it is a link to something that isn't there");
    }
    let folder = partial::folder(path);
    let folder = fs::canonicalize(folder).map_err(|source| TargetError::Open { path: path.to_owned(), source })?;
    if folder.starts_with("/dev") && !folder.starts_with("/dev/shm") {
        return missing("there is no such device, and a file there would lie in memory");
    }
    Ok(())
}

/// A target whose lock is held is being restored to by another process.
pub(super) fn busy_or(path: &Path, source: io::Error) -> TargetError {
    match source.kind() {
        ErrorKind::WouldBlock => TargetError::Busy { path: path.to_owned() },
        _ => TargetError::Open { path: path.to_owned(), source },
    }
}
