//! Files on their way to their names.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::root::Root;
use crate::clock::entropy;

/// Their folder, below the root.
pub(super) const FOLDER: &str = ".tmp";
/// No object takes this long to be written.
const ABANDONED: Duration = Duration::from_secs(2 * 86_400);

/// A file that is removed when this is dropped.
pub(super) struct Temporary(PathBuf);

impl Temporary {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // The file was only needed to be linked. A file that a crash leaves is found under .tmp.
        let _ = fs::remove_file(&self.0);
    }
}

/// Makes an empty file.
pub(super) fn temporary(root: &Root) -> std::io::Result<(Temporary, File)> {
    let folder = root.path().join(FOLDER);
    root.create_folders(&folder)?;
    if root.sweeps() {
        sweep(&folder);
    }
    let path = folder.join(hex::encode(entropy::<12>()));
    let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
    Ok((Temporary(path), file))
}

/// Removes files that killed processes left behind. A file that can't be removed takes room but does no other harm.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|m| m.elapsed().ok());
        if age.is_some_and(|age| age > ABANDONED) {
            let path = entry.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            if let Err(e) = removed {
                tracing::debug!(?path, error = %e, "stays");
            }
        }
    }
}
