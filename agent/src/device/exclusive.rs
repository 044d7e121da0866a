//! A lock on a target (flock(2)) that other processes respect: a second restore to the same place is refused, and does not take an unfinished file
//! for a left-over.
//!
//! Within this process the lock is shared: an attempt that was given up may still hang in a write or a sync, and the next one of
//! the same restore must not wait for it. Which restore has which target is the coordinator's to decide.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, Weak};
use std::time::Duration;

use super::lock;

/// A lock that this process holds, until the last one lets go of it.
#[derive(Debug)]
pub(super) struct Alone(#[expect(dead_code, reason = "the lock lasts as long as it is open")] File);

/// A file by file system and inode, or (0, block device).
type Thing = (u64, u64);

static HELD: LazyLock<Mutex<HashMap<Thing, Weak<Alone>>>> = LazyLock::new(Mutex::default);

/// Another process may hold it for a moment: tools that look at new devices do.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

fn thing(file: &File) -> io::Result<Thing> {
    let meta = file.metadata()?;
    Ok(if meta.file_type().is_block_device() { (0, meta.rdev()) } else { (meta.dev(), meta.ino()) })
}

/// What a system says that knows no locks.
fn knows_no_locks(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(nix::libc::ENOLCK | nix::libc::EOPNOTSUPP | nix::libc::ENOSYS))
}

/// Takes the lock of a file or device.
///
/// # Errors
/// [`ErrorKind::WouldBlock`] if another process keeps it.
pub(super) fn take(file: &File) -> io::Result<Arc<Alone>> {
    let thing = thing(file)?;
    let ours = || lock(&HELD).get(&thing).and_then(Weak::upgrade);
    if let Some(ours) = ours() {
        return Ok(ours);
    }
    // Opened anew: what holds the file itself open, such as a write that hangs, must not keep the lock. For writing too: NFS
    // gives no other exclusive lock.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    for tried in 1.. {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(e)) if knows_no_locks(&e) => break,
            Err(TryLockError::Error(e)) => return Err(e),
            Err(TryLockError::WouldBlock) => {
                // Somebody in this process was faster.
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
    let mut held = lock(&HELD);
    held.retain(|_, alone| alone.strong_count() > 0);
    let alone = Arc::new(Alone(file));
    held.insert(thing, Arc::downgrade(&alone));
    Ok(alone)
}

/// Removes an unfinished file that no other process holds.
///
/// # Errors
/// [`ErrorKind::WouldBlock`] if one does.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let ours = lock(&HELD).get(&thing(&file)?).is_some_and(|alone| alone.strong_count() > 0);
    if !ours {
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(e)) if knows_no_locks(&e) => {}
            Err(TryLockError::Error(e)) => return Err(e),
            Err(TryLockError::WouldBlock) => return Err(ErrorKind::WouldBlock.into()),
        }
    }
    fs::remove_file(path)
}
