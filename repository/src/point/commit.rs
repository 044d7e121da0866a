//! The commit: the single moment at which a restore point begins to exist.
//!
//! The order (design section 6, invariants 1 and 2): extend the locks of reused packs, check every pack by version id, create the
//! placement, create the root. A pack gets in only as a [`StoredPack`]. Only [`seal`] makes one, after asking the store.

mod error;
mod locks;

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use futures::StreamExt;

use super::catalog::Catalog;
use super::placement::Placement;
use super::root::{Root, RootBody};
use crate::clock::{Moment, SKEW_MAX};
use crate::config::Config;
use crate::id::PackId;
use crate::index::PackInfo;
use crate::keys::{Domain, KeyRing};
use crate::pack::{PackKind, Place, SealedKey};
use crate::store::{CreateError, GetError, Happened, Key, Lock, Store, Version};
pub use error::CommitError;
pub use locks::{Locks, locked_enough, real_lock};
use locks::{check_lock, reuse};

/// Calls in flight while packs are checked and their locks extended.
const PARALLEL: usize = 256;

/// How many placements earlier leaders of the run may have written before this one.
const PLACEMENTS_MAX: u32 = 64;

/// A receipt: this pack is durable, whole and locked. Only [`seal`] makes one, and [`Commit`] consumes it.
#[derive(Debug)]
#[must_use]
pub struct StoredPack {
    info: PackInfo,
}

impl StoredPack {
    /// What is known of it.
    pub fn info(&self) -> &PackInfo {
        &self.info
    }
}

/// What an uploader reports of the pack that it stored.
#[derive(Clone, Debug)]
pub struct StoredReport {
    /// The pack.
    pub id: PackId,
    /// What it holds.
    pub kind: crate::pack::PackKind,
    /// Bytes.
    pub length: u64,
    /// BLAKE3 of the bytes.
    pub digest: [u8; 32],
    /// CRC-32 of the bytes.
    pub crc32: u32,
    /// The sealed key.
    pub key: SealedKey,
    /// The version that the store gave the object when it was stored; `None`: the latest.
    pub version: Option<Version>,
}

/// Asks the store what it really holds, and makes the receipt.
///
/// # Errors
/// [`CommitError`] unless the object is there, whole and locked.
pub async fn seal(store: &dyn Store, claim: StoredReport, lock: Option<Lock>) -> Result<StoredPack, CommitError> {
    let key = Key::pack(&claim.id);
    let head = match store.head(&key, claim.version.as_ref()).await {
        Ok(head) => head,
        Err(GetError::NotFound(_)) => return Err(CommitError::Vanished(key)),
        Err(GetError::Failed(f)) => return Err(f.into()),
    };
    if head.length != claim.length {
        return Err(CommitError::Differs { key, what: "length", found: head.length, wanted: claim.length });
    }
    if let Some(crc) = head.crc32.filter(|&c| c != claim.crc32) {
        return Err(CommitError::Differs { key, what: "CRC-32", found: crc.into(), wanted: claim.crc32.into() });
    }
    let locked_until = check_lock(store, &key, &head, lock).await?.map(|l| l.until);
    let StoredReport { id, kind, length, digest, key: sealed, .. } = claim;
    Ok(StoredPack { info: PackInfo { id, kind, length, digest, version: head.version, key: sealed, locked_until } })
}

/// Everything that a commit needs.
pub struct Commit<'a> {
    /// The store.
    pub store: &'a dyn Store,
    /// The configuration.
    pub config: &'a Config,
    /// Signs.
    pub ring: &'a KeyRing,
    /// The domain; the root is sealed to its metadata key.
    pub domain: &'a Domain,
    /// The readable part of the root; its key was fixed when the run started.
    pub root: Root,
    /// The sealed part of the root.
    pub body: RootBody,
    /// Where the topmost map chunks are.
    pub maps: Vec<Option<Place>>,
    /// Locks.
    pub locks: Locks,
    /// Receipts of what this run stored.
    pub stored: Vec<StoredPack>,
    /// The packs that it reuses.
    pub reused: Vec<PackInfo>,
}

/// A committed point.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The root.
    pub root: Root,
    /// Bytes of root and placement.
    pub stored_bytes: u64,
    /// How many locks were extended.
    pub locks_extended: u64,
}

impl Commit<'_> {
    /// Commits.
    ///
    /// # Errors
    /// [`CommitError`]. The point then does not exist, with two exceptions: [`CommitError::Unknowable`], and an error about the
    /// root's own key, whose object the store created but did not keep as asked; `verify` names such a point.
    pub async fn run(self) -> Result<Committed, CommitError> {
        let Self { store, config, ring, domain, root, body, maps, locks, stored, reused } = self;
        let mut packs: BTreeMap<PackId, PackInfo> = BTreeMap::new();
        let fresh: HashSet<PackId> = stored.iter().map(|s| s.info.id).collect();
        packs.extend(stored.into_iter().map(|s| (s.info.id, s.info)));
        let reused: Vec<PackInfo> = reused.into_iter().filter(|p| !fresh.contains(&p.id)).collect();

        let mut extended = 0;
        let checks = reused.into_iter().map(|info| reuse(store, info, locks));
        let mut checks = futures::stream::iter(checks).buffer_unordered(PARALLEL);
        while let Some(checked) = checks.next().await {
            let (info, was_extended) = checked?;
            extended += u64::from(was_extended);
            packs.insert(info.id, info);
        }
        drop(checks);

        let root_bytes = Bytes::from(root.encode(&body, ring, &domain.recipient(PackKind::Metadata))?);
        let (length, max) = (root_bytes.len() as u64, root.key().length_max());
        if length > max {
            return Err(CommitError::Long { length, max });
        }
        let mut placement = Placement {
            repository: config.id,
            root: *blake3::hash(&root_bytes).as_bytes(),
            number: 0,
            made: Moment::now(),
            maps,
            packs: packs.into_values().collect(),
        };
        // Another leader of the same run may have written a placement and stopped there. Each placement binds its own root, and
        // readers use the newest that binds the existing root.
        let placement_len = loop {
            let bytes = Bytes::from(placement.encode(ring));
            let len = bytes.len();
            let max = Key::placement(&root.id(), placement.number).length_max();
            if len as u64 > max {
                return Err(CommitError::Long { length: len as u64, max });
            }
            match create_checked(store, &Key::placement(&root.id(), placement.number), bytes, locks.point).await {
                Ok(()) => break len,
                Err(CommitError::Ended(_)) if placement.number < PLACEMENTS_MAX => placement.number += 1,
                Err(e) => return Err(e),
            }
        };
        let stored_bytes = (placement_len + root_bytes.len()) as u64;

        let key = root.key();
        match create_checked(store, &key, root_bytes, locks.point).await {
            Ok(()) => Ok(Committed { root, stored_bytes, locks_extended: extended }),
            Err(CommitError::Store(f)) if f.happened == Happened::Maybe => Err(CommitError::Unknowable(f)),
            Err(CommitError::Ended(key)) => Err(taken(store, config, &root, key).await?),
            Err(e) => Err(e),
        }
    }
}

/// What has taken a root's key.
async fn taken(store: &dyn Store, config: &Config, root: &Root, key: Key) -> Result<CommitError, CommitError> {
    let catalog = Catalog { store, repository: config.id, signer: config.keys.signing };
    if catalog.has(&root.app, &root.id()).await? {
        return Ok(CommitError::Ended(key));
    }
    let read = store.versions(key.as_str()).await?.iter().any(|v| v.key == key && !v.delete_marker);
    Ok(CommitError::Squatted(key, if read { "rubbish" } else { "a delete marker" }))
}

/// Creates an object and checks that it is really there, whole and locked. [`CommitError::Ended`]: its key is taken.
pub(crate) async fn create_checked(
    store: &dyn Store,
    key: &Key,
    body: Bytes,
    lock: Option<Lock>,
) -> Result<(), CommitError> {
    let length = body.len() as u64;
    let version = match store.create(key, body, lock).await {
        Ok(version) => version,
        Err(CreateError::Exists(_)) => return Err(CommitError::Ended(key.clone())),
        Err(CreateError::Failed(f)) => return Err(f.into()),
    };
    let head = match store.head(key, Some(&version)).await {
        Ok(head) => head,
        Err(GetError::NotFound(_)) => return Err(CommitError::Vanished(key.clone())),
        // The object was created. A failure to look at it does not undo that.
        Err(GetError::Failed(f)) => return Err(f.maybe().into()),
    };
    if head.length != length {
        return Err(CommitError::Differs { key: key.clone(), what: "length", found: head.length, wanted: length });
    }
    check_lock(store, key, &head, lock).await.map(drop)
}

/// Compares the store's clock with ours. The store's time comes from an object that was just made.
///
/// # Errors
/// [`CommitError::Skew`] beyond [`SKEW_MAX`].
pub fn check_clock(modified: Moment, ours: Moment) -> Result<(), CommitError> {
    if modified.since(ours) > SKEW_MAX || ours.since(modified) > SKEW_MAX {
        return Err(CommitError::Skew { store: modified, ours });
    }
    Ok(())
}

/// Asks the store when an object was made that we just created, and refuses the run if the clocks differ too much.
///
/// # Errors
/// [`CommitError`].
pub async fn check_store_clock(store: &dyn Store, key: &Key) -> Result<Moment, CommitError> {
    match store.head(key, None).await {
        Ok(head) => check_clock(head.modified, Moment::now()).map(|()| head.modified),
        Err(GetError::NotFound(_)) => Err(CommitError::Vanished(key.clone())),
        Err(GetError::Failed(f)) => Err(f.into()),
    }
}
