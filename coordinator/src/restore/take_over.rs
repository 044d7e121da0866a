//! Going on with a restore that an earlier leader left.

use milkrun_repository::id::RunId;
use milkrun_repository::point::Selector;
use milkrun_repository::point::catalog::chain;
use milkrun_repository::point::journal::restore::Restore;

use super::execute::{Authority, execute};
use super::progress::LeftOver;
use super::{Order, TargetSpec};
use crate::Coordinator;
use crate::rpc::status;
use crate::runs::view::{Feed, Kind, Outcome};

/// Goes on. The manifests went to whoever ordered, or did not: nobody waits for them here.
pub(crate) async fn go_on(coordinator: &Coordinator, run: RunId, restore: Restore, left: LeftOver) {
    let feed = Feed::new(run, Kind::Restore, restore.application.to_string(), restore.ordered_by.clone());
    coordinator.runs.show(feed.clone());
    let outcome = match execute(coordinator, order_of(restore), Authority::Before(left), run, &feed).await {
        Ok(done) => Outcome::Restored(done.report),
        Err(e) => {
            tracing::error!(%run, reason = chain(&e), "a restore failed");
            Outcome::Failed(status::restore(&e))
        }
    };
    feed.end(outcome);
}

fn order_of(restore: Restore) -> Order {
    let target = |t: milkrun_repository::point::journal::restore::Target| TargetSpec {
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
    }
}
