//! Whether a device holds the file system that its claim says. A layer between them, like LUKS, would be backed up as it is, and
//! could be of no use on another volume.

use std::io;
use std::path::{Path, PathBuf};

use milkrun_repository::point::root::FileSystem;

use super::superblock::Ends;

/// The file systems that superblocks tell apart from everything else. ext2, ext3 and ext4 are one: a driver may call each of them
/// ext4.
const TOLD: [(&str, &str); 5] = [("ext2", "ext"), ("ext3", "ext"), ("ext4", "ext"), ("xfs", "xfs"), ("btrfs", "btrfs")];

/// Why a device is not what is expected.
#[derive(Debug, thiserror::Error)]
pub enum UnexpectedError {
    /// It holds something else.
    #[error(
        "{path:?} should hold {expected}, and holds {found}: a layer like LUKS lies between the device and the file system, \
         or the volume is another one"
    )]
    Holds {
        /// The device.
        path: PathBuf,
        /// What its claim says.
        expected: String,
        /// What its superblock says.
        found: String,
    },
    /// It can't be read.
    #[error("can't read the superblock of {path:?}")]
    Read {
        /// The device.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn family(kind: &str) -> Option<&'static str> {
    TOLD.iter().find(|(name, _)| *name == kind).map(|(_, family)| *family)
}

/// What is there instead of what is expected. A device that nobody has formatted yet holds nothing, and is right.
fn mismatch(expected: &str, found: &FileSystem, blank: bool) -> Option<String> {
    let expected = family(expected)?;
    match family(&found.kind) {
        Some(found) if found == expected => None,
        _ if blank => None,
        _ if found.kind.is_empty() => Some("nothing that is known".into()),
        _ => Some(found.kind.clone()),
    }
}

/// Checks that the device at `path`, of `len` bytes, holds `expected`. A file system that superblocks don't tell is not checked.
///
/// # Errors
/// [`UnexpectedError`].
pub fn check_file_system(path: &Path, len: u64, expected: &str) -> Result<(), UnexpectedError> {
    let ends = Ends::read(path, len).map_err(|source| UnexpectedError::Read { path: path.to_owned(), source })?;
    let blank = ends.head.iter().all(|&byte| byte == 0);
    match mismatch(expected, &ends.file_system(), blank) {
        None => Ok(()),
        Some(found) => Err(UnexpectedError::Holds { path: path.to_owned(), expected: expected.to_owned(), found }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_layer_is_found_and_a_blank_device_is_right() {
        let holds = |kind: &str| FileSystem { kind: kind.into(), label: String::new() };
        for (expected, found, blank, wrong) in [
            ("ext4", "ext4", false, None),
            ("ext4", "ext3", false, None),
            ("ext4", "xfs", false, Some("xfs")),
            ("xfs", "crypto_LUKS", false, Some("crypto_LUKS")),
            ("ext4", "", false, Some("nothing that is known")),
            ("ext4", "", true, None),
            ("zfs", "crypto_LUKS", false, None),
            ("", "xfs", false, None),
        ] {
            assert_eq!(mismatch(expected, &holds(found), blank).as_deref(), wrong, "{expected}, {found}, {blank}");
        }
    }

    #[test]
    fn a_device_is_named_with_what_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device");
        let mut bytes = vec![0; 1 << 20];
        bytes[..6].copy_from_slice(b"LUKS\xba\xbe");
        std::fs::write(&path, &bytes).unwrap();
        let why = check_file_system(&path, bytes.len() as u64, "ext4").unwrap_err().to_string();
        assert!(why.contains("should hold ext4, and holds crypto_LUKS"), "{why}");
    }
}
