//! Orders that wait for their turn: `leases/waiting/<run>`, sealed in an envelope. The body is a journal's `Begin` record. A leader that
//! takes over lets them wait on. The order has no time; the point's time is set when the run starts.

use milkrun_repository::Repository;
use milkrun_repository::clock::Moment;
use milkrun_repository::id::{AppHash, RunId};
use milkrun_repository::keys::envelope::{self, Kind};
use milkrun_repository::point::ended;
use milkrun_repository::point::journal::{self, Record};
use milkrun_repository::point::root::Root;
use milkrun_repository::read_envelope::{self, Sealed};
use milkrun_repository::store::{CreateError, Failure, Key, Version};

use super::BackupError;
use super::order::Order;
use super::replay::begin;
use crate::runs::view::Feed;

/// Writes an order down. Returns the version to delete.
pub(super) async fn write(
    repository: &Repository,
    run: RunId,
    order: &Order,
    feed: &Feed,
) -> Result<Option<Version>, BackupError> {
    let key = Key::waiting(&run);
    // What a root says is settled when it begins.
    let root = Root {
        tombstone: false,
        repository: repository.config.id,
        app: AppHash::from_bytes([0; AppHash::LEN]),
        domain: 0,
        class: order.class,
        run,
        moment: Moment::now(),
        lock_until: None,
    };
    let body = journal::encode(&[begin(order, &root, order.parent.parse().ok(), feed.now().ordered_by)]);
    let object = envelope::seal(&repository.ring, &repository.config.id, &key, Kind::Waiting, &body);
    match repository.store.create(&key, object.into(), None).await {
        Ok(version) => Ok(Some(version)),
        // A leader before wrote it: this one goes on waiting.
        Err(CreateError::Exists(_)) => Ok(None),
        Err(CreateError::Failed(f)) => Err(f.into()),
    }
}

/// It waits no longer. What can't be deleted counts for nothing once its run has a lease or an end.
pub(super) async fn delete(repository: &Repository, run: RunId, version: &Option<Version>) {
    let key = Key::waiting(&run);
    let versions = match version {
        Some(version) => vec![version.clone()],
        None => match repository.store.versions(key.as_str()).await {
            Ok(listed) => listed.into_iter().filter(|l| l.key == key && !l.delete_marker).map(|l| l.version).collect(),
            Err(_) => return,
        },
    };
    for version in versions {
        if let Err(e) = repository.store.delete(&key, &version).await {
            tracing::debug!(error = %e, "the order of a run that waited stays");
        }
    }
}

/// An order that waited when its coordinator was lost.
pub(super) struct Left {
    pub(super) run: RunId,
    pub(super) begin: journal::Begin,
}

/// All orders that wait. `begun` are the runs that go on: the orders of these are left over.
///
/// # Errors
/// [`Failure`] when the store can't be asked which there are.
pub(super) async fn all(repository: &Repository, begun: &[RunId]) -> Result<Vec<Left>, Failure> {
    let mut left = Vec::new();
    let mut runs: Vec<RunId> = Vec::new();
    for l in repository.store.versions(Key::all_waiting()).await? {
        runs.extend(l.key.parse_waiting().filter(|run| !l.delete_marker && !runs.contains(run)));
    }
    for run in runs {
        if begun.contains(&run) || ended::is_ended(repository, &run).await? {
            delete(repository, run, &None).await;
            continue;
        }
        match read_envelope::open(repository, &Key::waiting(&run), Kind::Waiting).await? {
            Sealed::Body(body) => match journal::decode(&body).as_deref() {
                Ok([Record::Begin(begin)]) => left.push(Left { run, begin: begin.clone() }),
                _ => tracing::error!(%run, "an order that waits makes no sense; it is left out"),
            },
            Sealed::Refused(e) => {
                tracing::warn!(%run, error = %e, "is no order that waits: not by a holder of the secret")
            }
            Sealed::None => {}
        }
    }
    Ok(left)
}
