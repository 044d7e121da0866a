//! Bytes that a trial of a storage class writes, and finds again after a backup and a restore.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// How many bytes are written.
const BYTES: u64 = 8 << 20;
const STEP: usize = 1 << 20;
/// What the bytes are made of: they can't be compressed, and are the same each time.
const SEED: &[u8] = b"milkrun's trial of a storage class";

/// Why it can't be written or read, or is not the same.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// What the system says.
    #[error("{path:?}")]
    Io {
        /// Which file or device.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Other bytes.
    #[error("{path:?} holds other bytes than were written, between {at} and {end}")]
    Differs {
        /// Which file or device.
        path: PathBuf,
        /// Where the difference is, in bytes.
        at: u64,
        /// Where that piece ends.
        end: u64,
    },
}

/// Goes through all bytes, a piece at a time.
fn each(mut what: impl FnMut(u64, &[u8]) -> Result<(), ProbeError>) -> Result<(), ProbeError> {
    let mut bytes = blake3::Hasher::new().update(SEED).finalize_xof();
    let mut piece = vec![0; STEP];
    for at in (0..BYTES).step_by(STEP) {
        bytes.fill(&mut piece);
        what(at, &piece)?;
    }
    Ok(())
}

/// Writes the bytes to a device, or to a file that is made.
///
/// # Errors
/// [`ProbeError::Io`].
pub fn write(path: &Path) -> Result<(), ProbeError> {
    let failed = |source| ProbeError::Io { path: path.to_owned(), source };
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(failed)?;
    each(|_, piece| file.write_all(piece).map_err(failed))?;
    file.sync_all().map_err(failed)
}

/// Compares.
///
/// # Errors
/// [`ProbeError`].
pub fn check(path: &Path) -> Result<(), ProbeError> {
    let failed = |source| ProbeError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut found = vec![0; STEP];
    each(|at, wanted| {
        file.read_exact(&mut found).map_err(failed)?;
        let end = at + wanted.len() as u64;
        if found == wanted { Ok(()) } else { Err(ProbeError::Differs { path: path.to_owned(), at, end }) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_found_and_a_changed_byte_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("probe");
        write(&path).unwrap();
        check(&path).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, BYTES);
        bytes[3 << 20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(check(&path), Err(ProbeError::Differs { at, .. }) if at == 3 << 20));
        bytes.truncate(100);
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(check(&path), Err(ProbeError::Io { .. })));
    }
}
