//! How far a restore is, kept in the repository, so that another leader goes on with it. A repository that takes no writes
//! stops no restore: it then ends with its coordinator, and can be ordered again.
//!
//! A restore that nobody led for an hour is over: nobody goes on with it.

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

/// How long a store may take to write down what happened; it goes along with what is written next.
const NOTE_LIMIT: Duration = Duration::from_secs(10);
/// How often the end of a restore is tried to be written down, once it is over.
const END_EVERY: Duration = Duration::from_secs(10);

/// How far a target is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reached {
    /// All before is durable.
    pub(super) offset: u64,
    /// What its agent knows it by; empty: nothing was ever written.
    pub(super) tag: String,
    /// What was done for that.
    pub(super) work: Work,
    /// It is whole.
    pub(super) whole: bool,
}

/// A restore's lease, and where it stands.
type Held = (Key, Version);

/// A restore's progress.
pub(crate) struct Progress {
    repository: Arc<Repository>,
    run: RunId,
    journal: Option<Journal>,
    lease: Option<Held>,
    reached: HashMap<String, Reached>,
}

/// How a restore ended that brought all bytes.
const DONE: &str = "every byte is in its place";

impl Progress {
    /// Of a restore that begins.
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
        // Nobody follows an embedded coordinator, and without targets there is nothing to go on with.
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
        // First what the run is, then the lease that makes others look for it.
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

    /// Of a restore that another leader left.
    ///
    /// # Errors
    /// [`RestoreError::Superseded`] if somebody else has it by now.
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
        for record in left.told {
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

    /// Whether agents are to say how far they are.
    pub(super) fn is_kept(&self) -> bool {
        self.journal.is_some()
    }

    /// How far another leader left a target.
    pub(super) fn left(&self, volume: &str) -> Reached {
        self.reached.get(volume).cloned().unwrap_or_default()
    }

    /// A target is so far.
    ///
    /// # Errors
    /// [`RestoreError::Superseded`].
    pub(super) async fn reached(&self, volume: &VolumeName, reached: &Reached) -> Result<(), RestoreError> {
        let Reached { offset, tag, work, whole: _ } = reached.clone();
        let (moment, volume) = (Moment::now(), volume.clone());
        tracing::info!(run = %self.run, %volume, offset, "a target is durable so far");
        self.note(Record::Reached { moment, volume, offset, tag, work }).await
    }

    /// Writes down what happened. What can't be written now goes along with what is written next.
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

    /// The restore ended, well or not: nobody may go on with it. If the store can't be told now, that goes on in the background
    /// for as long as this coordinator leads.
    ///
    /// # Errors
    /// [`RestoreError::Followed`] if somebody else leads since, and goes on with it; [`RestoreError::Unended`] if somebody else could.
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
        // Without a lease nobody looks for it.
        if has_lease { Err(RestoreError::Unended { how: DONE.into() }) } else { Ok(()) }
    }

    async fn try_end(&self, outcome: Outcome) -> bool {
        let Some(journal) = &self.journal else { return true };
        // First of all, and whatever becomes of the journal: somebody may hold its next key.
        let ended = ended::write(&self.repository, &self.run, outcome);
        if !matches!(tokio::time::timeout(NOTE_LIMIT, ended).await, Ok(Ok(()))) {
            return false;
        }
        journal.note(Record::Ended);
        if let Ok(Err(e)) = tokio::time::timeout(NOTE_LIMIT, journal.write()).await {
            tracing::warn!(run = %self.run, error = %e, "the end of a restore is not in its journal, only beside it");
        }
        // The lease first: it is what others look for.
        if let Some((key, version)) = &self.lease
            && let Err(e) = self.repository.store.delete(key, version).await
        {
            tracing::debug!(error = %e, "the lease stays for the collector");
        }
        Journal::delete(&self.repository, &self.run).await;
        true
    }
}
