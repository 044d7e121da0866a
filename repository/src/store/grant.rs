//! Grants: permission to store exactly one object, or to read one, without a credential of the store.
//!
//! There are two kinds of grant: a presigned URL, and, for a directory, the one file. The second kind works where the agent sees
//! the same directory: in the embedded mode, or on a shared mount.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::directory::object::LocalObject;
use super::{CreateError, GetError, Key, Lock, Trouble, Version};

/// How long a grant to store may be used.
pub const PUT_LIFETIME: Duration = Duration::from_secs(15 * 60);
/// How long a grant to read may be used. It is long because ranges are planned ahead of a slow target.
pub const GET_LIFETIME: Duration = Duration::from_secs(6 * 3600);

/// The terms of a grant to store; all of them are signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutTerms {
    /// The one key.
    pub key: Key,
    /// The exact length.
    pub length: u64,
    /// CRC-32 of the content.
    pub crc32: u32,
    /// The lock that the object gets.
    pub lock: Option<Lock>,
}

/// A grant to create one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutGrant {
    /// PUT to this URL, with these headers and no others.
    Presigned {
        /// The URL.
        url: String,
        /// Signed headers.
        headers: Vec<(String, String)>,
    },
    /// Create this file.
    File {
        /// The repository's directory.
        root: PathBuf,
        /// The key in it.
        key: Key,
        /// Its lock.
        lock: Option<Lock>,
    },
}

/// A grant to read one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GetGrant {
    /// GET this URL.
    Presigned {
        /// The URL.
        url: String,
        /// Signed headers.
        headers: Vec<(String, String)>,
    },
    /// Read this file.
    File {
        /// The repository's directory.
        root: PathBuf,
        /// The key in it.
        key: Key,
    },
}

/// Uses grants. This is the agent's only way to the store.
#[async_trait]
pub trait Redeem: Send + Sync + 'static {
    /// Stores `body`, which is durable when this returns. Returns the version that the store gave it, if the store names it: by
    /// the time somebody asks for it, the latest version may be somebody else's.
    async fn put(&self, grant: &PutGrant, body: Bytes) -> Result<Option<Version>, CreateError>;
    /// Reads exactly `range` into `out`, whatever `out` held; it then has the range's length. The buffer is the caller's, since a
    /// fresh one per range costs more than the read (its pages are cleared before they are filled).
    async fn get(&self, grant: &GetGrant, range: Range<u64>, out: &mut Vec<u8>) -> Result<(), GetError>;
    /// Opens an object that is on this machine, so that parts of `range` can be read just before they are needed. `None` if the
    /// object has to be fetched by [`Self::get`]. `None` is never wrong, only slower.
    async fn open(&self, _grant: &GetGrant, _range: Range<u64>) -> Result<Option<LocalObject>, GetError> {
        Ok(None)
    }
}

/// Maps an HTTP status to what it means for us.
pub(super) fn trouble_of(status: u16, code: &str) -> Trouble {
    match (status, code) {
        (_, "RequestTimeTooSkewed") => Trouble::Skewed,
        (_, "ExpiredToken" | "ExpiredTokenException" | "RequestExpired") => Trouble::Expired,
        (_, "SlowDown") | (503 | 429, _) => Trouble::Busy,
        (_, "BadDigest" | "IncompleteBody" | "RequestTimeout" | "XAmzContentSHA256Mismatch") => Trouble::Garbled,
        (507, _) => Trouble::Full,
        (401 | 403, _) => Trouble::Denied,
        (s, _) if s >= 500 => Trouble::Unreachable,
        _ => Trouble::Refused,
    }
}
