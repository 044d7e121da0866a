//! Proving presence and integrity of every stored byte with the public key alone.
//!
//! Trusts neither HEAD nor a key from the bucket: each pack is read whole, by version, and hashed.

use std::collections::BTreeMap;

use futures::StreamExt;

use super::{Findings, Needed, Options, Report, missing_lock, select};
use crate::id::{PackId, RepositoryId};
use crate::keys::VerifyingKey;
use crate::point::Catalog;
use crate::point::catalog::{PlaceError, chain};
use crate::repository::{OpenError, public_config};
use crate::store::{Failure, GetError, Key, Store};

/// Why nothing could be verified.
#[derive(Debug, thiserror::Error)]
pub enum PublicError {
    /// The repository's configuration can't be had.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Another repository, or a replaced `repository.json`.
    #[error("repository.json names another signing key than the one given: another repository, or a replaced file")]
    Stranger,
    /// The store can't be asked.
    #[error(transparent)]
    Store(#[from] Failure),
}

/// Verifies with the public key.
///
/// # Errors
/// [`PublicError`].
pub async fn verify_public(
    store: &dyn Store,
    signer: VerifyingKey,
    options: &Options,
) -> Result<(RepositoryId, Report), PublicError> {
    let configs = public_config(store).await?;
    let ours = configs.iter().find(|c| c.keys.signing == signer);
    let config = ours.ok_or(PublicError::Stranger)?;
    let (repository, firm) = (config.id, config.lock.mode.firmness());
    let catalog = Catalog { store, repository, signer };
    let mut findings = Findings::default();
    let mut report = Report::default();
    let mut needed: BTreeMap<PackId, Needed> = BTreeMap::new();
    for found in select(&catalog, options, &mut findings).await? {
        if found.root.tombstone {
            report.tombstones += 1;
            continue;
        }
        report.points += 1;
        let id = found.root.id();
        let placement = match catalog.placement(&found).await {
            Ok(placement) => placement,
            Err(PlaceError::Store(f)) => return Err(f.into()),
            Err(PlaceError::Refused { key, reason }) => {
                findings.add(key, chain(&reason), [id]);
                continue;
            }
            Err(e @ PlaceError::Missing(_)) => {
                findings.add(Key::placements(&id), chain(&e), [id]);
                continue;
            }
        };
        for info in &placement.packs {
            let entry = needed.entry(info.id).or_insert_with(|| Needed {
                info: info.clone(),
                lock_until: None,
                firm,
                points: std::collections::BTreeSet::new(),
                app: found.root.app,
            });
            entry.lock_until = entry.lock_until.max(found.root.lock_until);
            entry.points.insert(id);
        }
    }
    let mut reads =
        futures::stream::iter(needed.values().map(|n| read(store, n))).buffer_unordered(options.parallel.max(1));
    while let Some(result) = reads.next().await {
        let (needed, bytes, reasons) = result?;
        report.packs += 1;
        report.packs_read += 1;
        report.bytes_read += bytes;
        for reason in reasons {
            findings.add(Key::pack(&needed.info.id), reason, needed.points.iter().copied());
        }
    }
    drop(reads);
    report.findings = findings.finish();
    Ok((repository, report))
}

async fn read<'a>(store: &dyn Store, needed: &'a Needed) -> Result<(&'a Needed, u64, Vec<String>), Failure> {
    let info = &needed.info;
    let key = Key::pack(&info.id);
    let mut reasons = Vec::new();
    match store.head(&key, Some(&info.version)).await {
        Ok(head) => reasons.extend(missing_lock(head.lock, needed)),
        Err(GetError::NotFound(_)) => return Ok((needed, 0, vec!["missing".into()])),
        Err(GetError::Failed(f)) => return Err(f),
    }
    let bytes = match store.get(&key, Some(&info.version), None).await {
        Ok(bytes) => bytes,
        Err(GetError::NotFound(_)) => return Ok((needed, 0, vec!["missing".into()])),
        Err(GetError::Failed(f)) => return Err(f),
    };
    let length = bytes.len() as u64;
    if length != info.length {
        reasons.push(format!("has {length} bytes instead of {}", info.length));
    } else {
        let digest = tokio::task::spawn_blocking(move || *blake3::hash(&bytes).as_bytes()).await;
        match digest {
            Ok(digest) if digest == info.digest => {}
            Ok(_) => reasons.push("its bytes are not those that the placement signs".into()),
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        }
    }
    Ok((needed, length, reasons))
}
