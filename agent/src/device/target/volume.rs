//! A device or file that a volume is written to, at any offset.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use milkrun_repository::crash;
use nix::fcntl::{FallocateFlags, fallocate};

use super::checks::{busy_or, check_empty, check_new, check_use};
use super::{TargetError, TargetOptions};
use crate::device::exclusive::{self, TargetLock};
use crate::device::partial::{self, Attempt, Name, Partial, put_in_place};
use crate::device::single_writer::{Ended, Part, QUEUED_MAX, SingleWriter};
use crate::device::{block, lock};

/// Bytes that are zeroed in one call. Between calls it is noticed that writing ended.
const ZERO_BYTES: u64 = 1 << 30;

/// A device or file that is being written.
#[derive(Debug)]
pub struct VolumeTarget {
    path: PathBuf,
    file: File,
    len: u64,
    capacity: u64,
    /// A block device: it can be written concurrently.
    device: bool,
    /// Keeps other restores away. `None` for a new file: its `partial` has the lock.
    #[expect(dead_code, reason = "kept as long as the target")]
    target_lock: Option<Arc<TargetLock>>,
    /// The target reads as zeros until it is written: holes need no work.
    fresh: bool,
    options: TargetOptions,
    writer: SingleWriter<(u64, io::Error)>,
    /// The unfinished file of a new target. It is renamed at the end.
    partial: Mutex<Option<Partial>>,
    /// An earlier attempt wrote to this very target.
    resumed: bool,
    tag: String,
}

/// Ends all writing to a target when dropped: once a caller has stopped waiting for a restore, nothing is written any
/// more. If the restore was not finished by then, no unfinished file is left (unless it is kept for another attempt).
#[derive(Debug)]
pub struct Writing<'a>(&'a VolumeTarget);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        // This is done first: the file can be removed while a thread still writes to it, and that write may take long.
        drop(self.0.partial().take());
        self.0.writer.end();
    }
}

impl VolumeTarget {
    /// Opens and checks a target for a volume of `len` bytes. Writes nothing to a device or existing file. If an
    /// earlier attempt is to be resumed, [`Self::resumed`] says afterwards whether that is possible.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn open(path: &Path, len: u64, options: TargetOptions, attempt: &Attempt) -> Result<Self, TargetError> {
        let fail = |source| TargetError::Open { path: path.to_owned(), source };
        let base = |file, partial: Option<Partial>, capacity, fresh, tag, resumed| Self {
            path: path.to_owned(),
            file,
            len,
            capacity,
            device: false,
            target_lock: None,
            fresh,
            options,
            writer: SingleWriter::new(QUEUED_MAX),
            resumed,
            tag,
            partial: Mutex::new(partial),
        };
        let kind = match fs::metadata(path) {
            Ok(m) => m.file_type(),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                check_new(path)?;
                let (partial, file) = Partial::open(path, len, attempt).map_err(|e| busy_or(path, e))?;
                file.set_len(len).map_err(fail)?;
                let tag = partial::tag_of(&file, partial.made_by()).map_err(fail)?;
                let resumed = partial.was_there();
                return Ok(base(file, Some(partial), len, true, tag, resumed));
            }
            Err(e) => return Err(fail(e)),
        };
        let write = || OpenOptions::new().read(true).write(true).open(path).map_err(fail);
        check_use(path, options.force)?;
        if kind.is_file() {
            let file = write()?;
            let target_lock = exclusive::take(&file).map_err(|e| busy_or(path, e))?;
            let capacity = file.metadata().map_err(fail)?.len();
            // The file that an earlier attempt wrote need not be empty. Any other file in its place must be.
            let ours = partial::is_of(&attempt.before, &file).map_err(fail)?;
            if capacity > 0 && !options.force && !ours {
                return Err(TargetError::NotEmpty { path: path.to_owned() });
            }
            let tag = partial::tag_of(&file, "file").map_err(fail)?;
            let resumed = ours && capacity >= len;
            let target = base(file, None, capacity.max(len), capacity == 0, tag, resumed);
            return Ok(Self { target_lock: Some(target_lock), ..target });
        }
        if !kind.is_block_device() {
            return Err(TargetError::Kind { path: path.to_owned() });
        }
        let file = write()?;
        let target_lock = exclusive::take(&file).map_err(|e| busy_or(path, e))?;
        let capacity = block::whole_size(&file).map_err(fail)?;
        if capacity < len {
            return Err(TargetError::Small { path: path.to_owned(), found: capacity, wanted: len });
        }
        let tag = block::identity(&file).unwrap_or_default();
        let ours = !tag.is_empty() && tag == attempt.before;
        if !options.force && !ours {
            check_empty(path, &file, capacity)?;
        }
        Ok(Self { device: true, target_lock: Some(target_lock), ..base(file, None, capacity, false, tag, ours) })
    }

    /// Call this before the first write, once all targets of the restore are checked. A file grows to the volume's
    /// size. A larger file keeps its rest, like a larger device.
    ///
    /// # Errors
    /// [`TargetError::Write`].
    pub fn begin(&self) -> Result<Writing<'_>, TargetError> {
        let fail = |e| self.write_error(0, e);
        let meta = self.file.metadata().map_err(fail)?;
        if meta.is_file() && meta.len() < self.len {
            self.file.set_len(self.len).map_err(fail)?;
        }
        Ok(Writing(self))
    }

    /// Whether this is the target that the attempt before wrote, so that the restore can resume.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// The tag by which another attempt recognises this target.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Makes everything durable that was written before this call.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn sync(&self) -> Result<(), TargetError> {
        self.writer.catch_up().map_err(|Ended| self.ended())?;
        crash::point("before a sync of the target");
        self.file.sync_data().map_err(|source| TargetError::Sync { path: self.path.clone(), source })
    }

    fn partial(&self) -> MutexGuard<'_, Option<Partial>> {
        lock(&self.partial)
    }

    /// Why nothing may be written any more.
    fn ended(&self) -> TargetError {
        // Each caller gets the error of the failed write. An I/O error can't be cloned, but its number can.
        let copy = |e: &io::Error| {
            e.raw_os_error().map_or_else(|| io::Error::new(e.kind(), e.to_string()), io::Error::from_raw_os_error)
        };
        let failed = self.writer.failure(|(offset, e)| self.write_error(*offset, copy(e)));
        failed.unwrap_or_else(|| TargetError::Abandoned { path: self.path.clone() })
    }

    /// Writes parts of a buffer, now or soon; [`Self::finish`] reports a failure at the latest. Afterwards `bytes` may
    /// be another buffer.
    ///
    /// # Errors
    /// [`TargetError::Write`] of this write or an earlier one; [`TargetError::Abandoned`] after the end.
    pub fn write_parts(&self, bytes: &mut Vec<u8>, parts: Vec<Part>) -> Result<(), TargetError> {
        for &(offset, _, len) in &parts {
            self.check_inside(offset, len as u64)?;
        }
        if self.device {
            for (offset, from, len) in parts {
                let written = self.writer.concurrently(|| self.write_at(&bytes[from..from + len], offset));
                let written = written.map_err(|Ended| self.ended())?;
                written.map_err(|(offset, e)| self.write_error(offset, e))?;
            }
            return Ok(());
        }
        self.writer.write(bytes, parts, |bytes, offset| self.write_at(bytes, offset)).map_err(|Ended| self.ended())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), (u64, io::Error)> {
        self.file.write_all_at(bytes, offset).map_err(|e| (offset, e))
    }

    /// Refuses a range behind the volume's end: the plan comes over the network, and other data may lie there.
    fn check_inside(&self, offset: u64, len: u64) -> Result<(), TargetError> {
        let end = if self.options.discard_rest { self.capacity } else { self.len };
        if offset.checked_add(len).is_none_or(|e| e > end) {
            let why = format!("{len} bytes there would lie behind the volume's end at byte {end}");
            return Err(self.write_error(offset, io::Error::new(ErrorKind::InvalidInput, why)));
        }
        Ok(())
    }

    fn write_error(&self, offset: u64, source: io::Error) -> TargetError {
        TargetError::Write { path: self.path.clone(), offset, source }
    }

    /// Makes a range read as zeros: by punching a hole or zeroing it where the target supports that, else by writing
    /// zeros.
    ///
    /// # Errors
    /// [`TargetError::Write`].
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), TargetError> {
        self.check_inside(offset, len)?;
        if self.fresh || len == 0 {
            return Ok(());
        }
        // On a block device the kernel does both with the device's own zeroing; the range reads as zeros afterwards.
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let by_kernel = |at: u64, n: u64| {
            let (Ok(at), Ok(n)) = (i64::try_from(at), i64::try_from(n)) else { return false };
            [punch, zero].into_iter().any(|mode| fallocate(&self.file, mode, at, n).is_ok())
        };
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let n = (end - at).min(ZERO_BYTES);
            if !self.writer.concurrently(|| by_kernel(at, n)).map_err(|Ended| self.ended())? {
                self.write_zeros(at, n)?;
            }
            at += n;
        }
        Ok(())
    }

    fn write_zeros(&self, offset: u64, len: u64) -> Result<(), TargetError> {
        const PIECE: usize = 1 << 20;
        let pieces = (0..len).step_by(PIECE);
        let parts = pieces.map(|at| (offset + at, 0, usize::try_from(len - at).unwrap_or(PIECE).min(PIECE)));
        self.write_parts(&mut vec![0; PIECE], parts.collect())
    }

    /// Finishes the target: zeroes the rest if asked to, makes everything durable, and renames a new file.
    ///
    /// # Errors
    /// [`TargetError`]; the volume is then not whole.
    pub fn finish(&self) -> Result<(), TargetError> {
        if self.options.discard_rest && self.capacity > self.len {
            self.zero(self.len, self.capacity - self.len)?;
        }
        let fail = |source| TargetError::Sync { path: self.path.clone(), source };
        // Waits for the last write, and fails if one failed.
        self.writer.settle().map_err(|Ended| self.ended())?;
        crash::point("before fsync of the target");
        self.file.sync_all().map_err(fail)?;
        crash::point("after fsync of the target");
        put_in_place(&self.partial, &self.path, Name::New).map_err(fail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_behind_the_volume_are_changed_only_if_asked() {
        const PAGE: usize = 4096;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("larger");
        for discard_rest in [false, true] {
            fs::write(&path, [7; 3 * PAGE]).unwrap();
            let options = TargetOptions { force: true, discard_rest };
            let target = VolumeTarget::open(&path, 2 * PAGE as u64, options, &Attempt::default()).unwrap();
            let writing = target.begin().unwrap();
            let end = if discard_rest { 3 * PAGE } else { 2 * PAGE };
            for (offset, len) in [(end - 1, 2), (end, 1), (1 << 40, 1), (usize::MAX, 2)] {
                let zeroed = target.zero(offset as u64, len as u64);
                assert!(matches!(zeroed, Err(TargetError::Write { .. })), "{offset} {len}");
                let written = target.write_parts(&mut vec![1; 2], vec![(offset as u64, 0, len)]);
                assert!(matches!(written, Err(TargetError::Write { .. })), "{offset} {len}");
            }
            target.zero(PAGE as u64, PAGE as u64).unwrap();
            target.finish().unwrap();
            drop(writing);
            let rest = if discard_rest { 0 } else { 7 };
            let expected = [[7; PAGE], [0; PAGE], [rest; PAGE]];
            assert!(fs::read(&path).unwrap() == expected.as_flattened());
        }
    }
}
