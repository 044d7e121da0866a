//! How far a target is durable: all before this offset is written and synced, so that another attempt goes on from there.
//!
//! A plan comes in windows of the volume; within one, ranges are written in any order. The target is as far as the first
//! window that is not whole. Now and then the agent makes the target durable and reports the offset. The coordinator keeps it, in
//! the run's journal too, beside the target's tag (`device/target.rs`), and gives both to the next attempt.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{RestoreError, RestoreJob, Tally};
use crate::backup::Engine;
use crate::device::VolumeTarget;

/// A target is made durable after so many bytes of the volume, or after so long, whatever comes first.
pub const SYNC_EVERY_BYTES: u64 = 1 << 30;
const SYNC_EVERY: Duration = Duration::from_secs(30);

/// What another attempt need not do again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// All before it is durable.
    pub offset: u64,
    /// Bytes written for that, by this attempt.
    pub written: u64,
    /// Bytes of holes, the same.
    pub holes: u64,
    /// Bytes fetched so far, by this attempt.
    pub fetched: u64,
    /// Ranged reads, the same.
    pub requests: u64,
}

/// Whoever hears how far a target is.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Hears it.
    pub reports: mpsc::Sender<Reached>,
    /// After so many bytes of the volume.
    pub every: u64,
}

/// The number of a window.
pub(super) type Number = u64;

/// The windows of a plan that are not whole.
#[derive(Debug)]
pub(super) struct Windows {
    /// Never empty: the last one is the window that comes now.
    open: VecDeque<Window>,
    first: Number,
    whole: Reached,
}

#[derive(Debug, Default)]
struct Window {
    /// Where it ends, once that is known: no more of it comes.
    until: Option<u64>,
    /// Ranges that are not written.
    pending: usize,
    written: u64,
    holes: u64,
}

impl Windows {
    /// For a plan that begins here.
    pub(super) fn from(offset: u64) -> Self {
        let whole = Reached { offset, ..Reached::default() };
        Self { open: VecDeque::from([Window::default()]), first: 0, whole }
    }

    fn last(&mut self) -> &mut Window {
        let last = self.open.len() - 1;
        &mut self.open[last]
    }

    /// A hole of the window that comes now is dealt with.
    pub(super) fn hole(&mut self, bytes: u64) {
        self.last().holes += bytes;
    }

    /// A range of the window that comes now is under way, which writes so many bytes. Its end is told to [`Self::done`].
    pub(super) fn begin(&mut self, bytes: u64) -> Number {
        let last = self.last();
        last.pending += 1;
        last.written += bytes;
        self.first + self.open.len() as u64 - 1
    }

    /// The window that came is complete, and ends there.
    pub(super) fn end(&mut self, until: u64) {
        self.last().until = Some(until);
        self.open.push_back(Window::default());
        self.advance();
    }

    /// A range of that window is written.
    pub(super) fn done(&mut self, number: Number) {
        let at = usize::try_from(number - self.first).unwrap_or(usize::MAX);
        if let Some(window) = self.open.get_mut(at) {
            window.pending -= 1;
        }
        self.advance();
    }

    fn advance(&mut self) {
        while let Some(&Window { until: Some(until), pending: 0, written, holes }) = self.open.front() {
            self.whole.offset = until;
            self.whole.written += written;
            self.whole.holes += holes;
            self.open.pop_front();
            self.first += 1;
        }
    }

    /// How far the target is; not yet durable.
    pub(super) fn whole(&self) -> Reached {
        self.whole
    }
}

/// Makes a target durable now and then, and tells how far it is.
pub(super) struct Syncs {
    listener: Option<Listener>,
    /// What was made durable last, and when.
    told: u64,
    when: Instant,
    under_way: Option<tokio::task::JoinHandle<Result<(), RestoreError>>>,
}

impl Drop for Syncs {
    fn drop(&mut self) {
        if let Some(task) = &self.under_way {
            task.abort();
        }
    }
}

impl Syncs {
    pub(super) fn new(listener: Option<Listener>, from: u64) -> Self {
        Self { listener, told: from, when: Instant::now(), under_way: None }
    }

    /// Waits for one that is under way: the kernel tells of bytes that it could not write once, and perhaps only there.
    ///
    /// # Errors
    /// Why it failed.
    pub(super) async fn settle(&mut self) -> Result<(), RestoreError> {
        match self.under_way.take() {
            Some(task) => RestoreJob::joined(task.await),
            None => Ok(()),
        }
    }

    /// Begins a sync if one is due and none is under way; its end is told.
    ///
    /// # Errors
    /// Why one failed.
    pub(super) async fn look(
        &mut self,
        engine: &Arc<Engine>,
        target: &Arc<VolumeTarget>,
        whole: Reached,
        tally: &Tally,
    ) -> Result<(), RestoreError> {
        if self.under_way.as_ref().is_some_and(tokio::task::JoinHandle::is_finished) {
            self.settle().await?;
        }
        let Some(listener) = &self.listener else { return Ok(()) };
        let news = whole.offset.saturating_sub(self.told);
        let due = news >= listener.every || (news > 0 && self.when.elapsed() >= SYNC_EVERY);
        if due && self.under_way.is_none() {
            let (fetched, requests) = tally.fetched_so_far();
            let reached = Reached { fetched, requests, ..whole };
            (self.told, self.when) = (whole.offset, Instant::now());
            let (engine, target, reports) = (engine.clone(), target.clone(), listener.reports.clone());
            self.under_way = Some(tokio::spawn(async move {
                engine.io.run(move || target.sync()).await?;
                // Who listens is gone only when this attempt is over.
                let _ = reports.send(reached).await;
                Ok(())
            }));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_as_far_as_its_first_window_that_is_not_whole() {
        let mut w = Windows::from(100);
        w.hole(10);
        let (a, b) = (w.begin(20), w.begin(30));
        w.end(160);
        let c = w.begin(40);
        w.end(200);
        let offset = |w: &Windows| (w.whole().offset, w.whole().written, w.whole().holes);
        w.done(c);
        w.done(a);
        assert_eq!(offset(&w), (100, 0, 0));
        w.done(b);
        assert_eq!(offset(&w), (200, 90, 10));
        // A window of holes alone is whole at once; the last one ends without a word.
        w.hole(50);
        w.end(250);
        assert_eq!(offset(&w), (250, 90, 60));
        let d = w.begin(1);
        w.done(d);
        assert_eq!(offset(&w), (250, 90, 60));
    }
}
