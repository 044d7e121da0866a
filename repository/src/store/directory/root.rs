//! The root of a directory repository: whether it is still there, and the folders below it.
//!
//! A root can go away while a run uses it: it is moved, or its file system is unmounted and leaves an empty mount point. A
//! missing object then means nothing, and objects in newly made folders would never be found again. So once `repository.json` was
//! seen, it must stay: without it nothing is created, and nothing counts as "not found".

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::{Failure, Key, Operation, Trouble};
use super::{failure, sync_folder};
use crate::store::Happened;

/// A root whose folder is held open.
pub(super) struct Pinned {
    root: Root,
    _folder: File,
}

impl std::ops::Deref for Pinned {
    type Target = Root;
    fn deref(&self) -> &Root {
        &self.root
    }
}

/// The folder of a repository that exists or will be made.
#[derive(Clone, Debug)]
pub(in crate::store) struct Root {
    path: PathBuf,
    /// Whether `repository.json` was seen in it.
    seen: Arc<AtomicBool>,
    /// Whether files that killed processes left behind were looked for.
    swept: Arc<AtomicBool>,
}

impl Root {
    /// A root that need not exist yet.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, seen: Arc::default(), swept: Arc::default() }
    }

    /// A root that another process opened: it must hold a repository.
    pub(in crate::store) fn of_repository(path: PathBuf) -> Self {
        Self { path, seen: Arc::new(AtomicBool::new(true)), swept: Arc::default() }
    }

    /// Whether it is time to look for files that killed processes left behind: once for each process.
    pub(super) fn sweeps(&self) -> bool {
        !self.swept.swap(true, Ordering::Relaxed)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file of an object.
    pub(super) fn file(&self, key: &Key) -> PathBuf {
        self.path.join(key.as_str())
    }

    /// Notes that an object exists. Once that is the configuration, the repository must stay.
    pub(super) fn saw(&self, key: &Key) {
        if *key == Key::config() {
            self.seen.store(true, Ordering::Relaxed);
        }
    }

    /// Fails if the repository that was here is gone.
    pub(super) fn check(&self, operation: Operation, key: impl ToString) -> Result<(), Failure> {
        if !self.seen.load(Ordering::Relaxed) {
            return Ok(());
        }
        let why = match fs::symlink_metadata(self.file(&Key::config())) {
            Ok(_) => return Ok(()),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                format!("{:?} holds no repository any more: it was moved, or its file system is not mounted", self.path)
            }
            Err(e) => return Err(failure(operation, key, Happened::No, e)),
        };
        Err(Failure::new(operation, key, Trouble::Unreachable).because(why))
    }

    /// An identity that distinguishes this folder from another one at the same path: file system and inode of `repository.json`.
    pub(super) fn identity(&self) -> Result<String, Failure> {
        let key = Key::config();
        self.check(Operation::Inspect, &key)?;
        let meta =
            fs::symlink_metadata(self.file(&key)).map_err(|e| failure(Operation::Inspect, &key, Happened::No, e))?;
        Ok(format!("device {} inode {}", meta.dev(), meta.ino()))
    }

    /// Holds the folder that is at this path now: files written through it go to this folder, whatever happens to the path. The
    /// folder is made if it is missing and no repository was seen here yet.
    pub(super) fn pin(&self) -> std::io::Result<Pinned> {
        self.create_folders(&self.path)?;
        let folder = File::open(&self.path)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
        Ok(Pinned { root: Self { path, seen: self.seen.clone(), swept: self.swept.clone() }, _folder: folder })
    }

    /// Creates missing folders below the root. Each is durable in its parent before anything is put into it. The root itself is
    /// made only while it holds no repository.
    pub(super) fn create_folders(&self, folder: &Path) -> std::io::Result<()> {
        if folder.is_dir() {
            return Ok(());
        }
        if folder == self.path && self.seen.load(Ordering::Relaxed) {
            return Err(ErrorKind::NotFound.into());
        }
        let parent = folder.parent().unwrap_or(Path::new("/"));
        self.create_folders(parent)?;
        match fs::create_dir(folder) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        sync_folder(parent)
    }
}
