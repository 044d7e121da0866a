//! Proving with the public key alone that every stored byte is there and intact.
//!
//! This trusts neither HEAD nor a key from the bucket: each pack is read whole, by version, and hashed.

use futures::StreamExt;

use super::needed::{Needed, NeededPacks};
use super::{Findings, Options, Report, check_config, check_placement, keys, select, unplaced};
use crate::id::RepositoryId;
use crate::keys::VerifyingKey;
use crate::point::{Catalog, Root};
use crate::repository::{OpenError, public_config};
use crate::store::{Failure, GetError, Key, Store};

/// Why nothing could be verified.
#[derive(Debug, thiserror::Error)]
pub enum PublicError {
    /// The repository's configuration is not available.
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
    let ours = configs.iter().find(|(_, c)| c.keys.signing == signer);
    let (version, config) = ours.ok_or(PublicError::Stranger)?;
    let (repository, firm) = (config.id, config.lock.mode.firmness());
    let catalog = Catalog { store, repository, signer };
    let mut findings = Findings::default();
    let mut report = Report::default();
    let mut needed = NeededPacks::default();
    let mut roots = Vec::new();
    for found in select(&catalog, firm, options, &mut findings).await? {
        if found.root.tombstone {
            report.tombstones += 1;
            continue;
        }
        report.points += 1;
        match catalog.placement(&found).await {
            Ok(placed) => {
                check_placement(store, &found.root, &placed, firm, &mut findings).await?;
                needed.add(&found.root, &placed, firm, &mut findings);
                roots.push(found.root);
            }
            Err(e) => unplaced(e, found.root.id(), &mut findings)?,
        }
    }
    let roots: Vec<&Root> = roots.iter().collect();
    check_config(store, version, firm, &roots, &mut findings).await?;
    keys::check(store, config, &roots, &mut findings).await?;
    report.packs = needed.len() as u64;
    let mut reads =
        futures::stream::iter(needed.all().map(|n| read(store, n))).buffer_unordered(options.parallel.max(1));
    while let Some(result) = reads.next().await {
        let (needed, bytes, reasons) = result?;
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
        Ok(head) => match needed.promise.missing(store, &key, &info.version, &head).await {
            Ok(reason) => reasons.extend(reason),
            Err(GetError::NotFound(_)) => return Ok((needed, 0, vec!["missing".into()])),
            Err(GetError::Failed(f)) => return Err(f),
        },
        Err(GetError::NotFound(_)) => return Ok((needed, 0, vec!["missing".into()])),
        Err(GetError::Failed(f)) => return Err(f),
    }
    let bytes = match store.get(&key, Some(&info.version), Some(0..info.length.saturating_add(1))).await {
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
