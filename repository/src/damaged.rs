//! `damaged/<application hash>/<id>`: packs that were found damaged and set aside. Later runs treat them as gone: their chunks
//! are stored again where the source still has them, and no new point refers to the packs. Points that already refer to them are
//! not touched. Sealed in an [envelope]; not locked.
//!
//! ```text
//! u32 n, n × pack id 16     strictly sorted
//! ```
//! If such an object is lost or refused, its knowledge is lost, too; the next verification finds the damage again.

use std::collections::BTreeSet;

use crate::id::{AppHash, NoteId, PackId};
use crate::keys::envelope::{self, Kind};
use crate::repository::Repository;
use crate::store::{CreateError, Failure, GetError, Key, Trouble, list, read_listed};
use crate::wire::{Decoder, Encoder, Malformed};

/// The body's bytes.
pub fn encode(packs: &BTreeSet<PackId>) -> Vec<u8> {
    let mut e = Encoder::new();
    e.count(packs.len());
    for id in packs {
        e.raw(id.as_bytes());
    }
    e.finish()
}

/// Parses a body.
///
/// # Errors
/// [`Malformed`] unless it is exactly what [`encode`] writes.
pub fn decode(body: &[u8]) -> Result<BTreeSet<PackId>, Malformed> {
    let mut d = Decoder::new(body);
    let n = d.count(PackId::LEN, "pack count")?;
    let mut packs = BTreeSet::new();
    for _ in 0..n {
        let id = PackId::from_bytes(d.array("pack id")?);
        if packs.last().is_some_and(|last| *last >= id) {
            return Err(d.bad("pack order"));
        }
        packs.insert(id);
    }
    d.finish("end of damaged packs")?;
    Ok(packs)
}

/// The packs of an application that were set aside. An object that is not ours is left out with a warning.
///
/// # Errors
/// [`Failure`] when the store can't be asked.
pub async fn load(repository: &Repository, app: &AppHash) -> Result<BTreeSet<PackId>, Failure> {
    let (store, id) = (&*repository.store, &repository.config.id);
    let mut packs = BTreeSet::new();
    for listed in list(store, &Key::all_damaged(app)).await? {
        let key = listed.key.clone();
        let object = match read_listed(store, &listed).await {
            Ok(object) => object,
            Err(GetError::NotFound(_)) => continue,
            Err(GetError::Failed(f)) if f.trouble == Trouble::Foreign => {
                tracing::warn!(object = %key, why = %f, "packs that it sets aside are not known");
                continue;
            }
            Err(GetError::Failed(f)) => return Err(f),
        };
        let opened = envelope::open(&repository.ring, id, &key, Kind::Damaged, &object).map_err(|e| e.to_string());
        match opened.and_then(|body| decode(&body).map_err(|e| e.to_string())) {
            Ok(more) => packs.extend(more),
            Err(why) => tracing::warn!(object = %key, why, "packs that it sets aside are not known"),
        }
    }
    Ok(packs)
}

/// Sets packs of an application aside. From the next run on they count as gone.
///
/// # Errors
/// [`CreateError`].
pub async fn set_aside(repository: &Repository, app: &AppHash, packs: &BTreeSet<PackId>) -> Result<(), CreateError> {
    let key = Key::damaged(app, &NoteId::random());
    let object = envelope::seal(&repository.ring, &repository.config.id, &key, Kind::Damaged, &encode(packs));
    repository.store.create(&key, object.into(), None).await?;
    Ok(())
}
