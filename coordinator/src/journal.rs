//! A run's journal in the repository: what was done is written before its agent hears that it counts, so that another leader
//! can go on with the run. The bytes are [`milkrun_repository::point::journal`]'s.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use milkrun_repository::Repository;
use milkrun_repository::id::RunId;
use milkrun_repository::keys::envelope::{self, EnvelopeError, Kind};
use milkrun_repository::point::journal::{Record, decode, encode};
use milkrun_repository::store::{CreateError, Failure, GetError, Key};
use milkrun_repository::wire::Malformed;

/// Why a journal can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The store.
    #[error(transparent)]
    Store(#[from] Failure),
    /// Another leader writes this series.
    #[error("{0} was written by somebody else: another coordinator leads")]
    Superseded(Key),
    /// An object of it is none of ours.
    #[error("{0} is refused")]
    Refused(Key, #[source] EnvelopeError),
    /// An object of it makes no sense.
    #[error("{0} makes no sense")]
    Malformed(Key, #[source] Malformed),
    /// An object of it is gone.
    #[error("{0} is missing")]
    Missing(Key),
}

/// The writing end.
pub(crate) struct Journal {
    repository: Arc<Repository>,
    run: RunId,
    epoch: u64,
    noted: Mutex<Noted>,
    /// The number of the next object; who holds it writes.
    next: tokio::sync::Mutex<u32>,
}

#[derive(Default)]
struct Noted {
    records: Vec<Record>,
    /// How many were ever noted, and how many of them are written.
    noted: u64,
    written: u64,
}

/// What an earlier leader left of a run.
#[derive(Debug)]
pub(crate) struct Left {
    /// What happened, in order; take-overs are resolved.
    pub(crate) records: Vec<Record>,
    /// The series that was read last, and its last object.
    pub(crate) epoch: u64,
    pub(crate) number: u32,
}

impl Journal {
    /// A series of its own.
    pub(crate) fn new(repository: Arc<Repository>, run: RunId, epoch: u64) -> Self {
        Self { repository, run, epoch, noted: Mutex::default(), next: tokio::sync::Mutex::new(0) }
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes into the next object that is written.
    pub(crate) fn note(&self, record: Record) {
        let mut noted = self.noted();
        noted.records.push(record);
        noted.noted += 1;
    }

    /// Waits until everything that was noted before is durable. Those who come while an object is written share the next one.
    pub(crate) async fn write(&self) -> Result<(), JournalError> {
        let mine = self.noted().noted;
        let mut next = self.next.lock().await;
        let (records, upto) = {
            let mut noted = self.noted();
            if noted.written >= mine {
                return Ok(());
            }
            (std::mem::take(&mut noted.records), noted.noted)
        };
        let key = Key::journal(&self.run, self.epoch, *next);
        let body = encode(&records);
        let object = envelope::seal(&self.repository.ring, &self.repository.config.id, &key, Kind::Journal, &body);
        match self.repository.store.create(&key, object.into(), None).await {
            Ok(_) => {}
            Err(CreateError::Exists(_)) => return Err(JournalError::Superseded(key)),
            Err(CreateError::Failed(f)) => return Err(f.into()),
        }
        metrics::counter!("milkrun_journal_writes_total").increment(1);
        *next += 1;
        self.noted().written = upto;
        Ok(())
    }

    /// Deletes the journal of a run that ended. What can't be deleted is left to the collector.
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

    /// Reads what an earlier leader left of a run; `None` if it kept no journal.
    pub(crate) async fn read(repository: &Repository, run: &RunId) -> Result<Option<Left>, JournalError> {
        let versions = repository.store.versions(&Key::journals(run)).await?;
        let mut found: Vec<(u64, u32)> =
            versions.iter().filter(|v| !v.delete_marker).filter_map(|v| v.key.parse_journal()).collect();
        found.sort_unstable();
        found.dedup();
        let Some(&(newest, last)) = found.last() else { return Ok(None) };
        let mut series = Vec::new();
        let (mut epoch, mut number) = (newest, last);
        // Backwards from the newest series: each says which one it went on from, and up to where.
        loop {
            let mut records = Vec::new();
            for n in 0..=number {
                let key = Key::journal(run, epoch, n);
                if !found.contains(&(epoch, n)) {
                    return Err(JournalError::Missing(key));
                }
                records.extend(Self::object(repository, key).await?);
            }
            let earlier = match records.first() {
                Some(&Record::TakeOver { epoch: earlier, number }) if earlier < epoch => Some((earlier, number)),
                _ => None,
            };
            series.push(records);
            match earlier {
                Some(earlier) => (epoch, number) = earlier,
                None => break,
            }
        }
        let records = series.into_iter().rev().flatten().filter(|r| !matches!(r, Record::TakeOver { .. }));
        Ok(Some(Left { records: records.collect(), epoch: newest, number: last }))
    }

    async fn object(repository: &Repository, key: Key) -> Result<Vec<Record>, JournalError> {
        let bytes = match repository.store.get(&key, None, None).await {
            Ok(bytes) => bytes,
            Err(GetError::NotFound(_)) => return Err(JournalError::Missing(key)),
            Err(GetError::Failed(f)) => return Err(f.into()),
        };
        let opened = envelope::open(&repository.ring, &repository.config.id, &key, Kind::Journal, &bytes);
        let body = opened.map_err(|e| JournalError::Refused(key.clone(), e))?;
        decode(&body).map_err(|e| JournalError::Malformed(key, e))
    }
}
