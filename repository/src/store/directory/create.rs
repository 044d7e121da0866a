//! Creates objects: each is complete and durable from the moment it has its name.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bytes::Bytes;
use nix::fcntl::{AT_FDCWD, RenameFlags};

use super::root::Root;
use super::temporary::temporary;
use super::{blocking, failure, locks, only_version, sound, sync, sync_folder};
use crate::store::throttle::Throttle;
use crate::store::{CreateError, Failure, Happened, Key, Lock, Operation, Version};

/// Creates an object. The store itself and [file grants](crate::store::grant::PutGrant::File) use it.
pub(in crate::store) async fn create(
    root: Root,
    key: Key,
    body: Bytes,
    lock: Option<Lock>,
    throttle: Throttle,
) -> Result<Version, CreateError> {
    sound(Operation::Create, &key)?;
    let mut paced = 0;
    while throttle.is_bounded() && paced < body.len() {
        let piece = throttle.piece().min(body.len() - paced);
        throttle.take(piece).await;
        paced += piece;
    }
    blocking(move || create_now(&root, &key, &body, lock)).await
}

fn create_now(at: &Root, key: &Key, body: &[u8], lock: Option<Lock>) -> Result<Version, CreateError> {
    at.check(Operation::Create, key)?;
    let not_yet = |e| failure(Operation::Create, key, Happened::No, e);
    let pinned = at.pin().map_err(not_yet)?;
    let root: &Root = &pinned;
    // The pinned folder may have come to this path only a moment ago.
    root.check(Operation::Create, key)?;
    let path = root.file(key);
    let folder = path.parent().unwrap_or(root.path());
    let (temporary, mut file) = temporary(root).map_err(not_yet)?;
    if key.is_secret() {
        file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(not_yet)?;
    }
    file.write_all(body).map_err(not_yet)?;
    sync(&file).map_err(not_yet)?;
    drop(file);
    root.create_folders(folder).map_err(not_yet)?;
    if let Some(lock) = lock {
        locks::grow(root, key, lock).map_err(not_yet)?;
    }
    match link(temporary.path(), &path) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::AlreadyExists => return Err(CreateError::Exists(key.to_string())),
        Err(e) => return Err(not_yet(e).into()),
    }
    drop(temporary);
    sync_folder(folder).map_err(|e| failure(Operation::Create, key, Happened::Maybe, e))?;
    // If the root went away meanwhile, the object went with it.
    at.check(Operation::Create, key).map_err(Failure::maybe)?;
    root.saw(key);
    Ok(only_version())
}

/// Gives a file its name, unless the name is taken: with a hard link if the file system has hard links, else by renaming.
fn link(from: &Path, to: &Path) -> std::io::Result<()> {
    match fs::hard_link(from, to) {
        // Linux gives these errors for a file system without hard links (FAT, some network mounts).
        Err(e) if matches!(e.raw_os_error(), Some(nix::libc::EPERM | nix::libc::EOPNOTSUPP | nix::libc::ENOSYS)) => {
            // If the file system can do neither, the first error says more.
            rename_new(from, to)
                .map_err(|second| if second.raw_os_error() == Some(nix::libc::EINVAL) { e } else { second })
        }
        result => result,
    }
}

fn rename_new(from: &Path, to: &Path) -> std::io::Result<()> {
    Ok(nix::fcntl::renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ways to give a name refuse a name that is taken.
    #[test]
    fn a_name_is_given_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        type Way = fn(&Path, &Path) -> std::io::Result<()>;
        for (way, name) in [(link as Way, "linked"), (rename_new as Way, "renamed")] {
            for content in ["first", "second"] {
                fs::write(path(content), content).unwrap();
            }
            way(&path("first"), &path(name)).unwrap();
            let taken = way(&path("second"), &path(name)).unwrap_err();
            assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
            assert_eq!(fs::read(path(name)).unwrap(), b"first");
        }
    }
}
