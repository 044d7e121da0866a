//! A device for tests: its content is in memory, and reads fail where the test wants it.

use std::io::{self, ErrorKind};
use std::sync::Arc;

use super::{Source, SourceError};

/// How a read fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// EIO.
    Error,
    /// The device ends here, though it said it was longer.
    Short,
}

/// A device of bytes in memory.
#[derive(Clone)]
pub struct Scripted {
    /// The content.
    pub content: Arc<Vec<u8>>,
    /// Reads that touch this byte fail like this.
    pub mishap: Option<(u64, Mishap)>,
    /// Its length after the last read, if it changes.
    pub size_at_end: Option<u64>,
}

impl Source for Scripted {
    fn len(&self) -> u64 {
        self.content.len() as u64
    }

    fn sector_bytes(&self) -> u32 {
        512
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        match self.mishap {
            Some((at, Mishap::Error)) if (offset..end).contains(&at) => {
                return Err(io::Error::from_raw_os_error(nix::libc::EIO));
            }
            Some((at, Mishap::Short)) if end > at => return Err(ErrorKind::UnexpectedEof.into()),
            _ => {}
        }
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        buf.copy_from_slice(&self.content[from..from + buf.len()]);
        Ok(())
    }

    fn finish(&self) -> Result<Vec<String>, SourceError> {
        match self.size_at_end {
            Some(n) if n != self.len() => Err(SourceError::Changed { path: "scripted".into(), what: "its size" }),
            _ => Ok(Vec::new()),
        }
    }
}
