//! Reading an unlocked object that a holder of the secret sealed, even if somebody put another version or a delete marker on top
//! of it. Nearly always the newest version is the right one. All versions are read only if it is not.

use crate::keys::envelope::{self, EnvelopeError, Kind};
use crate::repository::Repository;
use crate::store::{Failure, GetError, Key, Trouble, read, read_listed};

/// What is at a key.
#[derive(Debug)]
pub enum Sealed {
    /// What a holder of the secret sealed for this key.
    Body(Vec<u8>),
    /// Something is there, but nothing that a holder of the secret sealed.
    Refused(EnvelopeError),
    /// Nothing.
    None,
}

/// Reads the body of the object at `key`.
///
/// # Errors
/// [`Failure`] when the store can't be asked.
pub async fn open(repository: &Repository, key: &Key, kind: Kind) -> Result<Sealed, Failure> {
    let (store, id, ring) = (&*repository.store, &repository.config.id, &repository.ring);
    let mut refused = match read(store, key, None).await {
        Ok(object) => match envelope::open(ring, id, key, kind, &object) {
            Ok(body) => return Ok(Sealed::Body(body)),
            Err(e) => Some(e),
        },
        Err(GetError::NotFound(_)) => None,
        Err(GetError::Failed(f)) if f.trouble == Trouble::Foreign => Some(EnvelopeError::Forged),
        Err(GetError::Failed(f)) => return Err(f),
    };
    let mut listed = store.versions(key.as_str()).await?;
    listed.retain(|v| v.key == *key && !v.delete_marker);
    for version in listed.iter().rev() {
        match read_listed(store, version).await {
            Ok(object) => match envelope::open(ring, id, key, kind, &object) {
                Ok(body) => return Ok(Sealed::Body(body)),
                Err(e) => refused = Some(e),
            },
            Err(GetError::NotFound(_)) => {}
            Err(GetError::Failed(f)) if f.trouble == Trouble::Foreign => refused = Some(EnvelopeError::Forged),
            Err(GetError::Failed(f)) => return Err(f),
        }
    }
    Ok(refused.map_or(Sealed::None, Sealed::Refused))
}
