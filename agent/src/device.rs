//! The sources and targets of volumes: block devices, image files, byte streams.

pub mod allowed;
mod block;
pub mod changes;
mod command;
mod exclusive;
pub mod expected;
pub mod free_space;
mod partial;
mod ring;
#[cfg(any(test, feature = "test-util"))]
pub mod scripted;
mod set;
mod single_writer;
mod source;
mod stream;
mod superblock;
mod target;
pub mod usage;

pub use command::run_command;
pub use partial::Attempt;
pub use ring::Piece;
pub(crate) use ring::has_ring;
pub use source::{SourceError, SourceOptions, open_source};
pub use stream::{ByteSource, open_stream};
pub use target::{StreamPartial, StreamTarget, TargetError, TargetOptions, VolumeTarget};

use milkrun_repository::point::root::FileSystem;

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A volume that can be read at any offset, from several threads at once.
pub trait Source: Send + Sync {
    /// Its bytes.
    fn len(&self) -> u64;

    /// Whether it has none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Which file system its superblock says that it holds.
    fn file_system(&self) -> FileSystem {
        FileSystem::default()
    }

    /// Its logical sector size; 0 for files.
    fn sector_bytes(&self) -> u32;

    /// Fills `buf` from `offset`, all of it or an error. Offset and address are page-aligned.
    ///
    /// # Errors
    /// What the system says; a volume that ends early is `UnexpectedEof`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Fills many small pieces that lie far from each other.
    ///
    /// # Errors
    /// As [`Self::read_at`], with the offset of the first piece that failed.
    fn read_pieces(&self, pieces: Vec<Piece<'_>>) -> Result<(), (u64, io::Error)> {
        pieces.into_iter().try_for_each(|(at, piece)| self.read_at(piece, at).map_err(|e| (at, e)))
    }

    /// The first range at or after `offset` that may hold anything but zeros: (start, end). `None`: zeros to the end.
    ///
    /// # Errors
    /// What the system says.
    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        Ok((offset < self.len()).then(|| (offset, self.len())))
    }

    /// Checks after the last read that the volume did not change. Returns notes for people.
    ///
    /// # Errors
    /// [`SourceError::Changed`] or [`SourceError::Thawed`] if it changed.
    fn finish(&self) -> Result<Vec<String>, SourceError>;
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}
