//! Where objects are stored: a narrow trait, its errors, and its implementations.
//!
//! | store | for |
//! |---|---|
//! | [`directory`] | the embedded default, `file://` |
//! | [`s3`] | S3-compatible object storage with Object Lock |
//! | `memory`, `faulty` | tests: versions, delete markers, locks with a clock one sets; faults before and after |
//!
//! Decorators, outermost first: [`retry`] (bounded, slows down on SlowDown, reads back unknown outcomes), then, in tests,
//! `faulty`. One [conformance suite](conformance) runs against all of them and a real S3 server.

#[cfg(any(test, feature = "test-util"))]
pub mod conformance;
pub mod connect;
pub mod directory;
mod failure;
#[cfg(any(test, feature = "test-util"))]
pub mod faulty;
pub mod grant;
mod key;
pub mod listing;
#[cfg(any(test, feature = "test-util"))]
pub mod memory;
pub mod redeem;
pub mod retry;
pub mod s3;
pub mod throttle;
mod url;

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

pub use failure::{CreateError, DeleteError, Failure, GetError, Happened, Operation, Trouble};
pub use key::Key;
use listing::{Mark, Page};
pub use url::{StoreUrl, UrlError};

use crate::clock::Moment;
use grant::{GetGrant, PutGrant, PutTerms};

/// A version of an object, as the store names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub String);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A lock on an object: until when, and how firm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Whether a principal with the bypass right may still delete.
    pub firmness: Firmness,
    /// It can't be deleted before.
    pub until: Moment,
}

/// The two modes of Object Lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Firmness {
    /// It may be bypassed with a special right.
    Governance,
    /// It may not be bypassed.
    Compliance,
}

/// What the store reports of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which version.
    pub version: Version,
    /// Bytes.
    pub length: u64,
    /// When it was stored, by the store's clock.
    pub modified: Moment,
    /// Its lock.
    pub lock: Option<Lock>,
    /// CRC-32 of the content, where the store keeps it.
    pub crc32: Option<u32>,
}

/// One line of a listing of versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The key.
    pub key: Key,
    /// The version.
    pub version: Version,
    /// Bytes (0 for a delete marker).
    pub length: u64,
    /// When it was stored, by the store's clock.
    pub modified: Moment,
    /// Whether it hides the older versions.
    pub delete_marker: bool,
    /// Whether a read without a version returns it.
    pub latest: bool,
}

/// How the store is set up, by its own report. `init` tries what matters and does not rely on this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Objects can be locked.
    pub locks: bool,
    /// A server enforces the locks, and a writer can't get around it.
    pub enforced: bool,
    /// It keeps a CRC-32 per object.
    pub checksums: bool,
    /// It keeps several versions per key.
    pub versions: bool,
    /// It locks new objects by itself, which would make leases undeletable.
    pub default_retention: bool,
}

/// Objects under keys. All methods may be called from many tasks at once.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The location, for people.
    fn describe(&self) -> String;

    /// An address of the location that no other location has. For a bucket it includes the provider.
    fn address(&self) -> String {
        self.describe()
    }

    /// What the store can do. If there is a server, it is asked.
    async fn capabilities(&self) -> Result<Capabilities, Failure>;

    /// An identity that distinguishes this place from another one at the same address, such as a folder that replaced a moved
    /// one. A run compares it at its start and before its commit.
    async fn identity(&self) -> Result<String, Failure>;

    /// Creates the object unless the key is taken. The object is durable and locked when this returns.
    async fn create(&self, key: &Key, body: Bytes, lock: Option<Lock>) -> Result<Version, CreateError>;

    /// Reads an object, or a range of it. The body has exactly the requested length, or this fails; a range that goes past the
    /// end is cut at the end of the object.
    async fn get(&self, key: &Key, version: Option<&Version>, range: Option<Range<u64>>) -> Result<Bytes, GetError>;

    /// What the store reports of an object.
    async fn head(&self, key: &Key, version: Option<&Version>) -> Result<Head, GetError>;

    /// The lock of one version, from a request of its own. [`Store::head`] returns the same for versions that nothing hides.
    async fn lock_of(&self, key: &Key, version: &Version) -> Result<Option<Lock>, GetError>;

    /// One page of the versions and delete markers under a prefix; it starts where an earlier page ended.
    async fn versions_page(&self, prefix: &str, from: Option<&Mark>) -> Result<Page<Listed>, Failure>;

    /// One page of the readable keys under a prefix; it starts where an earlier page ended.
    async fn keys_page(&self, prefix: &str, from: Option<&Mark>) -> Result<Page<Key>, Failure>;

    /// All versions and delete markers under a prefix, by key, newest first within a key.
    async fn versions(&self, prefix: &str) -> Result<Vec<Listed>, Failure> {
        listing::versions(self, prefix).await
    }

    /// Moves the lock's end to a later moment. An end before the present one is refused.
    async fn extend_lock(&self, key: &Key, version: &Version, lock: Lock) -> Result<(), GetError>;

    /// Deletes one version for good. A version that isn't there counts as deleted.
    async fn delete(&self, key: &Key, version: &Version) -> Result<(), DeleteError>;

    /// A grant to create exactly one object.
    async fn grant_put(&self, terms: &PutTerms) -> Result<PutGrant, Failure>;

    /// A grant to read one version of one object.
    async fn grant_get(&self, key: &Key, version: &Version) -> Result<GetGrant, Failure>;
}

/// A store behind a pointer.
pub type SharedStore = Arc<dyn Store>;

/// The newest visible object of each key under `prefix` (an object under a delete marker is not visible).
///
/// # Errors
/// As [`Store::versions`].
pub async fn list(store: &dyn Store, prefix: &str) -> Result<Vec<Listed>, Failure> {
    Ok(store.versions(prefix).await?.into_iter().filter(|l| l.latest && !l.delete_marker).collect())
}

/// Reads a whole object, unless it is longer than an object of its kind can be.
///
/// # Errors
/// As [`Store::get`]; [`Trouble::Foreign`] for an object that is too long.
pub async fn read(store: &dyn Store, key: &Key, version: Option<&Version>) -> Result<Bytes, GetError> {
    let max = key.length_max();
    let bytes = store.get(key, version, Some(0..max + 1)).await?;
    if bytes.len() as u64 > max { Err(too_long(key, max).into()) } else { Ok(bytes) }
}

/// Like [`read`], for a listed version. A version that is listed as too long is not requested.
///
/// # Errors
/// As [`read`].
pub async fn read_listed(store: &dyn Store, listed: &Listed) -> Result<Bytes, GetError> {
    let max = listed.key.length_max();
    if listed.length > max {
        return Err(too_long(&listed.key, max).into());
    }
    // A sparse file costs nothing to plant, but reading it costs as much as its apparent length.
    if listed.length > LOOKED_AT {
        let begin = store.get(&listed.key, Some(&listed.version), Some(0..BEGIN)).await?;
        if begin.iter().all(|b| *b == 0) {
            let why = "it begins with zeros, and no object of ours does";
            return Err(Failure::new(Operation::Get, &listed.key, Trouble::Foreign).because(why).into());
        }
    }
    read(store, &listed.key, Some(&listed.version)).await
}

/// If a listed object is longer than this, its beginning is checked first; the next constant is how many bytes of it.
const LOOKED_AT: u64 = 4 << 20;
const BEGIN: u64 = 16;

fn too_long(key: &Key, max: u64) -> Failure {
    let why = format!("it is longer than {max} bytes, and no such object is");
    Failure::new(Operation::Get, key, Trouble::Foreign).because(why)
}

#[cfg(test)]
mod tests;
