//! The restore of one volume: from a plan to a device, a file or a stream.
//!
//! Ranges are fetched in parallel and written as they arrive (for a stream: in order). Each chunk's id is checked
//! before a byte of it is written. The restore is finished only when the target is durable.

mod chunks;
mod durable_offset;
pub(crate) mod finished;
mod groups;

pub use durable_offset::{Listener, Reached, SYNC_EVERY_BYTES};

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use milkrun_repository::id::{PackId, RepositoryId};
use milkrun_repository::keys::DomainKey;
use milkrun_repository::pack::OpenError;
use milkrun_repository::restore_plan::Write;
use milkrun_repository::store::GetError;
use milkrun_repository::store::grant::Redeem;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::backup::Engine;
use crate::budget::Permit;
use crate::buffer::RangeBuffers;
use crate::device::{StreamPartial, StreamTarget, TargetError, VolumeTarget};
use crate::rpc::{CallError, Coordinator, GrantedRange, Page};
use durable_offset::{Number, Syncs, Windows};
use groups::Groups;

/// One volume's restore.
pub struct RestoreJob {
    /// What all share.
    pub engine: Arc<Engine>,
    /// The coordinator, for this assignment.
    pub coordinator: Coordinator,
    /// Uses grants.
    pub redeem: Arc<dyn Redeem>,
    /// The repository: each slot is bound to its id.
    pub repository: RepositoryId,
    /// Checks the ids of chunks.
    pub domain: DomainKey,
    /// What was done so far.
    pub tally: Arc<Tally>,
    /// Bytes of the volume.
    pub len: u64,
    /// The durable offset of an earlier attempt: everything before it need not be written again.
    pub from: u64,
    /// Receives the durable offset.
    pub listener: Option<Listener>,
    /// Whether an unfinished file stays for another attempt.
    pub keep: Arc<AtomicBool>,
}

/// Counters of one restore.
#[derive(Debug, Default)]
pub struct Tally {
    /// Bytes written.
    pub written: AtomicU64,
    /// Bytes of holes.
    pub holes: AtomicU64,
    /// Bytes fetched.
    pub fetched: AtomicU64,
    /// Ranged reads.
    pub requests: AtomicU64,
}

impl Tally {
    fn wrote(&self, bytes: u64) {
        Self::add(&self.written, bytes);
        metrics::counter!("milkrun_agent_restored_bytes_total").increment(bytes);
    }

    /// Bytes and ranged reads.
    fn fetched_so_far(&self) -> (u64, u64) {
        (self.fetched.load(Ordering::Relaxed), self.requests.load(Ordering::Relaxed))
    }

    fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// Why a restore failed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The coordinator.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A pack could not be read.
    #[error("can't read pack {pack}, bytes {start}..{end}")]
    Fetch {
        /// Which one.
        pack: PackId,
        /// From.
        start: u64,
        /// To.
        end: u64,
        /// Why.
        #[source]
        source: GetError,
    },
    /// A chunk is damaged; nothing of it was written.
    #[error("pack {pack}, slot {slot} (needed at byte {offset} of the volume)")]
    Damaged {
        /// Which pack.
        pack: PackId,
        /// Which slot.
        slot: u32,
        /// Where it should have been written.
        offset: u64,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// The plan does not cover the volume.
    #[error("the plan covers {covered} bytes of a volume of {len}")]
    Incomplete {
        /// What it covers.
        covered: u64,
        /// The volume's bytes.
        len: u64,
    },
    /// The plan is not in the order that a stream needs.
    #[error("the plan has {len} bytes at byte {offset} of a volume of {volume}, after all up to byte {at}")]
    OutOfOrder {
        /// Where they should be written.
        offset: u64,
        /// How many.
        len: u64,
        /// Up to here the stream is written.
        at: u64,
        /// The volume's bytes.
        volume: u64,
    },
    /// zstd or the like could not start.
    #[error("can't set up decompression")]
    Setup(#[source] std::io::Error),
}

/// Zeros that are written to a stream in one job.
const ZEROS_BYTES: u64 = 64 << 20;

/// The opened chunks of a group: parts of the volume, in order.
type Parts = Vec<(u64, Vec<u8>)>;

impl RestoreJob {
    /// Restores to a device or file.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub async fn to_volume(self: Arc<Self>, target: Arc<VolumeTarget>) -> Result<(), RestoreError> {
        // Dropped with this future, however it ends: after that nothing is written, and no unfinished file is left.
        let _writing = target.begin()?;
        let result = self.clone().write_volume(&target).await;
        // Only an attempt that lost the coordinator is resumed; after any other failure the unfinished file is removed.
        if !matches!(result, Ok(()) | Err(RestoreError::Call(_))) {
            self.keep.store(false, Ordering::SeqCst);
        }
        result
    }

    async fn write_volume(self: Arc<Self>, target: &Arc<VolumeTarget>) -> Result<(), RestoreError> {
        let mut pages = self.coordinator.plan(false, self.from).await?;
        let mut tasks: JoinSet<Result<Number, RestoreError>> = JoinSet::new();
        let (mut windows, mut syncs) = (Windows::from(self.from), Syncs::new(self.listener.clone(), self.from));
        while let Some(Page { holes, ranges, until, grouped: _ }) = pages.next().await? {
            for (offset, len) in holes {
                let target = target.clone();
                self.engine.io.run(move || target.zero(offset, len)).await?;
                Tally::add(&self.tally.holes, len);
                windows.hole(len);
            }
            for range in ranges {
                let permit = self.engine.budget.transfer(Self::cost(&range)).await;
                while let Some(done) = tasks.try_join_next() {
                    windows.done(Self::joined(done)?);
                }
                syncs.sync_if_due(&self.engine, target, windows.whole(), &self.tally).await?;
                let number = windows.begin(range.slots.iter().flat_map(|s| &s.writes).map(|w| u64::from(w.len)).sum());
                let written = self.clone().range_to_volume(range, target.clone(), permit);
                tasks.spawn(async move { written.await.map(|()| number) });
            }
            if let Some(until) = until {
                windows.end(until);
            }
        }
        while let Some(done) = tasks.join_next().await {
            windows.done(Self::joined(done)?);
            syncs.sync_if_due(&self.engine, target, windows.whole(), &self.tally).await?;
        }
        syncs.settle().await?;
        self.check_coverage()?;
        let finishing = target.clone();
        Ok(self.engine.io.run(move || finishing.finish()).await?)
    }

    /// Restores to a stream, in order.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub async fn to_stream(
        self: Arc<Self>,
        mut target: StreamTarget,
        _partial: StreamPartial,
    ) -> Result<(), RestoreError> {
        let mut pages = self.coordinator.plan(true, 0).await?;
        let mut in_flight = FuturesOrdered::new();
        let (mut at, mut groups) = (0, Groups::default());
        loop {
            // Groups in flight hold room of the budget. The coordinator may send our next page only after another
            // volume got such room, so they are written while this waits for the page.
            let page = tokio::select! {
                biased;
                page = pages.next() => page?,
                Some(opened) = in_flight.next(), if !in_flight.is_empty() => {
                    target = self.write_in_order(opened?, target, &mut at).await?;
                    continue;
                }
            };
            let Some(page) = page else { break };
            for group in groups.of(page)? {
                let cost = Self::cost_in_order(&group);
                let permit = loop {
                    if let Some(permit) = self.engine.budget.try_transfer(cost) {
                        break permit;
                    }
                    // Groups in flight hold the room. They give it back when they are written, which happens only here.
                    match in_flight.next().await {
                        Some(opened) => target = self.write_in_order(opened?, target, &mut at).await?,
                        None => break self.engine.budget.transfer(cost).await,
                    }
                };
                let opening = tokio::spawn(self.clone().open_parts(group, permit));
                in_flight.push_back(AbortOnDropHandle::new(opening).map(Self::joined));
            }
        }
        while let Some(opened) = in_flight.next().await {
            target = self.write_in_order(opened?, target, &mut at).await?;
        }
        groups.end(self.len)?;
        let rest = self.len.saturating_sub(at);
        target = self.zeros(target, rest).await?;
        self.check_coverage()?;
        Ok(self.engine.io.run(move || target.finish()).await?)
    }

    /// The budget of a range in flight: its sealed bytes (chunks are opened one at a time).
    fn cost(range: &GrantedRange) -> u64 {
        RangeBuffers::class(range.end - range.start)
    }

    /// The budget of a group: its opened chunks wait in memory for their turn, too. Its ranges are fetched one after
    /// the other, so only the largest counts.
    fn cost_in_order(group: &[GrantedRange]) -> u64 {
        let writes = group.iter().flat_map(|range| &range.slots).flat_map(|slot| &slot.writes);
        group.iter().map(Self::cost).max().unwrap_or(0) + writes.map(|w| u64::from(w.len)).sum::<u64>()
    }

    fn joined<T>(done: Result<Result<T, RestoreError>, tokio::task::JoinError>) -> Result<T, RestoreError> {
        match done {
            Ok(result) => result,
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        }
    }

    fn check_coverage(&self) -> Result<(), RestoreError> {
        let covered = self.from + self.tally.written.load(Ordering::Relaxed) + self.tally.holes.load(Ordering::Relaxed);
        if covered == self.len { Ok(()) } else { Err(RestoreError::Incomplete { covered, len: self.len }) }
    }

    async fn range_to_volume(
        self: Arc<Self>,
        range: GrantedRange,
        target: Arc<VolumeTarget>,
        permit: Permit,
    ) -> Result<(), RestoreError> {
        let put = move |job: &Self, plain: &mut Vec<u8>, writes: &[Write]| {
            let parts = writes.iter().map(|w| (w.volume_offset, w.chunk_offset as usize, w.len as usize));
            target.write_parts(plain, parts.collect())?;
            job.tally.wrote(writes.iter().map(|w| u64::from(w.len)).sum());
            Ok(())
        };
        self.each_chunk(range, put).await?;
        drop(permit);
        Ok(())
    }

    async fn open_parts(
        self: Arc<Self>,
        group: Vec<GrantedRange>,
        permit: Permit,
    ) -> Result<(Parts, Permit), RestoreError> {
        let parts = Arc::new(Mutex::new(Parts::new()));
        for range in group {
            let opened = parts.clone();
            let put = move |_: &Self, plain: &mut Vec<u8>, writes: &[Write]| {
                opened.lock().unwrap_or_else(PoisonError::into_inner).extend(writes.iter().map(|w| {
                    let from = w.chunk_offset as usize;
                    (w.volume_offset, plain[from..from + w.len as usize].to_vec())
                }));
                Ok(())
            };
            self.clone().each_chunk(range, put).await?;
        }
        let mut parts = std::mem::take(&mut *parts.lock().unwrap_or_else(PoisonError::into_inner));
        parts.sort_unstable_by_key(|(offset, _)| *offset);
        Ok((parts, permit))
    }

    /// Writes the opened chunks of a group.
    async fn write_in_order(
        &self,
        (parts, permit): (Parts, Permit),
        mut target: StreamTarget,
        at: &mut u64,
    ) -> Result<StreamTarget, RestoreError> {
        for (offset, bytes) in parts {
            let len = bytes.len() as u64;
            let end = offset.checked_add(len).filter(|&end| offset >= *at && end <= self.len);
            let end = end.ok_or(RestoreError::OutOfOrder { offset, len, at: *at, volume: self.len })?;
            // Between parts there are holes, which are written as zeros to a stream.
            target = self.zeros(target, offset - *at).await?;
            target = self
                .engine
                .io
                .run(move || {
                    target.write(&bytes)?;
                    Ok::<_, RestoreError>(target)
                })
                .await?;
            self.tally.wrote(len);
            *at = end;
        }
        drop(permit);
        Ok(target)
    }

    /// Writes zeros, in jobs that are short enough that a cancelled restore ends soon.
    async fn zeros(&self, mut target: StreamTarget, len: u64) -> Result<StreamTarget, RestoreError> {
        let mut left = len;
        while left > 0 {
            let now = left.min(ZEROS_BYTES);
            let written = move || {
                let zeros = vec![0; 1 << 20];
                for at in (0..now).step_by(zeros.len()) {
                    let n = usize::try_from(now - at).unwrap_or(zeros.len()).min(zeros.len());
                    target.write(&zeros[..n])?;
                }
                Ok::<_, RestoreError>(target)
            };
            target = self.engine.io.run(written).await?;
            Tally::add(&self.tally.holes, now);
            left -= now;
        }
        Ok(target)
    }
}
