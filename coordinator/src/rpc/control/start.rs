//! Starts the work of a run. Its outcome is shown once it has ended, whether a client waits for it or not.

use milkrun_proto::control::v1 as control;
use milkrun_repository::id::RunId;
use milkrun_repository::point::catalog::chain;
use tracing::Instrument;

use crate::restore::RestoreError;
use crate::rpc::status;
use crate::runs::view::{Feed, Outcome};
use crate::{Coordinator, backup};

/// Starts a backup. `kept` is dropped when it has ended.
pub(super) fn backup(
    coordinator: Coordinator,
    order: backup::Order,
    run: RunId,
    feed: &Feed,
    kept: impl Send + 'static,
) {
    let (repository, epoch) = (&coordinator.name, coordinator.epoch);
    let span = tracing::info_span!("backup", %run, application = %order.application, repository, epoch);
    let (inbox, announced) = coordinator.runs.announce(run);
    let shown = feed.clone();
    let work = async move {
        let outcome = match backup::execute(&coordinator, order, run, (inbox, false), &shown).await {
            Ok(done) => Outcome::BackedUp(done),
            Err(e) => {
                tracing::info!(reason = chain(&e), "a backup failed");
                Outcome::Failed(status::backup(&e))
            }
        };
        drop(announced);
        shown.end(outcome);
        drop(kept);
    };
    tokio::spawn(work.instrument(span));
}

/// Starts a restore, which `work` carries out.
pub(super) fn restore<F>(coordinator: Coordinator, run: RunId, feed: &Feed, work: impl FnOnce(Coordinator, Feed) -> F)
where
    F: Future<Output = Result<control::RestoreDone, RestoreError>> + Send + 'static,
{
    let span = tracing::info_span!("restore", %run, repository = coordinator.name, epoch = coordinator.epoch);
    let shown = feed.clone();
    let work = work(coordinator, feed.clone());
    let work = async move {
        shown.end(match work.await {
            Ok(done) => Outcome::Restored(done),
            Err(e) => Outcome::Failed(status::restore(&e)),
        });
    };
    tokio::spawn(work.instrument(span));
}
