//! The locks of a point and of its packs: what they must be, whether they are, and how those of reused packs are extended.

use std::time::Duration;

use super::CommitError;
use crate::clock::Moment;
use crate::config::{Config, LockPolicy};
use crate::index::PackInfo;
use crate::store::{GetError, Head, Key, Lock, Store, Version};

/// The lock for a point's objects, and the longer one for its packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locks {
    /// What the root promises.
    pub point: Option<Lock>,
    /// The same, rounded up to the quantum.
    pub packs: Option<Lock>,
}

impl Locks {
    /// The locks for a point of `moment` that stays locked for `period`.
    pub fn of(config: &Config, moment: Moment, period: Duration) -> Self {
        let Some(firmness) = config.lock.mode.firmness() else { return Self { point: None, packs: None } };
        let policy = LockPolicy { period, ..config.lock };
        let until = moment.plus(period).ceil(Duration::from_secs(1));
        Self {
            point: Some(Lock { firmness, until }),
            packs: Some(Lock { firmness, until: until.ceil(policy.quantum()) }),
        }
    }
}

/// Invariant 1, for one object: it is locked at least as firmly and as long as wanted.
pub fn locked_enough(found: Option<Lock>, wanted: Option<Lock>) -> bool {
    wanted.is_none_or(|w| found.is_some_and(|f| f.until >= w.until && f.firmness >= w.firmness))
}

/// The lock of a version. If a HEAD shows less than is wanted, the store is asked for the lock itself: some stores show no lock
/// for a version that a delete marker hides.
///
/// # Errors
/// As [`Store::lock_of`].
pub async fn real_lock(
    store: &dyn Store,
    key: &Key,
    version: &Version,
    head: &Head,
    wanted: Option<Lock>,
) -> Result<Option<Lock>, GetError> {
    if locked_enough(head.lock, wanted) { Ok(head.lock) } else { store.lock_of(key, version).await }
}

/// Returns the lock that was found.
pub(super) async fn check_lock(
    store: &dyn Store,
    key: &Key,
    head: &Head,
    wanted: Option<Lock>,
) -> Result<Option<Lock>, CommitError> {
    let found = match real_lock(store, key, &head.version, head, wanted).await {
        Ok(found) => found,
        Err(GetError::NotFound(_)) => return Err(CommitError::Vanished(key.clone())),
        Err(GetError::Failed(f)) => return Err(f.into()),
    };
    match wanted {
        Some(w) if !locked_enough(found, wanted) => Err(CommitError::Lock { key: key.clone(), wanted: w.until, found }),
        _ => Ok(found),
    }
}

/// Extends a reused pack's lock if it is too short, and checks the pack by version id.
pub(super) async fn reuse(
    store: &dyn Store,
    mut info: PackInfo,
    locks: Locks,
) -> Result<(PackInfo, bool), CommitError> {
    let key = Key::pack(&info.id);
    let look = async || match store.head(&key, Some(&info.version)).await {
        Ok(head) if head.length == info.length => Ok(head),
        Ok(head) => {
            Err(CommitError::Differs { key: key.clone(), what: "length", found: head.length, wanted: info.length })
        }
        Err(GetError::NotFound(_)) => Err(CommitError::Vanished(key.clone())),
        Err(GetError::Failed(f)) => Err(f.into()),
    };
    let mut extended = false;
    // The known lock from the last placement saves one request. What counts is what the store says afterwards.
    let short = |lock: &Lock| info.locked_until.is_some_and(|until| until < lock.until);
    if let (Some(_), Some(lock)) = (locks.point.filter(short), locks.packs) {
        match store.extend_lock(&key, &info.version, lock).await {
            Ok(()) => extended = true,
            Err(GetError::NotFound(_)) => return Err(CommitError::Vanished(key.clone())),
            // Another run may have extended the lock further; a lock can't be shortened.
            Err(GetError::Failed(f)) => tracing::debug!(%key, reason = %f, "a lock was not extended; it is looked at"),
        }
    }
    let mut head = look().await?;
    let failed = |e| match e {
        GetError::NotFound(_) => CommitError::Vanished(key.clone()),
        GetError::Failed(f) => CommitError::Store(f),
    };
    let found = real_lock(store, &key, &info.version, &head, locks.point).await.map_err(failed)?;
    if let (false, Some(lock)) = (locked_enough(found, locks.point), locks.packs) {
        match store.extend_lock(&key, &info.version, lock).await {
            Ok(()) => {}
            Err(e) => return Err(failed(e)),
        }
        extended = true;
        head = look().await?;
    }
    info.locked_until = check_lock(store, &key, &head, locks.point).await?.map(|l| l.until);
    Ok((info, extended))
}
