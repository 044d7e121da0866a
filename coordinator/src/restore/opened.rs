//! A restore that is opened before its targets are known. They are kept here until it is finished. From then on it is a restore
//! like any other: all targets are checked before any is written. After a failover, the client opens it again with the same
//! request.

use milkrun_identity::Peer;
use milkrun_repository::id::RunId;

use super::RestoreError;
use super::execute::{Done, execute, find};
use super::order::{Order, TargetSpec};
use crate::Coordinator;
use crate::runs::view::Feed;
use crate::runs::{Inbox, OPEN_MAX, RunEvent};

/// Runs a restore to its end, from the moment when it was opened.
///
/// # Errors
/// [`RestoreError`].
pub(crate) async fn execute_opened(
    coordinator: &Coordinator,
    mut order: Order,
    by: &Peer,
    run: RunId,
    (mut inbox, feed): (Inbox, &Feed),
) -> Result<Done, RestoreError> {
    let point = find(coordinator, &order, Some(by), feed).await?;
    let known: Vec<String> = point.body.volumes.iter().map(|v| v.name.to_string()).collect();
    // The point that was the newest when the restore was opened stays its point.
    let id = point.found.root.id();
    order.selector = milkrun_repository::point::Selector::Point(id);
    drop(point);
    feed.update(|v| v.point = id.to_string());
    match tokio::time::timeout(OPEN_MAX, collect(&mut order, &known, &mut inbox)).await {
        Ok(collected) => collected?,
        Err(_) => return Err(RestoreError::NeverFinished),
    }
    execute(coordinator, order, by, run, feed).await
}

/// Adds targets until the order is complete.
async fn collect(order: &mut Order, known: &[String], inbox: &mut Inbox) -> Result<(), RestoreError> {
    while let Some(event) = inbox.next().await {
        match event {
            RunEvent::AddTarget(target, reply) => drop(reply.send(add(order, known, *target))),
            RunEvent::AddSource(_, reply) => drop(reply.send(Err("the run is a restore: it has no sources".into()))),
            RunEvent::Complete(_, reply) if order.targets.is_empty() && !order.manifests => {
                drop(reply.send(Err("nothing to restore: add at least one target".into())));
            }
            RunEvent::Complete(_, reply) => {
                drop(reply.send(Ok(())));
                return Ok(());
            }
            RunEvent::Cancel => return Err(RestoreError::Cancelled),
            _ => {}
        }
    }
    Err(RestoreError::Cancelled)
}

fn add(order: &mut Order, known: &[String], target: TargetSpec) -> Result<(), String> {
    if target.node.is_none() {
        return Err(format!("say on which node {} goes", target.name));
    }
    if !known.iter().any(|name| name == target.name.as_str()) {
        return Err(format!("the point has no volume {}; it has {}", target.name, known.join(", ")));
    }
    match order.targets.iter().find(|t| t.name == target.name) {
        Some(same) if *same == target => Ok(()),
        Some(_) => Err(format!("{} has another target already", target.name)),
        None => {
            order.targets.push(target);
            Ok(())
        }
    }
}
