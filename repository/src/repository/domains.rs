//! The keys of dedup domains: finding them, and making them for an application that has none.
//!
//! All versions of a domain's object are read, oldest first, so that a delete marker or rubbish on top of it hides nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Repository;
use super::renew::by_key;
use crate::clock::Moment;
use crate::id::{AppHash, DomainId};
use crate::keys::domain::{Domain, DomainError};
use crate::point::commit::{CommitError, create_checked};
use crate::store::listing::versions_checked;
use crate::store::{Failure, GetError, Key, Listed, Trouble, Version, read, read_listed};

/// How many numbers of an application's keys may be taken by rubbish before the attempt to make new keys is given up.
const TAKEN_MAX: usize = 64;

/// Why the keys of a domain are not available.
#[derive(Debug, thiserror::Error)]
pub enum NoDomain {
    /// Not there.
    #[error(
        "{0} is missing: the keys of the application, without which none of its restore points of these keys can be opened"
    )]
    Missing(Key),
    /// There is an object, but none of ours.
    #[error("{key} is refused")]
    Refused {
        /// The object.
        key: Key,
        /// Why.
        #[source]
        reason: DomainError,
    },
    /// The store can't be asked.
    #[error(transparent)]
    Store(#[from] Failure),
}

/// Domains that were opened. They never change.
#[derive(Default)]
pub(super) struct Opened(Mutex<HashMap<DomainId, Arc<Domain>>>);

impl Opened {
    fn get(&self, id: &DomainId) -> Option<Arc<Domain>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn put(&self, domain: Domain) -> Arc<Domain> {
        let domain = Arc::new(domain);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(domain.id(), domain.clone());
        domain
    }
}

impl Repository {
    /// The keys of a domain.
    ///
    /// # Errors
    /// [`NoDomain`].
    pub async fn domain(&self, id: DomainId) -> Result<Arc<Domain>, NoDomain> {
        match self.opened.get(&id) {
            Some(domain) => Ok(domain),
            None => Ok(self.opened.put(self.read_domain(id).await?)),
        }
    }

    /// Like [`Self::domain`], but always from the store, not from memory.
    async fn read_domain(&self, id: DomainId) -> Result<Domain, NoDomain> {
        let key = Key::domain(&id);
        let mut refused = match read(&*self.store, &key, None).await {
            Ok(object) => match self.open_domain(&object, &key) {
                Ok(domain) => return Ok(domain),
                Err(e) => Some(e),
            },
            Err(GetError::NotFound(_)) => None,
            Err(GetError::Failed(f)) if f.is_of_one_object() => None,
            Err(GetError::Failed(f)) => return Err(f.into()),
        };
        let mut listed = versions_checked(&*self.store, key.as_str()).await?;
        listed.retain(|l| l.key == key);
        match self.oldest(&key, &listed).await? {
            Some((domain, _)) => return Ok(domain),
            None if listed.iter().any(|l| !l.delete_marker) => {
                refused = refused.or(Some(DomainError::Header(crate::wire::HeaderError::Foreign)));
            }
            None => {}
        }
        Err(match refused {
            Some(reason) => NoDomain::Refused { key, reason },
            None => NoDomain::Missing(key),
        })
    }

    fn open_domain(&self, object: &[u8], key: &Key) -> Result<Domain, DomainError> {
        Domain::open(object, key, &self.config.id, &self.ring)
    }

    /// The oldest authentic one of the listed versions of a key. An unreadable version does not hide the ones after it.
    pub(super) async fn oldest(&self, key: &Key, of_key: &[Listed]) -> Result<Option<(Domain, Version)>, Failure> {
        let mut unreadable = None;
        for l in of_key.iter().rev().filter(|l| !l.delete_marker) {
            match read_listed(&*self.store, l).await {
                Ok(object) => match self.open_domain(&object, key) {
                    Ok(domain) => return Ok(Some((domain, l.version.clone()))),
                    Err(e) => tracing::warn!(object = %key, version = %l.version, why = %e, "left out"),
                },
                Err(GetError::NotFound(_)) => {}
                Err(GetError::Failed(f)) if f.is_of_one_object() => {
                    tracing::warn!(object = %key, version = %l.version, why = %f, "left out");
                    if f.trouble != Trouble::Foreign {
                        unreadable = Some(f);
                    }
                }
                Err(GetError::Failed(f)) => return Err(f),
            }
        }
        // The unreadable one may be the right one.
        unreadable.map_or(Ok(None), Err)
    }

    /// The newest keys of an application.
    async fn newest_domain(&self, app: &AppHash) -> Result<Option<Domain>, Failure> {
        let listed = versions_checked(&*self.store, &Key::domains(Some(app))).await?;
        let of_domains = by_key(listed.into_iter().filter(|l| l.key.parse_domain().is_some()));
        let mut unreadable = None;
        for (key, of_key) in of_domains.iter().rev() {
            match self.oldest(key, of_key).await {
                Ok(Some((domain, _))) => return Ok(Some(domain)),
                Ok(None) => {}
                Err(f) if f.is_of_one_object() => unreadable = unreadable.or(Some(f)),
                Err(f) => return Err(f),
            }
        }
        unreadable.map_or(Ok(None), Err)
    }

    /// The keys that a backup of an application uses: the application's newest, or new ones. `period` is how long its points are
    /// locked. Keys in memory do not count: if keys were nowhere else, nobody could open the points made with them.
    ///
    /// # Errors
    /// [`CommitError`].
    pub async fn domain_to_write(
        &self,
        app: &AppHash,
        period: std::time::Duration,
    ) -> Result<Arc<Domain>, CommitError> {
        if let Some(domain) = self.newest_domain(app).await? {
            return Ok(self.opened.put(domain));
        }
        // Points may need keys that are gone. Other keys of the same number would be taken for those.
        let points = self.catalog().list(Some(app)).await?.points;
        let first = points.iter().map(|f| f.root.domain).max().map_or(0, |n| n.saturating_add(1));
        for number in (first..=u32::MAX).take(TAKEN_MAX) {
            let id = DomainId { app: *app, number };
            match self.read_domain(id).await {
                // A listing that leaves out the keys must not lead to new keys.
                Ok(domain) => return Ok(self.opened.put(domain)),
                Err(NoDomain::Store(f)) if !f.is_of_one_object() => return Err(f.into()),
                Err(_) => {}
            }
            if number > 0 {
                tracing::error!(domain = %id, "the application's keys are gone, or are none of this repository's; it gets new ones, and its next \
                    restore point is a full one. Points of the old keys can't be opened");
            }
            let (domain, object) = Domain::generate(id, &self.config.id, &self.ring);
            let lock = self.key_lock(Moment::now(), period);
            match create_checked(&*self.store, &Key::domain(&id), object.into(), lock).await {
                Ok(()) => return Ok(self.opened.put(domain)),
                // Another backup was faster, or somebody took the name.
                Err(CommitError::Ended(_)) => {}
                Err(e) => return Err(e),
            }
            match self.read_domain(id).await {
                Ok(domain) => return Ok(self.opened.put(domain)),
                Err(NoDomain::Store(f)) if !f.is_of_one_object() => return Err(f.into()),
                Err(_) => {}
            }
        }
        Err(CommitError::Squatted(Key::domain(&DomainId { app: *app, number: first }), "rubbish"))
    }

    /// Checks, before a commit, that the keys of a point are in the store. Keys that were deleted meanwhile are written again.
    ///
    /// # Errors
    /// [`CommitError`].
    pub async fn keys_still_there(&self, domain: &Domain, period: std::time::Duration) -> Result<(), CommitError> {
        let id = domain.id();
        match self.read_domain(id).await {
            Ok(found) if found.is_same(domain) => return self.renew_if_due(id, period).await,
            Ok(_) => return Err(CommitError::Squatted(Key::domain(&id), "other keys")),
            Err(NoDomain::Store(f)) => return Err(f.into()),
            Err(e) => {
                tracing::error!(domain = %id, why = %e, "the application's keys were deleted while a backup used them; they are written again")
            }
        }
        let lock = self.key_lock(Moment::now(), period);
        match create_checked(&*self.store, &Key::domain(&id), domain.object().to_vec().into(), lock).await {
            Ok(()) => Ok(()),
            Err(CommitError::Ended(key)) => Err(CommitError::Squatted(key, "rubbish")),
            Err(e) => Err(e),
        }
    }
}
