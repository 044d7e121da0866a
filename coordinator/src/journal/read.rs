//! Reading what an earlier leader left of a run's journal.

use std::collections::HashSet;

use futures::StreamExt;
use futures::future::try_join_all;
use milkrun_repository::Repository;
use milkrun_repository::id::RunId;
use milkrun_repository::keys::envelope::Kind;
use milkrun_repository::point::journal::{Record, decode};
use milkrun_repository::read_envelope::{self, Sealed};
use milkrun_repository::store::Key;

use super::{Journal, JournalError};

/// Objects of a journal that are read side by side.
const READS: usize = 16;

/// Objects that are longer than this are read one after the other: rubbish of the greatest length must not fill the memory.
const LONG: u64 = 16 << 20;

/// What an earlier leader left of a run.
#[derive(Debug)]
pub(crate) struct Left {
    run: RunId,
    /// The records, in order, without those that grow with the volumes: packs and regions are read again when they are needed.
    pub(crate) records: Vec<Record>,
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
        let (mut counting, mut by_series) = (Vec::new(), Vec::new());
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
            by_series.push(records);
            match earlier {
                Some(earlier) => (epoch, number) = earlier,
                None => break,
            }
        }
        counting.reverse();
        let records = by_series.into_iter().rev().flatten().filter(|r| !matches!(r, Record::TakeOver { .. })).collect();
        Ok(Some(Left { run: *run, records, series: counting, epoch: newest, number: last }))
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
