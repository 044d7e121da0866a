//! Orders that wait for their turn: `leases/waiting/<run>`, sealed in an envelope. The body is the wanted parent and a journal's
//! `Begin` record. A leader that takes over lets them wait on. The order has no time; the point's time is set when the run starts.

use std::collections::HashMap;

use milkrun_repository::Repository;
use milkrun_repository::clock::Moment;
use milkrun_repository::id::{AppHash, RunId};
use milkrun_repository::keys::envelope::{self, Kind};
use milkrun_repository::point::ended;
use milkrun_repository::point::journal::{self, Record};
use milkrun_repository::point::root::Root;
use milkrun_repository::read_envelope::{self, Sealed};
use milkrun_repository::store::{CreateError, Failure, Key, Version};
use milkrun_repository::wire::{Decoder, Encoder};

use super::BackupError;
use super::order::Order;
use super::replay::begin;
use crate::runs::view::Feed;

/// Stores an order that waits. Returns the version to delete later.
pub(super) async fn write(
    repository: &Repository,
    run: RunId,
    order: &Order,
    feed: &Feed,
) -> Result<Option<Version>, BackupError> {
    let key = Key::waiting(&run);
    // The fields of a root are only settled when its run begins.
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
    let begin = journal::encode(&[begin(order, &root, None, feed.now().ordered_by)]);
    let body = Encoder::new().text(&order.parent).u32(order.full_every).bytes(&begin).finish();
    let object = envelope::seal(&repository.ring, &repository.config.id, &key, Kind::Waiting, &body);
    match repository.store.create(&key, object.into(), None).await {
        Ok(version) => Ok(Some(version)),
        // An earlier leader wrote it: the order goes on waiting.
        Err(CreateError::Exists(_)) => Ok(None),
        Err(CreateError::Failed(f)) => Err(f.into()),
    }
}

/// The order no longer waits. If it can't be deleted, it has no effect once its run has a lease or an end.
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

/// An order that was waiting when its coordinator was lost.
pub(super) struct Left {
    pub(super) run: RunId,
    pub(super) begin: journal::Begin,
    /// `auto`, `none` or an id.
    pub(super) parent: String,
    pub(super) full_every: u32,
}

fn decode(run: RunId, body: &[u8]) -> Option<Left> {
    let mut d = Decoder::new(body);
    let (parent, full_every) = (d.text("parent").ok()?, d.u32("full every").ok()?);
    let records = journal::decode(d.bytes("begin").ok()?).ok()?;
    d.finish("end of order").ok()?;
    match records.into_iter().next()? {
        Record::Begin(begin) => Some(Left { run, begin, parent, full_every }),
        _ => None,
    }
}

/// All orders that wait. `begun` are the runs that go on: their waiting orders are leftovers.
///
/// # Errors
/// [`Failure`] when the store can't be asked for them.
pub(super) async fn all(repository: &Repository, begun: &[RunId]) -> Result<Vec<Left>, Failure> {
    let mut orders: HashMap<RunId, Moment> = HashMap::new();
    for l in repository.store.versions(Key::all_waiting()).await?.into_iter().filter(|l| !l.delete_marker) {
        if let Some(run) = l.key.parse_waiting() {
            let since = orders.entry(run).or_insert(l.modified);
            *since = l.modified.min(*since);
        }
    }
    let mut orders: Vec<(RunId, Moment)> = orders.into_iter().collect();
    orders.sort_by_key(|(_, since)| *since);
    let mut left = Vec::new();
    for (run, since) in orders {
        let is_old = since.plus(ended::LIFE) < Moment::now();
        if begun.contains(&run) || is_old || ended::is_ended(repository, &run).await? {
            delete(repository, run, &None).await;
            continue;
        }
        let key = Key::waiting(&run);
        match read_envelope::open(repository, &key, Kind::Waiting).await {
            Ok(Sealed::Body(body)) => match decode(run, &body) {
                Some(order) => left.push(order),
                None => tracing::error!(%run, "an order that waits makes no sense; it is left out"),
            },
            Ok(Sealed::Refused(e)) => {
                tracing::warn!(object = %key, error = %e, "is no order that waits: not by a holder of the secret; it goes");
                delete(repository, run, &None).await;
            }
            Ok(Sealed::None) => {}
            // An order that can't be read does not keep the others from waiting on.
            Err(f) if f.is_of_one_object() => tracing::warn!(object = %key, error = %f, "left out"),
            Err(f) => return Err(f),
        }
    }
    Ok(left)
}
