//! Opening a repository with a password.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use futures::StreamExt;

use super::Repository;
use crate::clock::Moment;
use crate::config::{Config, ConfigError};
use crate::keys::wrapped::{Authentic, UnwrapError};
use crate::keys::{KeyRing, Secret};
use crate::point::catalog::chain;
use crate::store::{Failure, GetError, Key, SharedStore, Store, Trouble, Version, read_listed};

/// Why a repository was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no repository.
    #[error("there is no repository at {0}")]
    None(String),
    /// `repository.json` is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no key file.
    #[error("the repository has no key file under keys/: only the recovery key that `init` printed opens it")]
    NoKeys,
    /// There are key files, but this repository signed none of them.
    #[error(
        "none of the objects under keys/ is a key file of this repository: only the recovery key that `init` printed opens it"
    )]
    ForeignKeys(#[source] UnwrapError),
    /// The recovery key of another repository.
    #[error("the recovery key is the one of another repository")]
    OtherRecoveryKey,
    /// None of the key files opens.
    #[error("none of the repository's {tried} key files opens: {last}")]
    Password {
        /// How many there are.
        tried: usize,
        /// The error of the last one.
        #[source]
        last: UnwrapError,
    },
    /// The secret does not belong to this configuration.
    #[error("the key opens, but its public keys are not those of repository.json: the repository was tampered with")]
    Tampered,
    /// The store can't be asked.
    #[error(transparent)]
    Store(#[from] Failure),
}

/// With more objects of one kind than this, a warning says that there are many. All are tried: anybody who may write can add more,
/// and they must not keep the right one from being found.
const MANY: usize = 64;

/// Objects that are read in parallel.
const READS: usize = 16;

/// All versions of objects, oldest first: the locked one is older than any that somebody put beside it, and each version that is
/// tried before it costs a password's hash. Objects that can't be ours are named and left out. Within one key the listing's order
/// gives the age, since a store may change the date of an object whose lock was extended. Between keys only the date tells.
async fn versions_of(store: &dyn Store, prefix: &str) -> Result<Vec<(Version, Bytes)>, Failure> {
    let mut listed = store.versions(prefix).await?;
    listed.retain(|l| !l.delete_marker);
    listed.reverse();
    let mut oldest: HashMap<Key, Moment> = HashMap::new();
    for l in &listed {
        let date = oldest.entry(l.key.clone()).or_insert(l.modified);
        *date = l.modified.min(*date);
    }
    listed.sort_by(|a, b| oldest.get(&a.key).cmp(&oldest.get(&b.key)).then_with(|| a.key.cmp(&b.key)));
    let mut seen: HashSet<Bytes> = HashSet::new();
    let mut out: Vec<(Version, Bytes)> = Vec::new();
    let mut unreadable = None;
    let reads = listed.into_iter().map(|l| async move {
        let read = read_listed(store, &l).await;
        (l, read)
    });
    let mut reads = futures::stream::iter(reads).buffered(READS);
    while let Some((l, read)) = reads.next().await {
        if out.len() == MANY {
            tracing::warn!(prefix, "there are more than {MANY} objects: who put them there?");
        }
        match read {
            Ok(bytes) if !seen.insert(bytes.clone()) => {}
            Ok(bytes) => out.push((l.version, bytes)),
            Err(GetError::NotFound(_)) => {}
            Err(GetError::Failed(f)) if f.is_of_one_object() => {
                tracing::warn!(why = %chain(&f), "left out");
                if f.trouble != Trouble::Foreign {
                    unreadable = unreadable.or(Some(f));
                }
            }
            Err(GetError::Failed(f)) => return Err(f),
        }
    }
    // If nothing can be read, that is the error.
    match unreadable {
        Some(f) if out.is_empty() => Err(f),
        _ => Ok(out),
    }
}

/// The configuration, checked only by the key that it names. For callers who have that public key from outside.
///
/// # Errors
/// [`OpenError`].
pub async fn public_config(store: &dyn Store) -> Result<Vec<(Version, Config)>, OpenError> {
    let found = versions_of(store, Key::config().as_str()).await?;
    if found.is_empty() {
        return Err(OpenError::None(store.describe()));
    }
    let mut configs = Vec::new();
    let mut refused = None;
    for (version, bytes) in found {
        match Config::decode(&bytes) {
            Ok(config) => configs.push((version, config)),
            Err(e) => refused = refused.or(Some(e)),
        }
    }
    match refused {
        Some(e) if configs.is_empty() => Err(e.into()),
        _ => Ok(configs),
    }
}

/// The credential that opens a repository.
#[derive(Clone, Copy)]
pub enum Credential<'a> {
    /// The password of one of its key files.
    Password(&'a [u8]),
    /// The secret itself, from the [recovery key](crate::keys::recovery).
    Recovery(&'a Secret),
}

/// Opens the repository in `store`.
///
/// # Errors
/// [`OpenError`].
pub async fn open(store: SharedStore, credential: Credential<'_>) -> Result<Repository, OpenError> {
    let configs = versions_of(&*store, Key::config().as_str()).await?;
    if configs.is_empty() {
        return Err(OpenError::None(store.describe()));
    }
    let mut decoded = Vec::new();
    let mut refused = None;
    for (version, bytes) in configs {
        match Config::decode(&bytes) {
            Ok(config) => decoded.push((config, version, bytes)),
            Err(e) => refused = Some(e),
        }
    }
    if decoded.is_empty()
        && let Some(e) = refused
    {
        return Err(e.into());
    }
    match credential {
        Credential::Password(password) => with_password(store, password, decoded).await,
        Credential::Recovery(secret) => {
            let ring = KeyRing::from_secret(secret);
            let ours = decoded.into_iter().find(|(config, ..)| config.keys == ring.public());
            let (config, version, _) = ours.ok_or(OpenError::OtherRecoveryKey)?;
            Ok(Repository::new(store, config, version, ring))
        }
    }
}

/// Tries only key files that the configuration's own key signed, since each costs a password's hash.
async fn with_password(
    store: SharedStore,
    password: &[u8],
    configs: Vec<(Config, Version, Bytes)>,
) -> Result<Repository, OpenError> {
    let keys = versions_of(&*store, Key::secrets()).await?;
    let (mut tried, mut last, mut refused) = (0, None, None);
    for (config, version, bytes) in configs {
        for (_, object) in &keys {
            let file = match Authentic::decode(object, &config.keys.signing) {
                Ok(file) => file,
                Err(e) => {
                    refused = Some(e);
                    continue;
                }
            };
            tried += 1;
            match file.unwrap(password, &bytes) {
                Ok(secret) => {
                    let ring = KeyRing::from_secret(&secret);
                    if ring.public() != config.keys {
                        return Err(OpenError::Tampered);
                    }
                    return Ok(Repository::new(store, config, version, ring));
                }
                Err(e) => last = Some(e),
            }
        }
    }
    match (last, refused) {
        (Some(last), _) => Err(OpenError::Password { tried, last }),
        (None, Some(e)) => Err(OpenError::ForeignKeys(e)),
        (None, None) => Err(OpenError::NoKeys),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::memory::Memory;

    /// Each key file that is tried costs a password's hash. A planted file that is newer is tried later, whatever its name.
    #[tokio::test]
    async fn the_oldest_is_tried_first() {
        let memory = Memory::new();
        memory.set_clock(Moment::from_millis(1_000_000));
        memory.overwrite(&Key::new("keys/ffff"), "ours", None);
        for n in 0..200 {
            memory.advance(Duration::from_secs(1));
            memory.overwrite(&Key::new(format!("keys/{n:04}")), format!("planted {n}"), None);
        }
        memory.overwrite(&Key::new("keys/ffff"), "on top", None);
        let found = versions_of(&memory, "keys/").await.unwrap();
        assert_eq!(found.len(), 202);
        assert_eq!((&found[0].1[..], &found[1].1[..]), (&b"ours"[..], &b"on top"[..]));
    }
}
