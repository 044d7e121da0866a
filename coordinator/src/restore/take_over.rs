//! Goes on with a restore that an earlier leader left.

use std::time::Duration;

use milkrun_repository::clock::Moment;
use milkrun_repository::id::RunId;
use milkrun_repository::point::Selector;
use milkrun_repository::point::catalog::chain;
use milkrun_repository::point::ended::Outcome as Ended;
use milkrun_repository::point::journal::Record;
use milkrun_repository::point::journal::restore::{Restore, Target};
use milkrun_repository::store::{Key, Version};
use tonic::Code;

use super::execute::{carry_out, look_up};
use super::progress::Progress;
use super::{Order, RestoreError, TargetSpec};
use crate::Coordinator;
use crate::journal::Left;
use crate::rpc::status;
use crate::runs::view::{Feed, Kind, Outcome};

/// A restore that nobody led for this long is over. The people who waited for it may have found another way, and its targets may be
/// in use.
const GO_ON_WITHIN: Duration = Duration::from_secs(3600);

/// How often the store is asked again for the point of a restore that was left.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// A restore that was left.
pub(crate) struct LeftRestore {
    /// Its run.
    pub(crate) run: RunId,
    /// What it is to do.
    pub(crate) restore: Restore,
    /// When it began.
    pub(crate) began: Moment,
    /// Its journal.
    pub(crate) left: Left,
    /// Its lease.
    pub(crate) lease: (Key, Version),
}

impl LeftRestore {
    /// Its targets: nobody else may write there until it is over.
    pub(crate) fn targets(&self) -> Vec<(Option<String>, String)> {
        let node = |t: &Target| Some(t.node.clone()).filter(|n| !n.is_empty());
        self.restore.targets.iter().map(|t| (node(t), t.path.clone())).collect()
    }

    /// Goes on with the restore. The manifests are not returned again: the client that ordered them does not wait here.
    pub(crate) async fn go_on(self, coordinator: &Coordinator) {
        let run = self.run;
        let feed =
            Feed::new(run, Kind::Restore, Some(self.restore.application.clone()), self.restore.ordered_by.clone())
                .of_repository(&coordinator.name);
        coordinator.runs.show(feed.clone());
        let outcome = match self.try_on(coordinator, &feed).await {
            Ok(done) => Outcome::Restored(done),
            Err(e) => {
                tracing::error!(%run, reason = chain(&e), "a restore failed");
                Outcome::Failed(status::restore(&e))
            }
        };
        coordinator.restores.end(&run);
        coordinator.runs.end(&run);
        feed.end(outcome);
    }

    async fn try_on(
        self,
        coordinator: &Coordinator,
        feed: &Feed,
    ) -> Result<milkrun_proto::control::v1::RestoreDone, RestoreError> {
        let moments = self.left.records.iter().filter_map(|r| match r {
            Record::Reached { moment, .. } => Some(*moment),
            _ => None,
        });
        let newest = moments.max().unwrap_or(self.began).max(self.began);
        let is_old = newest.plus(GO_ON_WITHIN) < Moment::now();
        let order = order_of(self.restore);
        let progress = Progress::take_over(coordinator, self.run, self.left, self.lease).await?;
        if is_old {
            progress.end(coordinator, Ended::Failed).await?;
            return Err(RestoreError::Old);
        }
        loop {
            match look_up(coordinator, &order, None, feed).await {
                Ok(looked_up) => {
                    return Ok(carry_out(coordinator, &order, looked_up, self.run, feed, progress).await?.report);
                }
                // The restore is not given up for that: giving it up would free its targets for others.
                Err(e) if status::restore(&e).code() == Code::Unavailable => {
                    tracing::warn!(run = %self.run, reason = chain(&e), "a restore that was left waits for the store");
                    tokio::time::sleep(ASK_EVERY).await;
                }
                Err(e) => {
                    progress.end(coordinator, Ended::Failed).await?;
                    return Err(e);
                }
            }
        }
    }

    /// Ends the restore, since another restore has one of its targets.
    pub(crate) async fn give_up(self, coordinator: &Coordinator, path: String, other: RunId) {
        let run = self.run;
        let feed =
            Feed::new(run, Kind::Restore, Some(self.restore.application.clone()), self.restore.ordered_by.clone())
                .of_repository(&coordinator.name);
        coordinator.runs.show(feed.clone());
        let taken = RestoreError::Taken { path, run: other };
        tracing::error!(%run, reason = chain(&taken), "a restore that was left is over");
        if let Ok(progress) = Progress::take_over(coordinator, run, self.left, self.lease).await
            && let Err(e) = progress.end(coordinator, Ended::Failed).await
        {
            tracing::warn!(%run, reason = chain(&e), "and may go on elsewhere");
        }
        feed.end(Outcome::Failed(status::restore(&taken)));
    }
}

fn order_of(restore: Restore) -> Order {
    let target = |t: Target| TargetSpec {
        name: t.volume,
        path: t.path,
        node: Some(t.node).filter(|n| !n.is_empty()),
        stream: t.stream,
    };
    Order {
        selector: Selector::Point(restore.point),
        selector_text: restore.point.to_string(),
        targets: restore.targets.into_iter().map(target).collect(),
        manifests: false,
        force: restore.force,
        discard_rest: restore.discard_rest,
        by_operator: restore.by_operator,
    }
}
