//! A run's journal in the repository. What was done is written down before its agent gets an answer, so that another leader can go
//! on with the run. The bytes are defined in [`milkrun_repository::point::journal`].
//!
//! All records that come while one object is being written go into the next object. If it is not known whether an object was
//! written, it is tried again before anything else.

mod read;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use milkrun_repository::Repository;
use milkrun_repository::id::RunId;
use milkrun_repository::keys::envelope::{self, EnvelopeError, Kind};
use milkrun_repository::point::journal::{Record, encode};
use milkrun_repository::read_envelope::{self, Sealed};
use milkrun_repository::store::{self, CreateError, Failure, GetError, Key};
use milkrun_repository::wire::Malformed;

pub(crate) use read::Left;

/// Why a journal can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The store.
    #[error(transparent)]
    Store(#[from] Failure),
    /// Another leader writes this series of objects.
    #[error("{0} was written by somebody else: another coordinator leads")]
    Superseded(Key),
    /// The key of its next object holds something that no holder of the secret wrote.
    #[error(
        "{0} is taken by what is none of the journal's ({1}): whoever may write to the bucket put it there; run it again"
    )]
    Squatted(Key, &'static str),
    /// One of its objects was not written by a holder of the secret.
    #[error("{0} is refused")]
    Refused(Key, #[source] EnvelopeError),
    /// One of its objects makes no sense.
    #[error("{0} makes no sense")]
    Malformed(Key, #[source] Malformed),
    /// One of its objects is gone.
    #[error("{0} is missing")]
    Missing(Key),
}

/// Places, regions and extents in one object: 3 MB. A record that has more has an object of its own.
const OBJECT: usize = 64 * 1024;

/// How much of an object's room a record takes.
fn weight(record: &Record) -> usize {
    match record {
        Record::Sealed { entries, .. } => 1 + 2 * entries.len(),
        Record::Regions { regions, .. } => regions.iter().map(|region| 1 + region.runs.len()).sum(),
        _ => 1,
    }
}

/// The writer of a journal.
pub(crate) struct Journal {
    repository: Arc<Repository>,
    run: RunId,
    epoch: u64,
    noted: Mutex<Noted>,
    /// The task that holds this lock writes.
    writer: tokio::sync::Mutex<Writer>,
}

#[derive(Default)]
struct Writer {
    /// The number of the next object.
    next: u32,
    /// An object that may or may not have been written. The same bytes are tried again before anything else.
    unsure: Option<Unsure>,
}

struct Unsure {
    object: Bytes,
    /// How many of the noted records are written once this object is.
    upto: u64,
}

#[derive(Default)]
struct Noted {
    records: Vec<Record>,
    /// How many records were ever noted, and how many of them are written.
    noted: u64,
    written: u64,
}

impl Journal {
    /// A series of its own.
    pub(crate) fn new(repository: Arc<Repository>, run: RunId, epoch: u64) -> Self {
        Self { repository, run, epoch, noted: Mutex::default(), writer: tokio::sync::Mutex::default() }
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a record: it goes into the next object that is written.
    pub(crate) fn note(&self, record: Record) {
        let mut noted = self.noted();
        noted.records.push(record);
        noted.noted += 1;
    }

    /// Waits until everything that was noted before is durable. Callers that come while an object is written share the next one.
    pub(crate) async fn write(&self) -> Result<(), JournalError> {
        let mine = self.noted().noted;
        let mut writer = self.writer.lock().await;
        while self.noted().written < mine {
            let key = Key::journal(&self.run, self.epoch, writer.next);
            let unsure = match writer.unsure.take() {
                Some(unsure) => unsure,
                None => self.seal(&key),
            };
            let (object, upto) = (unsure.object.clone(), unsure.upto);
            // It stays here until it is known to be stored, also if the caller is dropped in the middle.
            writer.unsure = Some(unsure);
            match self.repository.store.create(&key, object.clone(), None).await {
                Ok(_) => {}
                Err(CreateError::Exists(_)) if self.is_ours(&key, &object).await? => {}
                Err(CreateError::Exists(_)) => return Err(self.taken(key).await?),
                Err(CreateError::Failed(f)) => return Err(f.into()),
            }
            metrics::counter!("milkrun_journal_writes_total").increment(1);
            writer.unsure = None;
            writer.next += 1;
            self.noted().written = upto;
        }
        Ok(())
    }

    /// Seals an object of the records that were noted and are in no object yet: all of them, or as many as fit.
    fn seal(&self, key: &Key) -> Unsure {
        let (records, upto) = {
            let mut noted = self.noted();
            let mut sum = 0;
            let over = noted.records.iter().position(|record| {
                sum += weight(record);
                sum > OBJECT
            });
            let count = over.map_or(noted.records.len(), |first| first.max(1));
            let records: Vec<Record> = noted.records.drain(..count).collect();
            (records, noted.noted - noted.records.len() as u64)
        };
        let body = encode(&records);
        let object = envelope::seal(&self.repository.ring, &self.repository.config.id, key, Kind::Journal, &body);
        Unsure { object: object.into(), upto }
    }

    /// Whether the object at this key is the one that an earlier attempt of this writer wrote.
    async fn is_ours(&self, key: &Key, object: &Bytes) -> Result<bool, JournalError> {
        match store::read(&*self.repository.store, key, None).await {
            Ok(found) => Ok(found == *object),
            Err(GetError::NotFound(_)) => Ok(false),
            Err(GetError::Failed(f)) => Err(f.into()),
        }
    }

    /// Says by whom the key of this writer's next object is taken.
    async fn taken(&self, key: Key) -> Result<JournalError, JournalError> {
        Ok(match read_envelope::open(&self.repository, &key, Kind::Journal).await? {
            Sealed::Body(_) => JournalError::Superseded(key),
            Sealed::Refused(_) => JournalError::Squatted(key, "rubbish"),
            // The store refuses to create the object, and there is nothing to read: a delete marker hides the key.
            Sealed::None => JournalError::Squatted(key, "a delete marker"),
        })
    }

    /// Deletes the journal of a run that ended. What can't be deleted now is left to the collector.
    pub(crate) async fn delete(repository: &Repository, run: &RunId) {
        match repository.store.versions(&Key::journals(run)).await {
            Ok(versions) => {
                for v in versions.into_iter().filter(|v| !v.delete_marker) {
                    if let Err(e) = repository.store.delete(&v.key, &v.version).await {
                        tracing::debug!(error = %e, "a journal stays for the collector");
                    }
                }
            }
            Err(e) => tracing::debug!(error = %e, "a journal stays for the collector"),
        }
    }
}

#[cfg(test)]
mod tests;
