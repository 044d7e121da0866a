//! The targets of restores. A target is checked before a byte is written.
//!
//! A new file is written under a temporary name and renamed when it is whole and durable, so that a crash leaves nothing that
//! could be mistaken for the volume. A device, or an existing file with `--force`, is written in place.
//!
//! A target is known by its *tag*: of a file its device, inode and time of birth (and the attempt that made it), of a device its
//! number, its sequence number and the machine's boot. The coordinator keeps the tag, in the run's journal too, before the first
//! byte is written, and gives it to the next attempt. That one goes on only if it finds that very file or device. Anything else is
//! a target like any other, and must be empty. (Whoever truncates or writes the very file or device meanwhile is not noticed.) A
//! target must not be mounted in any case.

mod checks;
mod error;
mod stream;
mod volume;

pub use error::TargetError;
pub use stream::{StreamPartial, StreamTarget};
pub use volume::VolumeTarget;

/// How a volume is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct TargetOptions {
    /// Write to a device that is mounted or not empty, or over an existing file.
    pub force: bool,
    /// Zero the rest of a target that is larger than the volume.
    pub discard_rest: bool,
}
