//! A run's journal in the repository. What was done is written down before its agent gets an answer, so that another leader can go
//! on with the run. The bytes are defined in [`milkrun_repository::point::journal`].
//!
//! All records that come while one object is being written go into the next object. If it is not known whether an object was
//! written, it is tried again before anything else.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::try_join_all;
use milkrun_repository::Repository;
use milkrun_repository::id::RunId;
use milkrun_repository::keys::envelope::{self, EnvelopeError, Kind};
use milkrun_repository::point::journal::{Record, decode, encode};
use milkrun_repository::read_envelope::{self, Sealed};
use milkrun_repository::store::{CreateError, Failure, GetError, Key, read};
use milkrun_repository::wire::Malformed;

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

/// Objects of a journal that are read side by side.
const READS: usize = 16;

/// Objects that are longer than this are read one after the other: rubbish of the greatest length must not fill the memory.
const LONG: u64 = 16 << 20;

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

/// What an earlier leader left of a run.
#[derive(Debug)]
pub(crate) struct Left {
    run: RunId,
    /// The records, in order, without those that grow with the volumes: packs and regions are read again when they are needed.
    pub(crate) told: Vec<Record>,
    /// The series that count, oldest first, each with the number of its last object that counts.
    series: Vec<(u64, u32)>,
    /// The series that was read last, and its last object.
    pub(crate) epoch: u64,
    pub(crate) number: u32,
}

/// The objects of a series, up to the last one that counts.
fn series(run: &RunId, epoch: u64, last: u32) -> Vec<Key> {
    (0..=last).map(|n| Key::journal(run, epoch, n)).collect()
}

impl Left {
    /// All objects that count, in order, in batches that are read together.
    pub(crate) fn batches(&self) -> Vec<Vec<Key>> {
        let keys: Vec<Key> = self.series.iter().flat_map(|&(epoch, last)| series(&self.run, epoch, last)).collect();
        keys.chunks(READS).map(<[Key]>::to_vec).collect()
    }
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
        match read(&*self.repository.store, key, None).await {
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

    /// Reads what an earlier leader left of a run; `None` if it kept no journal.
    pub(crate) async fn read(repository: &Repository, run: &RunId) -> Result<Option<Left>, JournalError> {
        let versions = repository.store.versions(&Key::journals(run)).await?;
        let mut found: Vec<(u64, u32)> =
            versions.iter().filter(|v| !v.delete_marker).filter_map(|v| v.key.parse_journal()).collect();
        found.sort_unstable();
        found.dedup();
        let listed: HashSet<(u64, u32)> = found.iter().copied().collect();
        // A series begins at 0 and has no gaps. Anybody who may write can put any name there. So a number counts only if all
        // numbers before it are there, and an epoch counts only if its first object is sound.
        let whole = |epoch: u64| (0..).take_while(|n| listed.contains(&(epoch, *n))).last();
        let mut epochs: Vec<u64> = found.iter().map(|(epoch, _)| *epoch).collect();
        epochs.dedup();
        let mut newest = None;
        let at_once = if versions.iter().any(|v| v.length > LONG) { 1 } else { READS };
        for epoch in epochs.into_iter().rev() {
            let Some(last) = whole(epoch) else { continue };
            // Objects after the last sound one don't count either. Anybody who may write can put thousands there: several are read
            // at once.
            let from_the_end = (0..=last).rev().map(|n| async move {
                let read = Self::object(repository, Key::journal(run, epoch, n)).await;
                (n, read)
            });
            let mut from_the_end = futures::stream::iter(from_the_end).buffered(at_once);
            while let Some((n, read)) = from_the_end.next().await {
                match read {
                    Ok(_) => newest = Some((epoch, n)),
                    Err(JournalError::Refused(key, e)) => {
                        tracing::warn!(object = %key, reason = %e, "is none of the journal's");
                        continue;
                    }
                    Err(e) => return Err(e),
                }
                break;
            }
            if newest.is_some() {
                break;
            }
        }
        let Some((newest, last)) = newest else { return Ok(None) };
        let (mut counting, mut told) = (Vec::new(), Vec::new());
        let (mut epoch, mut number) = (newest, last);
        // Backwards from the newest series: each series says which one it continued, and up to which object.
        loop {
            let mut records = Vec::new();
            for some in series(run, epoch, number).chunks(READS) {
                let all = Self::objects(repository, some).await?.into_iter();
                let grows =
                    |r: &Record| matches!(r, Record::Sealed { .. } | Record::Regions { .. } | Record::Granted { .. });
                records.extend(all.filter(|r| !grows(r)));
            }
            let earlier = match records.first() {
                Some(&Record::TakeOver { epoch: earlier, number }) if earlier < epoch => Some((earlier, number)),
                _ => None,
            };
            counting.push((epoch, number));
            told.push(records);
            match earlier {
                Some(earlier) => (epoch, number) = earlier,
                None => break,
            }
        }
        counting.reverse();
        let told = told.into_iter().rev().flatten().filter(|r| !matches!(r, Record::TakeOver { .. })).collect();
        Ok(Some(Left { run: *run, told, series: counting, epoch: newest, number: last }))
    }

    /// The records of some objects, in order. All objects are read before any record is used.
    pub(crate) async fn objects(repository: &Repository, keys: &[Key]) -> Result<Vec<Record>, JournalError> {
        let objects = try_join_all(keys.iter().map(|key| Self::object(repository, key.clone()))).await?;
        Ok(objects.into_iter().flatten().collect())
    }

    async fn object(repository: &Repository, key: Key) -> Result<Vec<Record>, JournalError> {
        let body = match read_envelope::open(repository, &key, Kind::Journal).await? {
            Sealed::Body(body) => body,
            Sealed::Refused(e) => return Err(JournalError::Refused(key, e)),
            Sealed::None => return Err(JournalError::Missing(key)),
        };
        decode(&body).map_err(|e| JournalError::Malformed(key, e))
    }
}

#[cfg(test)]
mod tests {
    use milkrun_repository::chunk::page_cutter::PageCutter;
    use milkrun_repository::chunk::stream_cutter::StreamCutter;
    use milkrun_repository::config::LockPolicy;
    use milkrun_repository::keys::wrapped::Cost;
    use milkrun_repository::point::journal::{Region, Run};
    use milkrun_repository::point::root::FileSystem;
    use milkrun_repository::repository::{InitOptions, init};
    use milkrun_repository::store::faulty::{Fault, Faulty};
    use milkrun_repository::store::memory::Memory;
    use milkrun_repository::store::{Operation, Trouble};

    use super::*;

    async fn repository() -> Repository {
        let options = InitOptions {
            lock: LockPolicy::NONE,
            pages: PageCutter::DEFAULT,
            streams: StreamCutter::DEFAULT,
            cost: Cost::TEST,
        };
        init(Arc::new(Memory::new()), b"password", options).await.unwrap().repository
    }

    fn record(n: u32) -> Record {
        Record::TakeOver { epoch: 99, number: n }
    }

    /// However a write ends, the next one goes on without a gap, and nothing is in the journal twice.
    #[tokio::test]
    async fn a_write_that_failed_or_only_seemed_to_is_made_good_by_the_next() {
        for fault in [Fault::Before(Trouble::Unreachable), Fault::After(Trouble::Unreachable)] {
            let sound = repository().await;
            let calls = Arc::new(std::sync::atomic::AtomicU32::new(0));
            let script = move |_: u64, operation: Operation, key: &str| {
                let journal = operation == Operation::Create && key.starts_with("journal/");
                // Fails the second object, once.
                (journal && calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 1).then_some(fault)
            };
            let store = Arc::new(Faulty::new(sound.store.clone(), Arc::new(script)));
            let shaky = Arc::new(sound.over(store));
            let run = RunId::from_bytes([5; 8]);
            let journal = Journal::new(shaky, run, 3);
            journal.note(record(1));
            journal.write().await.unwrap();
            journal.note(Record::Ended);
            assert!(matches!(journal.write().await, Err(JournalError::Store(_))));
            journal.note(record(2));
            journal.write().await.unwrap();
            // The result leaves out take-overs. Of the other records, none is missing and none is there twice.
            let left = Journal::read(&sound, &run).await.unwrap().unwrap();
            assert_eq!((left.told, left.epoch, left.number), (vec![Record::Ended], 3, 2));
        }
    }

    /// Records that are noted together go into as many objects as they need. When the first object fails, nothing is missing or out
    /// of order.
    #[tokio::test]
    async fn objects_are_bounded_and_one_that_fails_leaves_no_gap() {
        let sound = repository().await;
        let calls = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let script = move |_: u64, operation: Operation, key: &str| {
            let journal = operation == Operation::Create && key.starts_with("journal/");
            let first = || calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
            (journal && first()).then_some(Fault::Before(Trouble::Unreachable))
        };
        let store = Arc::new(Faulty::new(sound.store.clone(), Arc::new(script)));
        let shaky = Arc::new(sound.over(store));
        let run = RunId::from_bytes([5; 8]);
        let journal = Journal::new(shaky, run, 3);
        let regions = |n: u64, runs: usize| Record::Regions {
            volume: "data".parse().unwrap(),
            regions: vec![Region {
                offset: n,
                len: 1,
                unchanged: false,
                runs: vec![Run { len: 1, chunk: None }; runs],
            }],
        };
        let all: Vec<Record> = (0..).zip([OBJECT + 7, 40_000, 20_000, 40_000, 1]).map(|(n, r)| regions(n, r)).collect();
        let (first, rest) = all.split_at(2);
        first.iter().cloned().for_each(|r| journal.note(r));
        assert!(matches!(journal.write().await, Err(JournalError::Store(_))));
        rest.iter().cloned().for_each(|r| journal.note(r));
        journal.write().await.unwrap();
        let left = Journal::read(&sound, &run).await.unwrap().unwrap();
        assert_eq!(left.number, 2, "one that is too long, two together, two together");
        let [batch] = &left.batches()[..] else { panic!("three objects") };
        assert!(Journal::objects(&sound, batch).await.unwrap() == all);
    }

    /// What an older leader writes after a newer one took over does not count.
    #[tokio::test]
    async fn a_series_counts_as_far_as_the_next_leader_read_it() {
        let repository = Arc::new(repository().await);
        let run = RunId::from_bytes([6; 8]);
        let finished = |volume: &str| {
            Record::Finished(milkrun_repository::point::journal::Finished {
                volume: volume.parse().unwrap(),
                len: 0,
                sector_bytes: 0,
                read_bytes: 0,
                new_bytes: 0,
                stored_bytes: 0,
                notes: Vec::new(),
                file_system: FileSystem::default(),
            })
        };
        let old = Journal::new(repository.clone(), run, 1);
        old.note(finished("first"));
        old.write().await.unwrap();
        let left = Journal::read(&repository, &run).await.unwrap().unwrap();
        let new = Journal::new(repository.clone(), run, 2);
        new.note(Record::TakeOver { epoch: left.epoch, number: left.number });
        new.write().await.unwrap();
        old.note(finished("too-late"));
        old.write().await.unwrap();
        new.note(finished("second"));
        new.write().await.unwrap();
        let left = Journal::read(&repository, &run).await.unwrap().unwrap();
        assert_eq!(left.told, [finished("first"), finished("second")]);
        let take_over = Record::TakeOver { epoch: 1, number: 0 };
        let [batch] = &left.batches()[..] else { panic!("three objects") };
        let all = Journal::objects(&repository, batch).await.unwrap();
        assert_eq!(all, [finished("first"), take_over, finished("second")]);
        // Two leaders can't have one epoch: the second writer gets an error.
        let twin = Journal::new(repository.clone(), run, 2);
        twin.note(finished("twin"));
        assert!(matches!(twin.write().await, Err(JournalError::Superseded(_))));
        Journal::delete(&repository, &run).await;
        assert!(Journal::read(&repository, &run).await.unwrap().is_none());
    }
}
