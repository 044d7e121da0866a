//! Whether the version in use of each object is locked as firmly and as long as a point promises.

use super::Findings;
use crate::clock::Moment;
use crate::id::PointId;
use crate::point::catalog::HIDDEN;
use crate::point::commit::{locked_enough, real_lock};
use crate::store::{Failure, Firmness, GetError, Head, Key, Lock, Store, Version};

/// The lock that a point promises for an object that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Promise {
    pub(super) until: Option<Moment>,
    pub(super) firm: Option<Firmness>,
}

impl Promise {
    fn lock(&self) -> Option<Lock> {
        self.until.map(|until| Lock { firmness: self.firm.unwrap_or(Firmness::Governance), until })
    }

    /// How a lock falls short of the promise. If a HEAD shows too little, the store is asked for the version's lock before the
    /// lock is reported as missing.
    pub(super) async fn missing(
        &self,
        store: &dyn Store,
        key: &Key,
        version: &Version,
        head: &Head,
    ) -> Result<Option<String>, GetError> {
        let Some(wanted) = self.lock() else { return Ok(None) };
        let found = real_lock(store, key, version, head, Some(wanted)).await?;
        if locked_enough(found, Some(wanted)) {
            return Ok(None);
        }
        let until = wanted.until;
        Ok(Some(match found {
            None => format!("not locked; it must be until {until}"),
            Some(l) if l.until < until => format!("locked only until {}; it must be until {until}", l.until),
            Some(l) => format!("its {:?} lock can be bypassed; the repository promises more", l.firmness),
        }))
    }
}

/// An object other than a pack, in the version in use.
pub(super) struct Used<'a> {
    pub(super) key: &'a Key,
    pub(super) version: &'a Version,
    pub(super) hidden: bool,
}

/// Checks an object that a point needs.
pub(super) async fn check(
    store: &dyn Store,
    used: Used<'_>,
    promise: Promise,
    point: PointId,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let Used { key, version, hidden } = used;
    if hidden {
        findings.add(key, HIDDEN, [point]);
    }
    if promise.until.is_none() {
        return Ok(());
    }
    let missing = match store.head(key, Some(version)).await {
        Ok(head) => promise.missing(store, key, version, &head).await,
        Err(e) => Err(e),
    };
    match missing {
        Ok(reason) => {
            if let Some(reason) = reason {
                findings.add(key, reason, [point]);
            }
            Ok(())
        }
        Err(GetError::NotFound(_)) => {
            findings.add(key, "missing", [point]);
            Ok(())
        }
        Err(GetError::Failed(f)) => Err(f),
    }
}
