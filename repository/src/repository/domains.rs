//! The keys of dedup domains: finding them, and making them for an application that has none.
//!
//! Every version of a domain's object is looked at, oldest first, so that a delete marker or rubbish on top of it hides nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Repository;
use crate::clock::Moment;
use crate::id::{AppHash, DomainId};
use crate::keys::domain::{Domain, DomainError};
use crate::point::commit::{CommitError, create_checked};
use crate::store::listing::versions_checked;
use crate::store::{Failure, GetError, Key, Listed, Trouble, Version, read, read_listed};

/// Keys of an application that may be taken by rubbish before a new one is given up.
const TAKEN_MAX: u32 = 64;

/// Why the keys of a domain can't be had.
#[derive(Debug, thiserror::Error)]
pub enum NoDomain {
    /// Not there.
    #[error(
        "{0} is missing: the keys of the application, without which none of its restore points of these keys can be opened"
    )]
    Missing(Key),
    /// There, and none of ours.
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

/// Domains that were opened: they never change.
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
        if let Some(domain) = self.opened.get(&id) {
            return Ok(domain);
        }
        let key = Key::domain(&id);
        let mut refused = match read(&*self.store, &key, None).await {
            Ok(object) => match self.open_domain(&object, &key) {
                Ok(domain) => return Ok(self.opened.put(domain)),
                Err(e) => Some(e),
            },
            Err(GetError::NotFound(_)) => None,
            Err(GetError::Failed(f)) if f.trouble == Trouble::Foreign => None,
            Err(GetError::Failed(f)) => return Err(f.into()),
        };
        let mut listed = versions_checked(&*self.store, key.as_str()).await?;
        listed.retain(|l| l.key == key);
        match self.oldest(&key, &listed).await? {
            Some((domain, _)) => return Ok(self.opened.put(domain)),
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

    /// The oldest authentic version among those that were listed of one key.
    pub(super) async fn oldest(&self, key: &Key, of_key: &[Listed]) -> Result<Option<(Domain, Version)>, Failure> {
        for l in of_key.iter().rev().filter(|l| !l.delete_marker) {
            match read_listed(&*self.store, l).await {
                Ok(object) => match self.open_domain(&object, key) {
                    Ok(domain) => return Ok(Some((domain, l.version.clone()))),
                    Err(e) => tracing::warn!(object = %key, version = %l.version, why = %e, "left out"),
                },
                Err(GetError::NotFound(_)) => {}
                Err(GetError::Failed(f)) if f.trouble == Trouble::Foreign => {
                    tracing::warn!(object = %key, version = %l.version, why = %f, "left out");
                }
                Err(GetError::Failed(f)) => return Err(f),
            }
        }
        Ok(None)
    }

    /// The newest keys of an application, and all numbers that are taken, also by rubbish.
    async fn newest_domain(&self, app: &AppHash) -> Result<(Option<Arc<Domain>>, Option<u32>), Failure> {
        let listed = versions_checked(&*self.store, &Key::domains(Some(app))).await?;
        let mut by_key: Vec<(Key, DomainId, Vec<Listed>)> = Vec::new();
        for l in listed {
            match by_key.last_mut() {
                Some((key, _, of_key)) if *key == l.key => of_key.push(l),
                _ => {
                    let Some(id) = l.key.parse_domain() else { continue };
                    by_key.push((l.key.clone(), id, vec![l]));
                }
            }
        }
        let taken = by_key.last().map(|(_, id, _)| id.number);
        for (key, id, of_key) in by_key.iter().rev() {
            if let Some(domain) = self.opened.get(id) {
                return Ok((Some(domain), taken));
            }
            if let Some((domain, _)) = self.oldest(key, of_key).await? {
                return Ok((Some(self.opened.put(domain)), taken));
            }
        }
        Ok((None, taken))
    }

    /// The keys that a backup of an application uses: its newest, or new ones. `period` is how long its points are locked.
    ///
    /// # Errors
    /// [`CommitError`].
    pub async fn domain_to_write(
        &self,
        app: &AppHash,
        period: std::time::Duration,
    ) -> Result<Arc<Domain>, CommitError> {
        let mut least = 0;
        for _ in 0..TAKEN_MAX {
            let (newest, taken) = self.newest_domain(app).await?;
            if let Some(domain) = newest {
                return Ok(domain);
            }
            // Points may need keys that are gone: other keys of that number would pass for theirs.
            let points = self.catalog().list(Some(app)).await?.points;
            let used = points.iter().map(|f| f.root.domain).max();
            let number = taken.max(used).map_or(0, |n| n.saturating_add(1)).max(least);
            let id = DomainId { app: *app, number };
            match self.domain(id).await {
                // A listing that leaves it out must not lead to other keys.
                Ok(domain) => return Ok(domain),
                Err(NoDomain::Store(f)) => return Err(f.into()),
                Err(NoDomain::Missing(_) | NoDomain::Refused { .. }) => {}
            }
            if number > 0 {
                tracing::error!(domain = %id, "the application's keys are gone, or are none of this repository's; it gets new ones, and its next \
                    restore point is a full one. Points of the old keys can't be opened");
            }
            let (domain, object) = Domain::generate(id, &self.config.id, &self.ring);
            let lock = self.key_lock(Moment::now(), period);
            match create_checked(&*self.store, &Key::domain(&id), object.into(), lock).await {
                Ok(()) => return Ok(self.opened.put(domain)),
                // Another backup was first, or somebody took the name.
                Err(CommitError::Ended(_)) => {}
                Err(e) => return Err(e),
            }
            match self.domain(id).await {
                Ok(domain) => return Ok(domain),
                Err(NoDomain::Store(f)) => return Err(f.into()),
                Err(_) => least = number.saturating_add(1),
            }
        }
        Err(CommitError::Squatted(Key::domain(&DomainId { app: *app, number: least }), "rubbish"))
    }
}
