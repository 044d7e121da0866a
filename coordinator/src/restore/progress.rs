//! How far a restore is, kept in the repository, so that another leader goes on with it. A repository that takes no writes
//! stops no restore: it then ends with its coordinator, and can be ordered again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use milkrun_repository::Repository;
use milkrun_repository::clock::Moment;
use milkrun_repository::id::{PointId, RunId};
use milkrun_repository::keys::envelope::{self, Kind};
use milkrun_repository::point::catalog::chain;
use milkrun_repository::point::journal::Record;
use milkrun_repository::point::journal::restore::{Restore, Target, Work};
use milkrun_repository::point::lease::Lease;
use milkrun_repository::store::{CreateError, Key, Version};

use super::RestoreError;
use super::execute::Order;
use crate::Coordinator;
use crate::journal::{Journal, JournalError, Left};

/// How long the end of a restore that failed is tried to be written down.
const END_LIMIT: Duration = Duration::from_secs(30);

/// How far a target is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reached {
    /// All before is durable.
    pub(super) offset: u64,
    /// What its agent knows it by.
    pub(super) tag: String,
    /// What was done for that.
    pub(super) work: Work,
    /// It is whole.
    pub(super) whole: bool,
}

/// A restore's lease, and where it stands.
pub(crate) type Held = (Key, Version);

/// What another leader left of a restore.
pub(crate) struct LeftOver {
    pub(crate) left: Left,
    pub(crate) lease: Held,
}

/// A restore's progress.
pub(super) struct Progress {
    repository: Arc<Repository>,
    run: RunId,
    journal: Option<Journal>,
    lease: Option<Held>,
    /// There are other leaders, or agents that come back: it is worth to know.
    kept: bool,
    writing: bool,
    reached: HashMap<String, Reached>,
}

impl Progress {
    /// Of a restore that begins, or that another leader left.
    ///
    /// # Errors
    /// [`RestoreError::Superseded`] if somebody else has it by now.
    pub(super) async fn begin(
        coordinator: &Coordinator,
        run: RunId,
        order: &Order,
        point: PointId,
        application: &milkrun_repository::id::AppName,
        ordered_by: String,
        left: Option<LeftOver>,
    ) -> Result<Self, RestoreError> {
        let kept = coordinator.leadership.is_some();
        let mut progress = Self {
            repository: coordinator.repository.clone(),
            run,
            journal: kept.then(|| Journal::new(coordinator.repository.clone(), run, coordinator.epoch)),
            lease: None,
            kept,
            writing: false,
            reached: HashMap::new(),
        };
        if !kept {
            return Ok(progress);
        }
        if let Some(LeftOver { left, lease }) = left {
            progress.lease = Some(lease);
            let (epoch, number) = (left.epoch, left.number);
            progress.replay(left.records);
            progress.note(Record::TakeOver { epoch, number }).await?;
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
            targets: order.targets.iter().map(target).collect(),
        };
        // First what the run is, then the lease that makes others look for it.
        progress.note(Record::Restore(begin)).await?;
        let app = progress.repository.ring.app_hash(application);
        let (epoch, moment) = (coordinator.epoch, Moment::now());
        let lease = Lease { run, epoch, app, moment, host: String::new() };
        match progress.take(&lease).await {
            Ok(held) => progress.lease = Some(held),
            Err(e) => tracing::warn!(%run, reason = chain(&e), "a restore that does not outlive this coordinator"),
        }
        Ok(progress)
    }

    async fn take(&self, lease: &Lease) -> Result<Held, CreateError> {
        let key = Key::lease(&self.run);
        let object =
            envelope::seal(&self.repository.ring, &self.repository.config.id, &key, Kind::Lease, &lease.encode());
        let version = self.repository.store.create(&key, object.into(), None).await?;
        Ok((key, version))
    }

    fn replay(&mut self, records: Vec<Record>) {
        for record in records {
            match record {
                Record::Writing => self.writing = true,
                Record::Reached { volume, offset, tag, work } => {
                    self.reached.insert(volume.to_string(), Reached { offset, tag, work, whole: false });
                }
                Record::Restored { volume, work } => {
                    self.reached.entry(volume.to_string()).or_default().whole = true;
                    self.reached.entry(volume.to_string()).or_default().work = work;
                }
                _ => {}
            }
        }
    }

    /// Whether how far it is is worth to be told.
    pub(super) fn is_kept(&self) -> bool {
        self.kept
    }

    /// Whether another leader had the targets written already.
    pub(super) fn left_writing(&self) -> bool {
        self.writing
    }

    /// How far another leader left a target.
    pub(super) fn left(&self, volume: &str) -> Reached {
        self.reached.get(volume).cloned().unwrap_or_default()
    }

    /// Writes down what happened. What can't be written now goes along with what is written next.
    ///
    /// # Errors
    /// [`RestoreError::Superseded`].
    pub(super) async fn note(&self, record: Record) -> Result<(), RestoreError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        journal.note(record);
        match journal.write().await {
            Ok(()) => Ok(()),
            Err(JournalError::Superseded(key)) => Err(RestoreError::Superseded(key)),
            Err(e) => {
                tracing::warn!(run = %self.run, reason = chain(&e), "can't write down how far a restore is");
                Ok(())
            }
        }
    }

    /// The restore ended, well or not: nobody goes on with it.
    pub(super) async fn end(self, coordinator: &Coordinator) {
        let Some(leadership) = &coordinator.leadership else { return };
        let ended = tokio::time::timeout(END_LIMIT, self.note(Record::Ended)).await;
        if !matches!(ended, Ok(Ok(()))) || !leadership.is_newest(coordinator.epoch).await {
            // It is somebody else's now, or the store is not there.
            tracing::warn!(run = %self.run, "another coordinator may go on with a restore that ended here");
            return;
        }
        // The lease first: it is what others look for.
        if let Some((key, version)) = &self.lease
            && let Err(e) = self.repository.store.delete(key, version).await
        {
            tracing::debug!(error = %e, "the lease stays for the collector");
        }
        Journal::delete(&self.repository, &self.run).await;
    }
}
