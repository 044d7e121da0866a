//! `ended/<run>-<random>`: a run is over, successful or not, and nobody resumes it. This object stays when the run's journal and
//! lease are deleted: anybody who may write to the bucket could put those back, and an old restore would overwrite newer data.
//! Sealed in an [envelope]; locked, if the repository locks, for as long as a run may be resumed.
//!
//! ```text
//! run id 8, moment i64 in ms, outcome u8: 1 it did what it was to do, 2 it did not
//! ```
//!
//! It stays until garbage is collected: 89 bytes for each run.

use std::time::Duration;

use futures::StreamExt;

use crate::clock::{Moment, entropy};
use crate::id::RunId;
use crate::keys::envelope::{self, Kind};
use crate::repository::Repository;
use crate::store::{CreateError, Failure, GetError, Key, Listed, Lock, Operation, Trouble, read_listed};
use crate::wire::{Decoder, Encoder, Malformed};

/// A run that began longer ago than this is not resumed.
pub const LIFE: Duration = Duration::from_secs(30 * 86_400);
/// How long an end is kept and locked: longer than [`LIFE`], even if clocks differ.
pub const KEPT: Duration = Duration::from_secs(31 * 86_400);

/// The body's bytes.
pub fn encode(run: &RunId, moment: Moment, outcome: Outcome) -> Vec<u8> {
    Encoder::new().raw(run.as_bytes()).i64(moment.millis()).u8(outcome as u8).finish()
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did all that it was ordered to do.
    Done = 1,
    /// It did not.
    Failed = 2,
}

/// Parses a body: the run, when it ended, and how.
///
/// # Errors
/// [`Malformed`].
pub fn decode(body: &[u8]) -> Result<(RunId, Moment, Outcome), Malformed> {
    let mut d = Decoder::new(body);
    let (run, moment) = (RunId::from_bytes(d.array("run")?), Moment::from_millis(d.i64("moment")?));
    let outcome = match d.u8("outcome")? {
        1 => Outcome::Done,
        2 => Outcome::Failed,
        _ => return Err(d.bad("outcome")),
    };
    d.finish("end of an ended run")?;
    Ok((run, moment, outcome))
}

/// How many objects of a run are checked in parallel: anybody who may write can put thousands there.
const LOOKS: usize = 16;

/// Records that a run is over. The key has a random part that is drawn now, so nobody could take it before. (A key that follows
/// from the run could be taken as soon as the run's lease is seen.)
///
/// # Errors
/// [`Failure`].
pub async fn write(repository: &Repository, run: &RunId, outcome: Outcome) -> Result<(), Failure> {
    let now = Moment::now();
    let lock = repository.config.lock.mode.firmness().map(|firmness| Lock { firmness, until: now.plus(KEPT) });
    let key = Key::ended(run, u64::from_le_bytes(entropy()));
    let object = envelope::seal(&repository.ring, &repository.config.id, &key, Kind::Ended, &encode(run, now, outcome));
    match repository.store.create(&key, object.into(), lock).await {
        Ok(_) => Ok(()),
        Err(CreateError::Exists(_)) => Err(Failure::new(Operation::Create, key, Trouble::Foreign)),
        Err(CreateError::Failed(f)) => Err(f),
    }
}

/// Whether a run is over. Every such object of the run and every version counts, so a delete marker or rubbish on top hides
/// nothing.
///
/// # Errors
/// [`Failure`] when the store can't be asked.
pub async fn is_ended(repository: &Repository, run: &RunId) -> Result<bool, Failure> {
    Ok(outcome(repository, run).await?.is_some())
}

/// How a run ended, if it is over. If there are several ends, a successful one counts.
///
/// # Errors
/// [`Failure`] when the store can't be asked.
pub async fn outcome(repository: &Repository, run: &RunId) -> Result<Option<Outcome>, Failure> {
    let listed = repository.store.versions(&Key::ends(run)).await?;
    let looks = listed.into_iter().filter(|l| !l.delete_marker).map(|version| is_end(repository, run, version));
    let mut looks = futures::stream::iter(looks).buffer_unordered(LOOKS);
    let mut found = None;
    while let Some(look) = looks.next().await {
        match look? {
            Some(Outcome::Done) => return Ok(Some(Outcome::Done)),
            Some(Outcome::Failed) => found = Some(Outcome::Failed),
            None => {}
        }
    }
    Ok(found)
}

async fn is_end(repository: &Repository, run: &RunId, version: Listed) -> Result<Option<Outcome>, Failure> {
    let object = match read_listed(&*repository.store, &version).await {
        Ok(object) => object,
        Err(GetError::NotFound(_)) => return Ok(None),
        Err(GetError::Failed(f)) if f.is_of_one_object() => return Ok(None),
        Err(GetError::Failed(f)) => return Err(f),
    };
    let body = envelope::open(&repository.ring, &repository.config.id, &version.key, Kind::Ended, &object);
    let ended = body.ok().and_then(|body| decode(&body).ok());
    Ok(ended.filter(|(of, ..)| of == run).map(|(.., outcome)| outcome))
}
