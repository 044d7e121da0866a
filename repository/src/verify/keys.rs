//! Whether the key objects are there: the keys of each domain that a point needs, and at least one key that a password opens. The
//! public key is enough for this, since both are signed.
//!
//! Their locks are rolling, so those of an idle repository run out. That is logged, and is no finding.

use std::collections::{BTreeMap, BTreeSet};

use super::Findings;
use crate::clock::Moment;
use crate::config::Config;
use crate::id::{DomainId, PointId};
use crate::keys::domain::PublicDomain;
use crate::keys::wrapped::Authentic;
use crate::point::Root;
use crate::point::catalog::HIDDEN;
use crate::store::listing::versions_checked;
use crate::store::{Failure, GetError, Key, Listed, Store, read_listed};

pub(super) async fn check(
    store: &dyn Store,
    config: &Config,
    roots: &[&Root],
    findings: &mut Findings,
) -> Result<(), Failure> {
    let mut needed: BTreeMap<DomainId, BTreeSet<PointId>> = BTreeMap::new();
    for root in roots {
        needed.entry(root.domain()).or_default().insert(root.id());
    }
    for (domain, points) in needed {
        let key = Key::domain(&domain);
        let sound = |object: &[u8]| PublicDomain::decode(object, &key, &config.id, &config.keys.signing).is_ok();
        let listed = versions_checked(store, key.as_str()).await?;
        let listed: Vec<Listed> = listed.into_iter().filter(|l| l.key == key).collect();
        if !is_there(store, config, &key, &listed, sound).await? {
            let reason = "missing: without it nothing opens the points of the application";
            findings.add(&key, reason, points);
        } else if listed.iter().any(|l| l.delete_marker && l.latest) {
            findings.add(&key, HIDDEN, points);
        }
    }
    let mut passwords = 0;
    let listed = versions_checked(store, Key::secrets()).await?;
    let keys: BTreeSet<&Key> = listed.iter().map(|l| &l.key).collect();
    for key in keys {
        let of_key: Vec<Listed> = listed.iter().filter(|l| l.key == *key).cloned().collect();
        let sound = |object: &[u8]| {
            let file = Authentic::decode(object, &config.keys.signing);
            file.is_ok_and(|file| Key::secret(&file.id()) == *key)
        };
        if is_there(store, config, key, &of_key, sound).await? {
            passwords += 1;
            if of_key.iter().any(|l| l.delete_marker && l.latest) {
                findings.add(key, HIDDEN, []);
            }
        }
    }
    if passwords == 0 {
        findings.add("keys/", "no key file is left: only the recovery key opens the repository", []);
    }
    Ok(())
}

/// Whether an authentic version is there.
async fn is_there(
    store: &dyn Store,
    config: &Config,
    key: &Key,
    of_key: &[Listed],
    sound: impl Fn(&[u8]) -> bool,
) -> Result<bool, Failure> {
    for l in of_key.iter().rev().filter(|l| !l.delete_marker) {
        match read_listed(store, l).await {
            Ok(object) if sound(&object) => {}
            Ok(_) | Err(GetError::NotFound(_)) => continue,
            Err(GetError::Failed(f)) if f.is_of_one_object() => continue,
            Err(GetError::Failed(f)) => return Err(f),
        }
        if config.lock.mode.firmness().is_some() {
            let lock = match store.lock_of(key, &l.version).await {
                Ok(lock) => lock,
                Err(GetError::NotFound(_)) => None,
                Err(GetError::Failed(f)) => return Err(f),
            };
            if lock.is_none_or(|l| l.until < Moment::now()) {
                tracing::warn!(object = %key, "the lock of a key has run out, and the next backup renews it: until then \
                    whoever may delete can make restore points unreadable");
            }
        }
        return Ok(true);
    }
    Ok(false)
}
