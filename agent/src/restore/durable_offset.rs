//! The durable offset of a target: everything before it is written and synced, so that another attempt can resume
//! there.
//!
//! A plan comes in windows of the volume. Within a window, ranges are written in any order; so everything is written up to the
//! first window that is not whole. Now and then the agent makes the target durable and reports the offset. The coordinator keeps it, in
//! the run's journal too, beside the target's tag (`device/target.rs`), and gives both to the next attempt.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{RestoreError, RestoreJob, Tally};
use crate::backup::Engine;
use crate::device::VolumeTarget;

/// A target is made durable after so many bytes of the volume, or after so long, whatever comes first.
pub const SYNC_EVERY_BYTES: u64 = 1 << 30;
const SYNC_EVERY: Duration = Duration::from_secs(30);

/// The progress that another attempt need not repeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// All before it is durable.
    pub offset: u64,
    /// Bytes that this attempt wrote before the offset.
    pub written: u64,
    /// Bytes of holes that this attempt made before the offset.
    pub holes: u64,
    /// Bytes that this attempt has fetched so far.
    pub fetched: u64,
    /// Ranged reads that this attempt has made so far.
    pub requests: u64,
}

/// Receives the durable offset.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Where it is sent.
    pub reports: mpsc::Sender<Reached>,
    /// It is sent after so many bytes of the volume.
    pub every: u64,
}

/// The number of a window.
pub(super) type Number = u64;

/// The windows of a plan that are not whole.
#[derive(Debug)]
pub(super) struct Windows {
    /// Never empty: the last one is the window whose pages come now.
    open: VecDeque<Window>,
    first: Number,
    whole: Reached,
}

#[derive(Debug, Default)]
struct Window {
    /// Where it ends. Known once all its pages have come.
    until: Option<u64>,
    /// Ranges that are not written yet.
    pending: usize,
    written: u64,
    holes: u64,
}

impl Windows {
    /// For a plan that begins at `offset`.
    pub(super) fn from(offset: u64) -> Self {
        let whole = Reached { offset, ..Reached::default() };
        Self { open: VecDeque::from([Window::default()]), first: 0, whole }
    }

    fn last(&mut self) -> &mut Window {
        let last = self.open.len() - 1;
        &mut self.open[last]
    }

    /// Records a hole that was made in the current window.
    pub(super) fn hole(&mut self, bytes: u64) {
        self.last().holes += bytes;
    }

    /// Records a range of the current window that will write so many bytes. Call [`Self::done`] when it is written.
    pub(super) fn begin(&mut self, bytes: u64) -> Number {
        let last = self.last();
        last.pending += 1;
        last.written += bytes;
        self.first + self.open.len() as u64 - 1
    }

    /// Records that all pages of the current window have come, and that it ends at `until`.
    pub(super) fn end(&mut self, until: u64) {
        self.last().until = Some(until);
        self.open.push_back(Window::default());
        self.advance();
    }

    /// Records that a range of the window with this number is written.
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

    /// How far the target is written. It need not be durable yet.
    pub(super) fn whole(&self) -> Reached {
        self.whole
    }
}

/// Syncs a target now and then, and reports the durable offset.
pub(super) struct Syncs {
    listener: Option<Listener>,
    /// The offset of the last sync, and when it began.
    synced: u64,
    when: Instant,
    under_way: Option<AbortOnDropHandle<Result<(), RestoreError>>>,
}

impl Syncs {
    pub(super) fn new(listener: Option<Listener>, from: u64) -> Self {
        Self { listener, synced: from, when: Instant::now(), under_way: None }
    }

    /// Waits for a sync that is under way. The kernel reports a failed write to one sync only, which may be this one.
    ///
    /// # Errors
    /// Why it failed.
    pub(super) async fn settle(&mut self) -> Result<(), RestoreError> {
        match self.under_way.take() {
            Some(task) => RestoreJob::joined(task.await),
            None => Ok(()),
        }
    }

    /// Begins a sync if one is due and none is under way. When it is done, the durable offset is reported.
    ///
    /// # Errors
    /// Why an earlier one failed.
    pub(super) async fn sync_if_due(
        &mut self,
        engine: &Arc<Engine>,
        target: &Arc<VolumeTarget>,
        whole: Reached,
        tally: &Tally,
    ) -> Result<(), RestoreError> {
        if self.under_way.as_ref().is_some_and(AbortOnDropHandle::is_finished) {
            self.settle().await?;
        }
        let Some(listener) = &self.listener else { return Ok(()) };
        let unsynced = whole.offset.saturating_sub(self.synced);
        let due = unsynced >= listener.every || (unsynced > 0 && self.when.elapsed() >= SYNC_EVERY);
        if due && self.under_way.is_none() {
            let (fetched, requests) = tally.fetched_so_far();
            let reached = Reached { fetched, requests, ..whole };
            (self.synced, self.when) = (whole.offset, Instant::now());
            let (engine, target, reports) = (engine.clone(), target.clone(), listener.reports.clone());
            let sync = tokio::spawn(async move {
                engine.io.run(move || target.sync()).await?;
                // An error means that this attempt is over.
                let _ = reports.send(reached).await;
                Ok(())
            });
            self.under_way = Some(AbortOnDropHandle::new(sync));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_written_up_to_its_first_window_that_is_not_whole() {
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
        // A window that has only holes is whole at once. The last window has no end until it is known.
        w.hole(50);
        w.end(250);
        assert_eq!(offset(&w), (250, 90, 60));
        let d = w.begin(1);
        w.done(d);
        assert_eq!(offset(&w), (250, 90, 60));
    }
}
