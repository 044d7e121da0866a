//! A lock on a target (flock(2)) between processes: a second restore to the same target is refused, and does not remove
//! the unfinished file of the first one as a left-over.
//!
//! Within this process the lock is shared. An attempt that was given up may still hang in a write or a sync, and the
//! next attempt of the same restore must not wait for it. The coordinator decides which restore has which target.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, Weak};
use std::time::Duration;

use super::lock;

/// A lock that this process holds until the last reference to it is dropped.
#[derive(Debug)]
pub(super) struct TargetLock(#[expect(dead_code, reason = "the lock lasts as long as it is open")] File);

/// Identifies a file by file system and inode, or a block device by (0, device).
type FileId = (u64, u64);

static LOCKS: LazyLock<Mutex<HashMap<FileId, Weak<TargetLock>>>> = LazyLock::new(Mutex::default);

/// How often to try: another process may hold the lock for a moment, as tools do that look at new devices.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

fn file_id(file: &File) -> io::Result<FileId> {
    let meta = file.metadata()?;
    Ok(if meta.file_type().is_block_device() { (0, meta.rdev()) } else { (meta.dev(), meta.ino()) })
}

/// Whether the error says that the file system has no locks.
fn locks_unsupported(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(nix::libc::ENOLCK | nix::libc::EOPNOTSUPP | nix::libc::ENOSYS))
}

/// Takes the lock of a file or device.
///
/// # Errors
/// [`ErrorKind::WouldBlock`] if another process holds it.
pub(super) fn take(file: &File) -> io::Result<Arc<TargetLock>> {
    let id = file_id(file)?;
    let ours = || lock(&LOCKS).get(&id).and_then(Weak::upgrade);
    if let Some(ours) = ours() {
        return Ok(ours);
    }
    // The file is opened again for the lock: a write that hangs keeps the original open, and must not keep the lock. It
    // is opened for writing too: NFS gives no exclusive lock otherwise.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    for tried in 1.. {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(e)) if locks_unsupported(&e) => break,
            Err(TryLockError::Error(e)) => return Err(e),
            Err(TryLockError::WouldBlock) => {
                // Another thread of this process has taken it meanwhile.
                if let Some(ours) = ours() {
                    return Ok(ours);
                }
                if tried >= TRIES {
                    return Err(ErrorKind::WouldBlock.into());
                }
                std::thread::sleep(PAUSE);
            }
        }
    }
    let mut locks = lock(&LOCKS);
    locks.retain(|_, lock| lock.strong_count() > 0);
    let taken = Arc::new(TargetLock(file));
    locks.insert(id, Arc::downgrade(&taken));
    Ok(taken)
}

/// Removes an unfinished file, unless another process holds its lock.
///
/// # Errors
/// [`ErrorKind::WouldBlock`] if one does.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let ours = lock(&LOCKS).get(&file_id(&file)?).is_some_and(|lock| lock.strong_count() > 0);
    if !ours {
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(e)) if locks_unsupported(&e) => {}
            Err(TryLockError::Error(e)) => return Err(e),
            Err(TryLockError::WouldBlock) => return Err(ErrorKind::WouldBlock.into()),
        }
    }
    fs::remove_file(path)
}
