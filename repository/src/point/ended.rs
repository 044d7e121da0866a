//! `ended/<run>/<n>`: a run is over, well or not, and nobody goes on with it. It stays when the run's journal and lease are gone: who
//! may write to the bucket could put those back, and an old restore would write over what is there since. Sealed in an
//! [envelope]; locked, where the repository locks, for as long as a run may be gone on with.
//!
//! ```text
//! run id 8, moment i64 in ms
//! ```

use std::time::Duration;

use crate::clock::Moment;
use crate::id::RunId;
use crate::keys::envelope::{self, Kind};
use crate::repository::Repository;
use crate::store::{CreateError, Failure, GetError, Key, Lock, Operation, Trouble, read_listed};
use crate::wire::{Decoder, Encoder, Malformed};

/// No run is gone on with that began longer ago.
pub const LIFE: Duration = Duration::from_secs(30 * 86_400);
/// So long an end is kept, and locked: longer than [`LIFE`], whatever clocks say.
pub const KEPT: Duration = Duration::from_secs(31 * 86_400);

/// The body's bytes.
pub fn encode(run: &RunId, moment: Moment) -> Vec<u8> {
    Encoder::new().raw(run.as_bytes()).i64(moment.millis()).finish()
}

/// Parses a body: the run, and when it ended.
///
/// # Errors
/// [`Malformed`].
pub fn decode(body: &[u8]) -> Result<(RunId, Moment), Malformed> {
    let mut d = Decoder::new(body);
    let ended = (RunId::from_bytes(d.array("run")?), Moment::from_millis(d.i64("moment")?));
    d.finish("end of an ended run")?;
    Ok(ended)
}

/// Keys that are tried for an end where somebody took one.
const KEYS_TRIED: u32 = 64;

/// Writes down that a run is over. A key that somebody took with something else is passed over.
///
/// # Errors
/// [`Failure`]; [`Trouble::Foreign`] if all keys are taken.
pub async fn write(repository: &Repository, run: &RunId) -> Result<(), Failure> {
    let now = Moment::now();
    let lock = repository.config.lock.mode.firmness().map(|firmness| Lock { firmness, until: now.plus(KEPT) });
    for n in 0..KEYS_TRIED {
        let key = Key::ended(run, n);
        let object = envelope::seal(&repository.ring, &repository.config.id, &key, Kind::Ended, &encode(run, now));
        match repository.store.create(&key, object.into(), lock).await {
            Ok(_) => return Ok(()),
            // Written before, or taken by somebody who wants the run to come back to life.
            Err(CreateError::Exists(_)) if is_ended(repository, run).await? => return Ok(()),
            Err(CreateError::Exists(_)) => {
                tracing::warn!(object = %key, "is no end of a run: not by a holder of the secret")
            }
            Err(CreateError::Failed(f)) => return Err(f),
        }
    }
    let why = "somebody takes all keys at which the end of a run could stand";
    Err(Failure::new(Operation::Create, Key::ended(run, 0), Trouble::Foreign).because(why))
}

/// Whether a run is over. Every object of it and every version counts: a delete marker or rubbish on top hides nothing.
///
/// # Errors
/// [`Failure`] when the store can't be asked.
pub async fn is_ended(repository: &Repository, run: &RunId) -> Result<bool, Failure> {
    let listed = repository.store.versions(&Key::ends(run)).await?;
    for version in listed.into_iter().filter(|l| !l.delete_marker) {
        let object = match read_listed(&*repository.store, &version).await {
            Ok(object) => object,
            Err(GetError::NotFound(_)) => continue,
            Err(GetError::Failed(f)) if f.trouble == Trouble::Foreign => continue,
            Err(GetError::Failed(f)) => return Err(f),
        };
        let body = envelope::open(&repository.ring, &repository.config.id, &version.key, Kind::Ended, &object);
        if body.is_ok_and(|body| decode(&body).is_ok_and(|(of, _)| of == *run)) {
            return Ok(true);
        }
    }
    Ok(false)
}
