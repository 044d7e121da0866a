//! Key objects (`keys/…` and `domains/…`) under a rolling lock. If they were not locked, anybody who may delete them could make
//! every locked byte unreadable. If they were locked for good, an application could never be erased. So each is locked for 30
//! days at most, again and again.
//!
//! The leader renews the locks daily. Without a leader, a backup renews all of them if the lock of its own keys is a day old.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;

use super::Repository;
use crate::clock::Moment;
use crate::config::LockMode;
use crate::id::{AppHash, DomainId};
use crate::keys::wrapped::Authentic;
use crate::point::commit::{CommitError, locked_enough, real_lock};
use crate::store::listing::versions_checked;
use crate::store::{Failure, GetError, Key, Listed, Lock, Version, read_listed};

/// The longest lock of a key object, and so the longest delay of an erasure.
const ROLLING: Duration = Duration::from_secs(30 * 86_400);
/// A lock is left as it is until this share of its time has passed: 1/30, one day of 30.
const FRESH_SHARE: u32 = 30;
/// Objects that are checked in parallel.
const PARALLEL: usize = 16;

/// What a renewal found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renewed {
    /// Authentic key objects, of passwords and of applications.
    pub objects: u64,
    /// Locks that were extended.
    pub extended: u64,
    /// Applications that have restore points and no keys: their points can't be opened.
    pub without_keys: BTreeSet<AppHash>,
    /// Whether no password opens the repository any more; the recovery key does.
    pub no_password: bool,
}

/// How long key objects are locked in a repository whose points are locked for `period`.
pub fn rolling(period: Duration) -> Duration {
    period.min(ROLLING)
}

impl Repository {
    /// The lock of a key object that is written or renewed `now`.
    pub fn key_lock(&self, now: Moment, period: Duration) -> Option<Lock> {
        let firmness = self.config.lock.mode.firmness()?;
        Some(Lock { firmness, until: now.plus(rolling(period)).ceil(Duration::from_secs(1)) })
    }

    /// Renews the locks of all key objects if this domain's own lock is a day old, or shorter than it must be.
    ///
    /// # Errors
    /// [`CommitError`] when the domain's own lock can't be renewed.
    pub async fn renew_if_due(&self, domain: DomainId, period: Duration) -> Result<(), CommitError> {
        if self.config.lock.mode == LockMode::None {
            return Ok(());
        }
        let key = Key::domain(&domain);
        let mut listed = versions_checked(&*self.store, key.as_str()).await?;
        listed.retain(|l| l.key == key);
        let Some((_, version)) = self.oldest(&key, &listed).await? else { return Err(CommitError::Vanished(key)) };
        if self.renew(&key, &version, period).await? {
            let renewed = self.renew_keys(period).await?;
            tracing::info!(extended = renewed.extended, objects = renewed.objects, "locks of keys were renewed");
        }
        Ok(())
    }

    /// Renews the locks of all key objects, and checks whether any are missing. An object whose lock can't be renewed is named in
    /// the log.
    ///
    /// # Errors
    /// [`Failure`] when the store can't be asked.
    pub async fn renew_keys(&self, period: Duration) -> Result<Renewed, Failure> {
        let mut of_keys = by_key(versions_checked(&*self.store, Key::secrets()).await?);
        let of_domains = by_key(versions_checked(&*self.store, &Key::domains(None)).await?);
        of_keys.extend(of_domains);
        let mut renewed = Renewed { no_password: true, ..Renewed::default() };
        let mut with_keys = BTreeSet::new();
        let looks = of_keys.into_iter().map(|(key, of_key)| async move {
            let found = match self.authentic(&key, &of_key).await {
                Ok(found) => found,
                // An unreadable object must not keep the others from being renewed.
                Err(f) => {
                    tracing::error!(object = %key, why = %f, "a key can't be read; its lock is not renewed");
                    None
                }
            };
            let Some(version) = found else { return Ok::<_, Failure>((key, None)) };
            let extended = match self.renew(&key, &version, period).await {
                Ok(extended) => extended,
                Err(e) => {
                    tracing::error!(object = %key, why = crate::point::catalog::chain(&e), "the lock of a key can't be renewed");
                    false
                }
            };
            Ok((key, Some(extended)))
        });
        let mut looks = futures::stream::iter(looks).buffer_unordered(PARALLEL);
        while let Some(look) = looks.next().await {
            let (key, Some(extended)) = look? else { continue };
            renewed.objects += 1;
            renewed.extended += u64::from(extended);
            match key.parse_domain() {
                Some(domain) => drop(with_keys.insert(domain.app)),
                None => renewed.no_password = false,
            }
        }
        drop(looks);
        let points = versions_checked(&*self.store, &Key::points(None)).await?;
        let apps = points.iter().filter(|l| !l.delete_marker).filter_map(|l| Some(l.key.parse_point()?.0));
        renewed.without_keys = apps.filter(|app| !with_keys.contains(app)).collect();
        Ok(renewed)
    }

    /// The version of a key object that counts.
    async fn authentic(&self, key: &Key, of_key: &[Listed]) -> Result<Option<Version>, Failure> {
        if key.parse_domain().is_some() {
            return Ok(self.oldest(key, of_key).await?.map(|(_, version)| version));
        }
        for l in of_key.iter().rev().filter(|l| !l.delete_marker) {
            match read_listed(&*self.store, l).await {
                Ok(object) => {
                    let file = Authentic::decode(&object, &self.config.keys.signing);
                    if file.is_ok_and(|file| Key::secret(&file.id()) == *key) {
                        return Ok(Some(l.version.clone()));
                    }
                }
                Err(GetError::NotFound(_)) => {}
                Err(GetError::Failed(f)) if f.is_of_one_object() => {}
                Err(GetError::Failed(f)) => return Err(f),
            }
        }
        Ok(None)
    }

    /// Whether the lock of a key object was old enough to be extended, and was extended.
    async fn renew(&self, key: &Key, version: &Version, period: Duration) -> Result<bool, CommitError> {
        let now = Moment::now();
        let Some(wanted) = self.key_lock(now, period) else { return Ok(false) };
        let fresh = Lock { until: now.plus(rolling(period) - rolling(period) / FRESH_SHARE), ..wanted };
        let failed = |e| match e {
            GetError::NotFound(_) => CommitError::Vanished(key.clone()),
            GetError::Failed(f) => CommitError::Store(f),
        };
        let lock = async |wanted| {
            let head = self.store.head(key, Some(version)).await.map_err(failed)?;
            real_lock(&*self.store, key, version, &head, Some(wanted)).await.map_err(failed)
        };
        if locked_enough(lock(fresh).await?, Some(fresh)) {
            return Ok(false);
        }
        if let Err(e) = self.store.extend_lock(key, version, wanted).await {
            // Another process may have extended the lock further meanwhile; a lock can't be shortened.
            tracing::debug!(%key, reason = %e, "the lock of a key was not extended; it is looked at");
        }
        let found = lock(fresh).await?;
        if locked_enough(found, Some(fresh)) {
            return Ok(true);
        }
        Err(CommitError::Lock { key: key.clone(), wanted: wanted.until, found })
    }
}

/// The listed versions of each key. A listing has those of one key beside each other.
pub(super) fn by_key(listed: impl IntoIterator<Item = Listed>) -> Vec<(Key, Vec<Listed>)> {
    let mut out: Vec<(Key, Vec<Listed>)> = Vec::new();
    for l in listed {
        match out.last_mut() {
            Some((key, of_key)) if *key == l.key => of_key.push(l),
            _ => out.push((l.key.clone(), vec![l])),
        }
    }
    out
}
