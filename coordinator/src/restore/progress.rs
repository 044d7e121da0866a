//! The progress of a restore. It is kept in the repository, so that another leader can go on with the restore. A repository that
//! takes no writes stops no restore: the restore then ends with its coordinator, and can be ordered again.
//!
//! A restore that nobody led for an hour is over: nobody goes on with it any more.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use milkrun_repository::Repository;
use milkrun_repository::clock::Moment;
use milkrun_repository::id::{AppId, PointId, RunId, VolumeName};
use milkrun_repository::keys::envelope::{self, Kind};
use milkrun_repository::point::catalog::chain;
use milkrun_repository::point::ended::{self, Outcome};
use milkrun_repository::point::journal::Record;
use milkrun_repository::point::journal::restore::{Restore, Target, Work};
use milkrun_repository::point::lease::Lease;
use milkrun_repository::store::{CreateError, Key, Version};

use super::RestoreError;
use super::order::Order;
use crate::Coordinator;
use crate::journal::{Journal, JournalError, Left};

/// How long the store may take to write a record; after that, the record is written together with the next one.
const NOTE_LIMIT: Duration = Duration::from_secs(10);
/// How long the store may take to write the end of a restore. Whoever ordered it waits so long: a restore of hours is not called
/// failed because the store has a bad moment. The store's own retries take about a minute.
const END_LIMIT: Duration = Duration::from_secs(60);
/// How often writing the end of a restore is tried again.
const END_EVERY: Duration = Duration::from_secs(10);

/// The progress of one target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reached {
    /// Everything before this offset is durable.
    pub(super) offset: u64,
    /// The tag by which its agent recognizes it; empty: nothing was ever written.
    pub(super) tag: String,
    /// The work that was done up to the offset.
    pub(super) work: Work,
    /// Whether it is complete.
    pub(super) whole: bool,
}

/// The lease of a restore: its key and version.
type Held = (Key, Version);

/// A restore's progress.
pub(crate) struct Progress {
    repository: Arc<Repository>,
    run: RunId,
    journal: Option<Journal>,
    lease: Option<Held>,
    reached: HashMap<String, Reached>,
}

/// The outcome of a restore that wrote all bytes.
const DONE: &str = "every byte is in its place";

impl Progress {
    /// For a restore that begins.
    ///
    /// # Errors
    /// [`RestoreError::Superseded`] if somebody else has it.
    pub(super) async fn begin(
        coordinator: &Coordinator,
        run: RunId,
        order: &Order,
        point: PointId,
        application: &AppId,
        ordered_by: String,
    ) -> Result<Self, RestoreError> {
        // An embedded coordinator has no successor, and without targets there is nothing to go on with.
        let kept = coordinator.leadership.is_some() && !order.targets.is_empty();
        let mut progress = Self {
            repository: coordinator.repository.clone(),
            run,
            journal: kept.then(|| Journal::new(coordinator.repository.clone(), run, coordinator.epoch)),
            lease: None,
            reached: HashMap::new(),
        };
        if !kept {
            return Ok(progress);
        }
        let target = |t: &super::TargetSpec| Target {
            volume: t.name.clone(),
            node: t.node.clone().unwrap_or_default(),
            path: t.path.clone(),
            stream: t.stream,
        };
        let begin = Restore {
            application: application.clone(),
            point,
            ordered_by,
            force: order.force,
            discard_rest: order.discard_rest,
            by_operator: order.by_operator,
            targets: order.targets.iter().map(target).collect(),
        };
        // The record of the run comes first, and then the lease that makes others look for it.
        progress.note(Record::Restore(begin)).await?;
        let app = progress.repository.ring.app_hash(application);
        let (epoch, moment) = (coordinator.epoch, Moment::now());
        let lease = Lease { run, epoch, app, moment, host: String::new() };
        match tokio::time::timeout(NOTE_LIMIT, progress.take(&lease)).await {
            Ok(Ok(held)) => progress.lease = Some(held),
            Ok(Err(e)) => tracing::warn!(%run, reason = chain(&e), "a restore that does not outlive this coordinator"),
            Err(_) => tracing::warn!(%run, "a restore that does not outlive this coordinator: the store hangs"),
        }
        Ok(progress)
    }

    /// For a restore that another leader left.
    ///
    /// # Errors
    /// [`RestoreError::Superseded`] if somebody else has it meanwhile.
    pub(super) async fn take_over(
        coordinator: &Coordinator,
        run: RunId,
        left: Left,
        lease: Held,
    ) -> Result<Self, RestoreError> {
        let mut progress = Self {
            repository: coordinator.repository.clone(),
            run,
            journal: Some(Journal::new(coordinator.repository.clone(), run, coordinator.epoch)),
            lease: Some(lease),
            reached: HashMap::new(),
        };
        for record in left.records {
            match record {
                Record::Reached { volume, offset, tag, work, moment: _ } => {
                    progress.reached.insert(volume.to_string(), Reached { offset, tag, work, whole: false });
                }
                Record::Restored { volume, work } => {
                    let reached = progress.reached.entry(volume.to_string()).or_default();
                    (reached.whole, reached.work) = (true, work);
                }
                _ => {}
            }
        }
        progress.note(Record::TakeOver { epoch: left.epoch, number: left.number }).await?;
        Ok(progress)
    }

    async fn take(&self, lease: &Lease) -> Result<Held, CreateError> {
        let (key, ring, id) = (Key::lease(&self.run), &self.repository.ring, &self.repository.config.id);
        let object = envelope::seal(ring, id, &key, Kind::Lease, &lease.encode());
        let version = self.repository.store.create(&key, object.into(), None).await?;
        Ok((key, version))
    }

    /// Whether agents have to report how far they are.
    pub(super) fn is_kept(&self) -> bool {
        self.journal.is_some()
    }

    /// How far a target was when another leader left it.
    pub(super) fn left(&self, volume: &str) -> Reached {
        self.reached.get(volume).cloned().unwrap_or_default()
    }

    /// Records how far a target is.
    ///
    /// # Errors
    /// [`RestoreError::Superseded`].
    pub(super) async fn reached(&self, volume: &VolumeName, reached: &Reached) -> Result<(), RestoreError> {
        let Reached { offset, tag, work, whole: _ } = reached.clone();
        let (moment, volume) = (Moment::now(), volume.clone());
        tracing::info!(run = %self.run, %volume, offset, "a target is durable so far");
        self.note(Record::Reached { moment, volume, offset, tag, work }).await
    }

    /// Writes a record. If it can't be written now, it is written together with the next one.
    ///
    /// # Errors
    /// [`RestoreError::Superseded`].
    pub(super) async fn note(&self, record: Record) -> Result<(), RestoreError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        journal.note(record);
        match tokio::time::timeout(NOTE_LIMIT, journal.write()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(JournalError::Superseded(key))) => return Err(RestoreError::Superseded(key)),
            Ok(Err(e)) => {
                tracing::warn!(run = %self.run, reason = chain(&e), "can't write down how far a restore is");
            }
            Err(_) => tracing::warn!(run = %self.run, "can't write down how far a restore is: the store hangs"),
        }
        Ok(())
    }

    /// Records that the restore ended, successfully or not: nobody may go on with it. If the store can't be written now, this is
    /// tried again in the background for as long as this coordinator leads.
    ///
    /// # Errors
    /// [`RestoreError::Followed`] if somebody else leads since, and goes on with it; [`RestoreError::Unended`] if that may still
    /// happen.
    pub(super) async fn end(self, coordinator: &Coordinator, outcome: Outcome) -> Result<(), RestoreError> {
        let Some(leadership) = coordinator.leadership.clone().filter(|_| self.journal.is_some()) else {
            return Ok(());
        };
        if !leadership.is_newest(coordinator.epoch).await {
            return Err(RestoreError::Followed);
        }
        if self.try_end(outcome).await {
            return Ok(());
        }
        tracing::warn!(run = %self.run, "can't write down that this restore ended: trying on, as long as this coordinator leads");
        let (epoch, has_lease) = (coordinator.epoch, self.lease.is_some());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(END_EVERY).await;
                if !leadership.is_newest(epoch).await {
                    return;
                }
                if self.try_end(outcome).await {
                    tracing::info!(run = %self.run, "the end of the restore is written");
                    return;
                }
            }
        });
        // Without a lease no other coordinator looks for the run.
        if has_lease { Err(RestoreError::Unended { how: DONE.into() }) } else { Ok(()) }
    }

    async fn try_end(&self, outcome: Outcome) -> bool {
        let Some(journal) = &self.journal else { return true };
        // This comes first, and does not depend on the journal: somebody may have taken the journal's next key.
        let ended = ended::write(&self.repository, &self.run, outcome);
        if !matches!(tokio::time::timeout(END_LIMIT, ended).await, Ok(Ok(()))) {
            return false;
        }
        journal.note(Record::Ended);
        if let Ok(Err(e)) = tokio::time::timeout(NOTE_LIMIT, journal.write()).await {
            tracing::warn!(run = %self.run, error = %e, "the end of a restore is not in its journal, only beside it");
        }
        // The lease is deleted first: others look for it.
        if let Some((key, version)) = &self.lease
            && let Err(e) = self.repository.store.delete(key, version).await
        {
            tracing::debug!(error = %e, "the lease stays for the collector");
        }
        Journal::delete(&self.repository, &self.run).await;
        true
    }
}
