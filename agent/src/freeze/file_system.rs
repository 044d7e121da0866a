//! A mounted file system, held open so that it can be thawed without looking at a path.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;

use super::mounts::{self, Mount};

mod calls {
    // <linux/fs.h>: the argument of both is ignored.
    nix::ioctl_readwrite!(fifreeze, b'X', 119, nix::libc::c_int);
    nix::ioctl_readwrite!(fithaw, b'X', 120, nix::libc::c_int);
}

/// A mounted file system.
#[derive(Debug)]
pub(super) struct FileSystem {
    root: File,
    /// Where it is mounted.
    pub(super) mount: Mount,
}

impl FileSystem {
    /// Opens what is mounted here. `all`: the mounts that are known.
    pub(super) fn open(point: &Path, all: &[Mount]) -> io::Result<Self> {
        let root = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(point)?;
        let mount = mounts::of(&root, all)?;
        Ok(Self { root, mount })
    }

    /// Writes what waits to be written.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(nix::unistd::syncfs(&self.root)?)
    }

    /// Freezes it. Writers wait from now on.
    ///
    /// # Errors
    /// What the system says; of a file system that can't be frozen, and of one that is frozen already, in words.
    pub(super) fn freeze(&self) -> io::Result<()> {
        let mut ignored = 0;
        // SAFETY: the descriptor is open; the call reads and writes at most one int, at a valid address.
        #[expect(unsafe_code, reason = "ioctl")]
        let done = unsafe { calls::fifreeze(self.root.as_raw_fd(), &raw mut ignored) };
        match done {
            Ok(_) => Ok(()),
            Err(Errno::EBUSY) => Err(io::Error::new(io::ErrorKind::ResourceBusy, "somebody else has frozen it")),
            Err(Errno::EOPNOTSUPP | Errno::ENOTTY) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "file systems of this kind can't be frozen"))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Thaws it. Returns whether it was frozen.
    pub(super) fn thaw(&self) -> io::Result<bool> {
        let mut ignored = 0;
        // SAFETY: the descriptor is open; the call reads and writes at most one int, at a valid address.
        #[expect(unsafe_code, reason = "ioctl")]
        let done = unsafe { calls::fithaw(self.root.as_raw_fd(), &raw mut ignored) };
        match done {
            Ok(_) => Ok(true),
            Err(Errno::EINVAL) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}
