//! An object that lies on this machine.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use super::failure;
use crate::store::{Failure, GetError, Happened, Key, Operation, Trouble};

/// An object that lies on this machine, open for reading.
#[derive(Debug)]
pub struct LocalObject {
    key: Key,
    file: File,
}

impl LocalObject {
    pub(super) fn new(key: Key, file: File) -> Self {
        Self { key, file }
    }

    /// Fills `out` from `offset` on. Blocks as long as the disk needs.
    ///
    /// # Errors
    /// [`GetError::Failed`], with [`Trouble::Short`] if the object ends too early.
    pub fn read(&self, out: &mut [u8], offset: u64) -> Result<(), GetError> {
        self.file.read_exact_at(out, offset).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => Failure::new(Operation::Get, &self.key, Trouble::Short).because(e).into(),
            _ => failure(Operation::Get, &self.key, Happened::No, e).into(),
        })
    }
}
