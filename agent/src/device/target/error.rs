//! Why a target can't be used, or failed.

use std::io;
use std::path::PathBuf;

use crate::device::allowed::NotAllowed;

/// Why a target can't be used, or failed.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
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
    /// Neither device nor file.
    #[error("{path:?} is neither a block device nor a regular file")]
    Kind {
        /// Which one.
        path: PathBuf,
    },
    /// Too small.
    #[error("{path:?} has {found} bytes, the volume {wanted}: choose a target of at least that size")]
    Small {
        /// Which one.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The volume's.
        wanted: u64,
    },
    /// Mounted here.
    #[error("{path:?} is {by}: unmount it, or pass --force")]
    Mounted {
        /// Which one.
        path: PathBuf,
        /// "mounted at", and where.
        by: String,
    },
    /// The kernel holds it.
    #[error("{path:?} is in use ({by}): end that first; nothing insists on it")]
    InUse {
        /// Which one.
        path: PathBuf,
        /// By what.
        by: String,
    },
    /// Another restore writes to it.
    #[error("{path:?} is being restored to by another process: wait for it, or stop it")]
    Busy {
        /// Which one.
        path: PathBuf,
    },
    /// It isn't there, and must not be made.
    #[error("{path:?} does not exist: {why}")]
    Missing {
        /// Which one.
        path: PathBuf,
        /// Why it isn't made.
        why: &'static str,
    },
    /// There is something on it.
    #[error("{path:?} is not empty: pass --force to write over it")]
    NotEmpty {
        /// Which one.
        path: PathBuf,
    },
    /// A write failed.
    #[error("can't write {path:?} at byte {offset}")]
    Write {
        /// Which one.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The attempt was given up meanwhile.
    #[error("{path:?} was given up")]
    Abandoned {
        /// Which one.
        path: PathBuf,
    },
    /// What was written could not be made durable.
    #[error("can't make {path:?} durable")]
    Sync {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}
