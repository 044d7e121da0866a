//! A directory as a store: the embedded default.
//!
//! ```text
//! ROOT/<key>           the object, complete from the moment it has its name
//! ROOT/.locks/<key>    "compliance 1763821800000": its lock, written before the object gets its name
//! ROOT/.tmp/…          objects on their way; left over only by a crash, safe to delete when nothing runs
//! ```
//! An object is written to `.tmp`, synced, and linked to its name, which fails if the name is taken. (On a file system without
//! links it is renamed without overwriting.) Then the folder is synced. milkrun honours locks; **whoever is root here can still
//! delete**, and `init` says so.

mod create;
mod locks;
pub mod object;
mod root;
mod temporary;

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::grant::{GetGrant, PutGrant, PutTerms};
use super::listing::{Mark, Page};
use super::throttle::Throttle;
use super::{
    Capabilities, CreateError, DeleteError, Failure, GetError, Happened, Head, Key, Listed, Lock, Operation, Store,
    Trouble, Version,
};
use crate::clock::Moment;
use crate::crash;
pub(super) use create::create;
use object::LocalObject;
pub(super) use root::Root;

/// The only version that a key ever has here.
fn only_version() -> Version {
    Version("1".into())
}

/// Objects in a directory.
pub struct Directory {
    root: Root,
    throttle: Throttle,
}

impl Directory {
    /// Uses `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>, throttle: Throttle) -> Self {
        Self { root: Root::new(root.into()), throttle }
    }
}

fn failure(operation: Operation, key: impl ToString, happened: Happened, e: std::io::Error) -> Failure {
    let trouble = match e.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Trouble::Full,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Trouble::Denied,
        // The object there is not one that we wrote: trying again does not help.
        ErrorKind::InvalidData | ErrorKind::NotADirectory => Trouble::Foreign,
        // A disk that gives I/O errors, or a mount that went away: nothing is known.
        _ => Trouble::Unreachable,
    };
    Failure { happened, ..Failure::new(operation, key, trouble).because(e) }
}

fn sound(operation: Operation, key: &Key) -> Result<(), Failure> {
    if key.is_sound() { Ok(()) } else { Err(Failure::new(operation, key, Trouble::Refused).because("unsound key")) }
}

/// Makes the file or folder durable. All syncs go through here, so that tests can stop the process around each call.
fn sync(file: &File) -> std::io::Result<()> {
    crash::point("before fsync");
    file.sync_all()?;
    crash::point("after fsync");
    Ok(())
}

fn sync_folder(folder: &Path) -> std::io::Result<()> {
    sync(&File::open(folder)?)
}

/// Opens a plain file for reading. Anything else gives [`ErrorKind::InvalidData`]: a pipe would wait for a writer, and a link may
/// lead in circles.
fn open_plain(path: &Path) -> std::io::Result<File> {
    let foreign = |what: &str| std::io::Error::new(ErrorKind::InvalidData, format!("{path:?} is {what}"));
    let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|e| match e.raw_os_error() {
        Some(nix::libc::ELOOP) => foreign("a link that leads in circles"),
        Some(nix::libc::ENXIO) => foreign("no plain file"),
        _ => e,
    })?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(foreign("no plain file")) }
}

/// Reads an object or a range of it into `out`; a range past the end is cut.
pub(super) async fn read(
    root: Root,
    key: Key,
    range: Option<Range<u64>>,
    mut out: Vec<u8>,
) -> Result<Vec<u8>, GetError> {
    sound(Operation::Get, &key)?;
    blocking(move || {
        let fail = |e| GetError::from(failure(Operation::Get, &key, Happened::No, e));
        let file = open_now(&root, &key)?;
        let length = file.metadata().map_err(fail)?.len();
        let range = range.unwrap_or(0..length);
        let (from, to) = (range.start.min(length), range.end.min(length));
        // The present content is overwritten; only the added part of the buffer is cleared first.
        out.resize(usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX), 0);
        file.read_exact_at(&mut out, from).map_err(fail)?;
        Ok(out)
    })
    .await
}

/// Opens an object for reads of parts of `range`. The system begins to read the range ahead.
pub(super) async fn open(root: Root, key: Key, range: Range<u64>) -> Result<LocalObject, GetError> {
    sound(Operation::Get, &key)?;
    blocking(move || {
        let file = open_now(&root, &key)?;
        let (start, len) = (i64::try_from(range.start), i64::try_from(range.end.saturating_sub(range.start)));
        if let (Ok(start), Ok(len)) = (start, len) {
            // This is only advice. If it fails, the data is read later.
            let _ = posix_fadvise(&file, start, len, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
        }
        Ok(LocalObject::new(key, file))
    })
    .await
}

fn open_now(root: &Root, key: &Key) -> Result<File, GetError> {
    match open_plain(&root.file(key)) {
        Ok(file) => {
            root.saw(key);
            Ok(file)
        }
        Err(e) => Err(absent_or(root, Operation::Get, key, e)),
    }
}

/// "Not found" if the repository is still there, else a failure.
fn absent_or(root: &Root, operation: Operation, key: &Key, e: std::io::Error) -> GetError {
    match e.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => match root.check(operation, key) {
            Ok(()) => GetError::NotFound(key.to_string()),
            Err(gone) => gone.into(),
        },
        _ => failure(operation, key, Happened::No, e).into(),
    }
}

/// Runs file I/O on tokio's blocking threads. It is never cancelled half-way.
async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(f).await {
        Ok(out) => out,
        Err(e) => match e.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // This happens only when the runtime shuts down: nobody waits for the answer any more.
            Err(_) => std::future::pending().await,
        },
    }
}

fn stat(root: &Root, key: &Key) -> Result<Head, GetError> {
    let fail = |e: std::io::Error| absent_or(root, Operation::Head, key, e);
    let meta = fs::metadata(root.file(key)).map_err(fail)?;
    if !meta.is_file() {
        return Err(fail(std::io::Error::new(ErrorKind::InvalidData, "no plain file")));
    }
    let modified = meta.modified().map_err(fail)?;
    let lock = match locks::read(root, key) {
        // Anybody who can write there can also remove a lock. It is set anew when one is needed.
        Err(e) if e.kind() == ErrorKind::InvalidData => {
            tracing::warn!(%key, error = %e, "what stands in place of its lock locks nothing");
            None
        }
        lock => lock.map_err(|e| GetError::Failed(failure(Operation::Head, key, Happened::No, e)))?,
    };
    root.saw(key);
    Ok(Head { version: only_version(), length: meta.len(), modified: modified.into(), lock, crc32: None })
}

fn walk(root: &Path, folder: &Path, prefix: &str, out: &mut Vec<Listed>) -> std::io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let Some(key) = path.strip_prefix(root).ok().and_then(Path::to_str).map(str::to_owned) else { continue };
        if key.starts_with(locks::FOLDER) || key.starts_with(temporary::FOLDER) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            if key.starts_with(prefix) || prefix.starts_with(&format!("{key}/")) {
                walk(root, &path, prefix, out)?;
            }
        } else if key.starts_with(prefix) {
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            out.push(Listed {
                key: Key::new(key),
                version: only_version(),
                length: meta.len(),
                modified: meta.modified()?.into(),
                delete_marker: false,
                latest: true,
            });
        }
    }
    Ok(())
}

#[async_trait]
impl Store for Directory {
    fn describe(&self) -> String {
        format!("file://{}", self.root.path().display())
    }

    async fn capabilities(&self) -> Result<Capabilities, Failure> {
        Ok(Capabilities { locks: true, enforced: false, checksums: false, versions: false, default_retention: false })
    }

    async fn identity(&self) -> Result<String, Failure> {
        let root = self.root.clone();
        blocking(move || root.identity()).await
    }

    async fn create(&self, key: &Key, body: Bytes, lock: Option<Lock>) -> Result<Version, CreateError> {
        create(self.root.clone(), key.clone(), body, lock, self.throttle.clone()).await
    }

    async fn get(&self, key: &Key, _: Option<&Version>, range: Option<Range<u64>>) -> Result<Bytes, GetError> {
        Ok(read(self.root.clone(), key.clone(), range, Vec::new()).await?.into())
    }

    async fn head(&self, key: &Key, _: Option<&Version>) -> Result<Head, GetError> {
        sound(Operation::Head, key)?;
        let (root, key) = (self.root.clone(), key.clone());
        blocking(move || stat(&root, &key)).await
    }

    async fn lock_of(&self, key: &Key, version: &Version) -> Result<Option<Lock>, GetError> {
        Ok(self.head(key, Some(version)).await?.lock)
    }

    async fn versions_page(&self, prefix: &str, _: Option<&Mark>) -> Result<Page<Listed>, Failure> {
        let (root, prefix) = (self.root.clone(), prefix.to_owned());
        blocking(move || {
            // The walk starts as deep as the prefix allows: listing one application must not walk all packs.
            let top = root.path();
            let folder = prefix.rsplit_once('/').map_or_else(|| top.to_owned(), |(folder, _)| top.join(folder));
            let mut out = Vec::new();
            walk(top, &folder, &prefix, &mut out).map_err(|e| failure(Operation::List, &prefix, Happened::No, e))?;
            // If the root went away meanwhile, the listing is incomplete.
            root.check(Operation::List, &prefix)?;
            out.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(Page::whole(out))
        })
        .await
    }

    async fn keys_page(&self, prefix: &str, from: Option<&Mark>) -> Result<Page<Key>, Failure> {
        let page = self.versions_page(prefix, from).await?;
        Ok(Page::whole(page.items.into_iter().map(|l| l.key).collect()))
    }

    async fn extend_lock(&self, key: &Key, _: &Version, lock: Lock) -> Result<(), GetError> {
        sound(Operation::ExtendLock, key)?;
        let (root, key) = (self.root.clone(), key.clone());
        blocking(move || {
            let old = stat(&root, &key)?.lock;
            if old.is_some_and(|old| old.until > lock.until) {
                let why = "a lock can't be shortened";
                return Err(Failure::new(Operation::ExtendLock, &key, Trouble::Denied).because(why).into());
            }
            locks::grow(&root, &key, lock).map_err(|e| failure(Operation::ExtendLock, &key, Happened::Maybe, e).into())
        })
        .await
    }

    async fn delete(&self, key: &Key, _: &Version) -> Result<(), DeleteError> {
        sound(Operation::Delete, key)?;
        let (root, key) = (self.root.clone(), key.clone());
        blocking(move || {
            let fail = |e| failure(Operation::Delete, &key, Happened::Maybe, e);
            // An unreadable lock may be a valid one.
            if let Some(lock) = locks::read(&root, &key).map_err(fail)?
                && lock.until > Moment::now()
            {
                return Err(DeleteError::Locked(key.to_string()));
            }
            let path = root.file(&key);
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(fail(e).into()),
            }
            locks::forget(&root, &key);
            sync_folder(path.parent().unwrap_or(root.path())).map_err(|e| fail(e).into())
        })
        .await
    }

    async fn grant_put(&self, terms: &PutTerms) -> Result<PutGrant, Failure> {
        Ok(PutGrant::File { root: self.root.path().to_owned(), key: terms.key.clone(), lock: terms.lock })
    }

    async fn grant_get(&self, key: &Key, _: &Version) -> Result<GetGrant, Failure> {
        Ok(GetGrant::File { root: self.root.path().to_owned(), key: key.clone() })
    }
}
