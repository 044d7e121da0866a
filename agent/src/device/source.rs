//! Opens the sources of backups, always read-only.
//!
//! A block device is read with O_DIRECT. A device that is mounted read-write is refused: it would be read in no
//! consistent state. The backup of a file that changes while it is read fails. Both can be overridden, and the point
//! then says so.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use milkrun_repository::point::root::{FileSystem, SET_MEMBER};
use nix::fcntl::OFlag;
use nix::unistd::{Whence, lseek64};
use rayon::prelude::*;

use super::allowed::NotAllowed;
use super::superblock::Ends;
use super::{Piece, Source, block, ring, set, usage};

/// Where a file has data, so many bytes count as data before the file system is asked again.
const DATA_BYTES: u64 = 1 << 20;

/// Checks that a person turned off.
#[derive(Clone, Copy, Debug, Default)]
pub struct SourceOptions {
    /// Read a device that is mounted read-write.
    pub allow_mounted: bool,
    /// Accept a file that changed while it was read.
    pub allow_changing: bool,
}

/// Why a source can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It can't be opened, or its properties can't be read.
    #[error("can't open {path:?}")]
    Open {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// This agent does not open it.
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
    /// This agent opens volumes only.
    #[error("this agent opens block volumes of pods, and no {0}")]
    VolumesOnly(&'static str),
    /// It holds another file system than its claim says.
    #[error(transparent)]
    Unexpected(#[from] super::expected::UnexpectedError),
    /// Neither device nor file.
    #[error("{path:?} is {what}; a volume is a block device or an image file (for a byte stream use --stream)")]
    Kind {
        /// Which one.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Somebody may write to it.
    #[error("{path:?} is in use ({by}): freeze or snapshot it, or pass --allow-mounted to read it as it is")]
    InUse {
        /// Which one.
        path: PathBuf,
        /// By what.
        by: String,
    },
    /// It changed since the backup began.
    #[error("{path:?} changed while it was read ({what}): back up a snapshot, or pass --allow-changing")]
    Changed {
        /// Which one.
        path: PathBuf,
        /// What changed.
        what: &'static str,
    },
    /// A command whose output was read failed.
    #[error("{command:?} {how}{}", if said.is_empty() { String::new() } else { format!("; it said: {said}") })]
    Command {
        /// The command.
        command: String,
        /// How it ended.
        how: String,
        /// The end of its standard error.
        said: String,
    },
    /// The command is a pipe, and there is no shell that reports the failure of each part.
    #[error(
        "{command:?} is a pipe, and without bash nobody tells whether all of it succeeded: install bash, or leave the pipe out"
    )]
    Shell {
        /// The command.
        command: String,
    },
    /// The free space of its file system may not be free any more.
    #[error(
        "the file system on {path:?} was mounted or thawed while it was read: back up a snapshot, or leave out --skip-free"
    )]
    Thawed {
        /// Which one.
        path: PathBuf,
    },
}

/// A device or an image file.
#[derive(Debug)]
struct FileSource {
    path: PathBuf,
    file: File,
    len: u64,
    sector: u32,
    device: bool,
    file_system: FileSystem,
    options: SourceOptions,
    notes: Vec<String>,
    /// Modification and change time and size of a file when it was opened.
    stamp: (i64, i64, i64, i64, u64),
}

pub(super) fn stamp(m: &std::fs::Metadata) -> (i64, i64, i64, i64, u64) {
    (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec(), m.len())
}

/// Opens a device or an image file.
///
/// # Errors
/// [`SourceError`].
pub fn open_source(path: &Path, options: SourceOptions) -> Result<Box<dyn Source>, SourceError> {
    let fail = |source| SourceError::Open { path: path.to_owned(), source };
    let kind = std::fs::metadata(path).map_err(fail)?.file_type();
    let what = match () {
        () if kind.is_dir() => "a folder",
        () if kind.is_char_device() => "a character device",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "",
    };
    if !what.is_empty() {
        return Err(SourceError::Kind { path: path.to_owned(), what });
    }
    let mut notes = notes_of_use(path, options)?;
    let device = kind.is_block_device();
    let open = |flags: OFlag| OpenOptions::new().read(true).custom_flags((flags | OFlag::O_CLOEXEC).bits()).open(path);
    let (file, len, sector) = if device {
        // Not every device supports O_DIRECT. Without it the page cache is dropped first, since it may hold stale
        // pages.
        let file = match open(OFlag::O_DIRECT) {
            Err(e) if e.kind() == ErrorKind::InvalidInput => {
                let file = open(OFlag::empty()).map_err(fail)?;
                block::flush_buffers(&file).map_err(fail)?;
                file
            }
            other => other.map_err(fail)?,
        };
        let (len, sector) = (block::whole_size(&file).map_err(fail)?, block::sector_bytes(&file).map_err(fail)?);
        (file, len, sector)
    } else {
        let file = open(OFlag::empty()).map_err(fail)?;
        let len = file.metadata().map_err(fail)?.len();
        (file, len, 0)
    };
    let stamp = stamp(&file.metadata().map_err(fail)?);
    let mut file_system = FileSystem::default();
    match Ends::read(path, len) {
        Ok(ends) => {
            file_system = ends.file_system();
            let member = set::member_of(&ends);
            notes.extend(member.map(|m| format!("{SET_MEMBER}{} devices: {}", m.devices, m.set)));
        }
        // This does not fail the backup here: the same bytes are read soon, and then the error counts.
        Err(e) => tracing::debug!(?path, error = %e, "can't tell what it holds"),
    }
    Ok(Box::new(FileSource { path: path.to_owned(), file, len, sector, device, file_system, options, notes, stamp }))
}

/// The notes of a point about a source that others may write to. An error, unless `--allow-mounted` allows it.
pub(super) fn notes_of_use(path: &Path, options: SourceOptions) -> Result<Vec<String>, SourceError> {
    let uses = usage::uses_of(path).map_err(|source| SourceError::Open { path: path.to_owned(), source })?;
    let mut notes = Vec::new();
    for u in uses.into_iter().filter(|u| u.writable) {
        let by = if u.mounted { u.by.replacen("mounted", "mounted read-write", 1) } else { u.by };
        if !options.allow_mounted {
            return Err(SourceError::InUse { path: path.to_owned(), by });
        }
        notes.push(if u.mounted { format!("read while {by}") } else { format!("read while in use: {by}") });
    }
    Ok(notes)
}

impl Source for FileSource {
    fn len(&self) -> u64 {
        self.len
    }

    fn sector_bytes(&self) -> u32 {
        self.sector
    }

    fn file_system(&self) -> FileSystem {
        self.file_system.clone()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn read_pieces(&self, mut pieces: Vec<Piece<'_>>) -> Result<(), (u64, io::Error)> {
        let left = ring::read(&self.file, &mut pieces);
        if left.is_empty() {
            return Ok(());
        }
        let is_left = |(number, _): &(usize, Piece<'_>)| left.binary_search(number).is_ok();
        if rayon::current_thread_index().is_none() {
            // Not on a thread of our pools: one after the other, since rayon would start a global pool for it.
            let mut plain = pieces.into_iter().enumerate().filter(is_left);
            return plain.try_for_each(|(_, (at, piece))| self.read_at(piece, at).map_err(|e| (at, e)));
        }
        let plain = pieces.into_par_iter().enumerate().filter(is_left);
        let failed = plain.filter_map(|(_, (at, piece))| self.read_at(piece, at).err().map(|e| (at, e)));
        failed.min_by_key(|(at, _)| *at).map_or(Ok(()), Err)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        if offset >= self.len {
            return Ok(None);
        }
        if self.device {
            return Ok(Some((offset, self.len)));
        }
        // SEEK_HOLE is not used for the end: on tmpfs and others it walks all pages of the data.
        let from = i64::try_from(offset).map_err(io::Error::other)?;
        match lseek64(&self.file, from, Whence::SeekData) {
            Ok(start) => {
                let start = u64::try_from(start).map_err(io::Error::other)?;
                let end = (start / DATA_BYTES + 1) * DATA_BYTES;
                Ok((start < self.len).then_some((start, end.min(self.len))))
            }
            Err(nix::Error::ENXIO) => Ok(None),
            // The file system does not support this: everything may be data.
            Err(_) => Ok(Some((offset, self.len))),
        }
    }

    fn finish(&self) -> Result<Vec<String>, SourceError> {
        let fail = |source| SourceError::Open { path: self.path.clone(), source };
        let mut notes = self.notes.clone();
        if self.device {
            if block::size(&self.file).map_err(fail)? != self.len {
                return Err(SourceError::Changed { path: self.path.clone(), what: "its size" });
            }
            return Ok(notes);
        }
        if stamp(&self.file.metadata().map_err(fail)?) != self.stamp {
            if !self.options.allow_changing {
                return Err(SourceError::Changed { path: self.path.clone(), what: "its times or its size" });
            }
            notes.push("changed while it was read".into());
        }
        Ok(notes)
    }
}
