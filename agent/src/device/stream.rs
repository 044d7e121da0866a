//! Byte streams to back up: a file, a pipe, standard input, or what an embedding program opens.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::SourceError;
use super::source::{SourceOptions, notes_of_use, stamp};

/// A stream that is read once, in order.
pub trait ByteSource: Read + Send {
    /// Checks after its end that the stream is whole. Returns notes for people.
    ///
    /// # Errors
    /// [`SourceError`] if the stream ended and is not whole.
    fn finish(&mut self) -> Result<Vec<String>, SourceError>;
}

/// A stream that was opened by its path.
struct Opened {
    path: PathBuf,
    file: File,
    options: SourceOptions,
    notes: Vec<String>,
    /// For a regular file: its times and its size when it was opened.
    stamp: Option<(i64, i64, i64, i64, u64)>,
}

/// Opens a byte stream: a file, a pipe, a device, or `-` for standard input.
///
/// # Errors
/// [`SourceError`].
pub fn open_stream(path: &str, options: SourceOptions) -> Result<Box<dyn ByteSource>, SourceError> {
    let fail = |source| SourceError::Open { path: path.into(), source };
    let mut notes = Vec::new();
    let file = if path == "-" {
        // A duplicate, so that closing it does not close standard input.
        nix::unistd::dup(io::stdin()).map(File::from).map_err(|e| fail(e.into()))?
    } else {
        let kind = std::fs::metadata(path).map_err(fail)?.file_type();
        if kind.is_dir() {
            return Err(SourceError::Kind { path: path.into(), what: "a folder" });
        }
        if kind.is_file() || kind.is_block_device() {
            notes = notes_of_use(Path::new(path), options)?;
        }
        File::open(path).map_err(fail)?
    };
    // A larger pipe means fewer context switches between reader and writer. If it is refused, that does not matter.
    let _ = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETPIPE_SZ(1 << 20));
    let meta = file.metadata().map_err(fail)?;
    let stamp = meta.is_file().then(|| stamp(&meta));
    Ok(Box::new(Opened { path: path.into(), file, options, notes, stamp }))
}

impl Read for Opened {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read(buf)
    }
}

impl ByteSource for Opened {
    fn finish(&mut self) -> Result<Vec<String>, SourceError> {
        let mut notes = std::mem::take(&mut self.notes);
        let Some(before) = self.stamp else { return Ok(notes) };
        let meta = self.file.metadata().map_err(|source| SourceError::Open { path: self.path.clone(), source })?;
        if stamp(&meta) != before {
            if !self.options.allow_changing {
                return Err(SourceError::Changed { path: self.path.clone(), what: "its times or its size" });
            }
            notes.push("changed while it was read".into());
        }
        Ok(notes)
    }
}
