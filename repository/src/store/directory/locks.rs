//! `.locks/<key>`: the lock of an object in a directory, `compliance 1763821800000`. A lock only ever grows.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::root::Root;
use super::temporary::temporary;
use super::{sync, sync_folder};
use crate::clock::Moment;
use crate::store::{Firmness, Key, Lock};

/// The folder of all locks.
pub(super) const FOLDER: &str = ".locks";

/// A lock is one short line; a longer file is not ours.
const LENGTH_MAX: u64 = 64;

fn path(root: &Root, key: &Key) -> PathBuf {
    root.path().join(FOLDER).join(key.as_str())
}

/// The lock of an object, if it has one.
///
/// # Errors
/// [`ErrorKind::InvalidData`], with the file's name, for a file that is not a lock.
pub(super) fn read(root: &Root, key: &Key) -> std::io::Result<Option<Lock>> {
    let path = path(root, key);
    let damaged = || std::io::Error::new(ErrorKind::InvalidData, format!("{path:?} is no lock of milkrun's"));
    let file = match super::open_plain(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) if matches!(e.kind(), ErrorKind::InvalidData | ErrorKind::NotADirectory) => return Err(damaged()),
        Err(e) => return Err(e),
    };
    if file.metadata()?.len() > LENGTH_MAX {
        return Err(damaged());
    }
    let text = std::io::read_to_string(file).map_err(|e| match e.kind() {
        ErrorKind::InvalidData => damaged(),
        _ => e,
    })?;
    let parsed = text.trim_end().split_once(' ').and_then(|(mode, until)| {
        let firmness = match mode {
            "governance" => Firmness::Governance,
            "compliance" => Firmness::Compliance,
            _ => return None,
        };
        Some(Lock { firmness, until: Moment::from_millis(until.parse().ok()?) })
    });
    parsed.map(Some).ok_or_else(damaged)
}

/// Sets a lock, or makes it longer and firmer. If two processes do so at once, one waits for the other. A file that is not a lock
/// is replaced.
pub(super) fn grow(root: &Root, key: &Key, wanted: Lock) -> std::io::Result<()> {
    let path = path(root, key);
    let folder = path.parent().unwrap_or(root.path());
    if let Err(e) = root.create_folders(folder).and_then(|()| as_folder(folder)) {
        // There may be a file in place of a folder of ours.
        let begin = root.path().join(FOLDER);
        let wrong = folder.ancestors().take_while(|at| at.starts_with(&begin)).find(|at| at.is_file()).ok_or(e)?;
        aside(root, wrong)?;
        root.create_folders(folder)?;
    }
    // The turn is held until this returns: no other process may act between reading the old lock and replacing it.
    let _turn = Flock::lock(File::open(folder)?, FlockArg::LockExclusive).map_err(|(_, e)| e)?;
    let old = match read(root, key) {
        Err(e) if e.kind() == ErrorKind::InvalidData => None,
        old => old?,
    };
    let lock = match old {
        Some(old) if old.until >= wanted.until && old.firmness >= wanted.firmness => return Ok(()),
        Some(old) => Lock { firmness: old.firmness.max(wanted.firmness), until: old.until.max(wanted.until) },
        None => wanted,
    };
    let mode = match lock.firmness {
        Firmness::Governance => "governance",
        Firmness::Compliance => "compliance",
    };
    let (temporary, mut file) = temporary(root)?;
    file.write_all(format!("{mode} {}\n", lock.until.millis()).as_bytes())?;
    sync(&file)?;
    if let Err(e) = fs::rename(temporary.path(), &path) {
        // There may be a folder in place of a file of ours.
        if !path.is_dir() {
            return Err(e);
        }
        aside(root, &path)?;
        fs::rename(temporary.path(), &path)?;
    }
    sync_folder(folder)
}

fn as_folder(path: &Path) -> std::io::Result<()> {
    if path.is_dir() { Ok(()) } else { Err(ErrorKind::NotADirectory.into()) }
}

/// Moves a foreign file or folder out of the place of one of ours.
fn aside(root: &Root, path: &Path) -> std::io::Result<()> {
    let (temporary, _) = temporary(root)?;
    let to = temporary.path().with_extension("aside");
    tracing::warn!(?path, ?to, "is no lock of milkrun's, and is moved out of the way");
    fs::rename(path, to)
}

/// Removes the lock of an object that is gone.
pub(super) fn forget(root: &Root, key: &Key) {
    let path: &Path = &path(root, key);
    // A lock file that stays locks nothing.
    let _ = fs::remove_file(path);
}
