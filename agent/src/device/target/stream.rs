//! A target that is written in order: a pipe, a file, a device.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use milkrun_repository::crash;

use super::checks::{busy_or, check_empty, check_new, check_use};
use super::{TargetError, TargetOptions};
use crate::device::exclusive::{self, TargetLock};
use crate::device::partial::{Attempt, Name, Partial, put_in_place};
use crate::device::{block, lock};

/// The unfinished file of a stream. The caller keeps this while it waits for the end of the restore; when it is
/// dropped, the file is removed.
#[derive(Debug)]
pub struct StreamPartial(Arc<Mutex<Option<Partial>>>);

impl Drop for StreamPartial {
    fn drop(&mut self) {
        drop(lock(&self.0).take());
    }
}

/// A stream that is written in order: a file, a pipe, or `-` for standard output.
#[derive(Debug)]
pub struct StreamTarget {
    path: PathBuf,
    file: File,
    partial: Arc<Mutex<Option<Partial>>>,
    kind: StreamKind,
    /// For a device: keeps other restores away.
    target_lock: Option<Arc<TargetLock>>,
    offset: u64,
}

/// What a stream goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamKind {
    /// A pipe, or a character device: it needs no sync.
    Pipe,
    /// A block device.
    Device,
    /// A file; it has a temporary name until it is whole.
    File(Name),
}

impl StreamTarget {
    /// Opens a stream target. The caller keeps the second value until the restore has ended.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn open(path: &str, options: TargetOptions, attempt: &Attempt) -> Result<(Self, StreamPartial), TargetError> {
        let fail = |source| TargetError::Open { path: path.into(), source };
        let whole = |file, partial, kind| {
            let partial = Arc::new(Mutex::new(partial));
            let target = Self { path: path.into(), file, partial: partial.clone(), kind, target_lock: None, offset: 0 };
            (target, StreamPartial(partial))
        };
        if path == "-" {
            let file = nix::unistd::dup(io::stdout()).map(File::from).map_err(|e| fail(e.into()))?;
            return Ok(whole(file, None, StreamKind::Pipe));
        }
        let at = Path::new(path);
        match fs::metadata(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                check_new(at)?;
                let (partial, file) = Partial::create(at, attempt).map_err(|e| busy_or(at, e))?;
                Ok(whole(file, Some(partial), StreamKind::File(Name::New)))
            }
            Err(e) => Err(fail(e)),
            Ok(m) if m.is_dir() => Err(TargetError::Kind { path: path.into() }),
            Ok(m) if m.is_file() && m.len() > 0 && !options.force => Err(TargetError::NotEmpty { path: path.into() }),
            Ok(m) if m.is_file() => {
                check_use(at, options.force)?;
                // The file that a link points to is replaced, and not the link.
                let at = fs::canonicalize(at).map_err(fail)?;
                let (partial, file) = Partial::create(&at, attempt).map_err(|e| busy_or(&at, e))?;
                let (mut target, kept) = whole(file, Some(partial), StreamKind::File(Name::Taken));
                target.path = at;
                Ok((target, kept))
            }
            Ok(m) if m.file_type().is_block_device() => {
                check_use(at, options.force)?;
                let file = OpenOptions::new().read(true).write(true).open(path).map_err(fail)?;
                let target_lock = exclusive::take(&file).map_err(|e| busy_or(at, e))?;
                if !options.force {
                    check_empty(at, &file, block::whole_size(&file).map_err(fail)?)?;
                }
                let (mut target, kept) = whole(file, None, StreamKind::Device);
                target.target_lock = Some(target_lock);
                Ok((target, kept))
            }
            Ok(_) => Ok(whole(OpenOptions::new().write(true).open(path).map_err(fail)?, None, StreamKind::Pipe)),
        }
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// [`TargetError::Write`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), TargetError> {
        self.file.write_all(bytes).map_err(|source| TargetError::Write {
            path: self.path.clone(),
            offset: self.offset,
            source,
        })?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Finishes the target: makes it durable, and renames a new file.
    ///
    /// # Errors
    /// [`TargetError::Sync`].
    pub fn finish(self) -> Result<(), TargetError> {
        let fail = |source| TargetError::Sync { path: self.path.clone(), source };
        match self.kind {
            // Standard output may be a file. Only a sync reports what a full disk refused.
            StreamKind::Pipe if self.file.metadata().is_ok_and(|m| m.is_file()) => self.file.sync_all().map_err(fail),
            StreamKind::Pipe => Ok(()),
            StreamKind::Device => self.file.sync_all().map_err(fail),
            // The attempt was given up meanwhile.
            StreamKind::File(_) if lock(&self.partial).is_none() => Ok(()),
            StreamKind::File(name) => {
                crash::point("before fsync of the target");
                self.file.sync_all().map_err(fail)?;
                put_in_place(&self.partial, &self.path, name).map_err(fail)
            }
        }
    }
}
