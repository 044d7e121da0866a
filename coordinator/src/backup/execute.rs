//! A backup run, from the order to the commit.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use milkrun_proto::control::v1 as control;
use milkrun_repository::clock::Moment;
use milkrun_repository::damaged;
use milkrun_repository::id::{PointId, RunId};
use milkrun_repository::index::ChunkIndex;
use milkrun_repository::keys::Domain;
use milkrun_repository::keys::envelope::{self, Kind};
use milkrun_repository::metadata::{MetadataWriter, Preparer, metadata_packs};
use milkrun_repository::pack::PackKind;
use milkrun_repository::point::Root;
use milkrun_repository::point::catalog::FindError;
use milkrun_repository::point::commit::{CommitError, Locks, check_store_clock};
use milkrun_repository::point::ended::{self, Outcome};
use milkrun_repository::point::journal::Record;
use milkrun_repository::point::lease::Lease;
use milkrun_repository::repository::OpenPoint;
use milkrun_repository::store::{CreateError, Key, Version, read_listed};

use super::assign::assign_volumes;
use super::finish::commit;
use super::order::Order;
use super::parent::{self, Choice};
use super::replay::begin;
use super::volume::VolumeBuild;
use super::{BackupError, Run, waiting};
use crate::Coordinator;
use crate::inventory::Application;
use crate::journal::{Journal, Left};
use crate::rpc::status;
use crate::runs::Inbox;
use crate::runs::queue::{NoTurn, Turn, WAITING_MAX};
use crate::runs::view::Feed;

/// Runs a backup to its end.
///
/// # Errors
/// [`BackupError`]; then no restore point exists (unless it says that this is not known).
pub(crate) async fn execute(
    coordinator: &Coordinator,
    order: Order,
    id: RunId,
    (mut inbox, resumed): (Inbox, bool),
    feed: &Feed,
) -> Result<control::BackupDone, BackupError> {
    let choice: Choice = order.parent.parse()?;
    // An application that is not in the inventory is refused before the order waits for its turn.
    listed(coordinator, &order)?;
    let (_turn, waited) = match coordinator.runs.turn_if_free(&coordinator.name, &order.application) {
        Some(turn) => (turn, None),
        None => wait(coordinator, &order, id, (&mut inbox, resumed), feed).await?,
    };
    // The order waited under an earlier coordinator.
    let waited = waited.or_else(|| resumed.then_some(None));
    let result = begin_and_run(coordinator, order, (id, choice), inbox, feed).await;
    // The run's journal has the order, or the run is over.
    if let Some(waited) = waited {
        if result.is_err()
            && let Err(e) = ended::write(&coordinator.repository, &id, Outcome::Failed).await
        {
            tracing::warn!(run = %id, error = %e, "can't write down that a run is over");
        }
        waiting::delete(&coordinator.repository, id, &waited).await;
    }
    result
}

/// What the inventory says of an application, where orders may not say it.
fn listed(coordinator: &Coordinator, order: &Order) -> Result<Option<Application>, BackupError> {
    if coordinator.inventory.trusts_orders() || order.open {
        return Ok(None);
    }
    Ok(Some(coordinator.inventory.application(&order.application.name)?))
}

/// A backup whose turn it is.
async fn begin_and_run(
    coordinator: &Coordinator,
    mut order: Order,
    (id, choice): (RunId, Choice),
    inbox: Inbox,
    feed: &Feed,
) -> Result<control::BackupDone, BackupError> {
    let mut rpo = None;
    // The application as it is now: the order may have waited for long.
    if let Some(application) = listed(coordinator, &order)? {
        order.sources = application.sources;
        rpo = application.rpo;
    }
    order.check()?;
    let repository = &coordinator.repository;
    let app = repository.ring.app_hash(&order.application);
    let period = order.lock_for.unwrap_or(repository.config.lock.period);
    let domain = repository.domain_to_write(&app, period).await?.id();
    repository.renew_if_due(domain, period).await?;
    let moment = Moment::now();
    let locks = Locks::of(&repository.config, moment, period);
    let root = Root {
        tombstone: false,
        repository: repository.config.id,
        app,
        domain: domain.number,
        class: order.class,
        run: id,
        moment,
        lock_until: locks.point.map(|l| l.until),
    };
    let lease = take_lease(coordinator, &root, &order.host).await?;
    let plan = Plan { root, since: lease.made, choice, locks, rpo, left: None, inbox };
    execute_plan(coordinator, &mut order, plan, feed, lease).await
}

/// Waits for the turn. Meanwhile the order is stored, so that another coordinator can let it wait on.
async fn wait(
    coordinator: &Coordinator,
    order: &Order,
    id: RunId,
    (inbox, resumed): (&mut Inbox, bool),
    feed: &Feed,
) -> Result<(Turn, Option<Option<Version>>), BackupError> {
    let written = match coordinator.leadership {
        Some(_) => Some(waiting::write(&coordinator.repository, id, order, feed).await?),
        None => None,
    };
    let whose = (coordinator.name.as_str(), &order.application);
    let turn = coordinator.runs.turn(whose, !resumed, inbox, feed).await.map_err(|e| match e {
        NoTurn::Cancelled => BackupError::Cancelled,
        NoTurn::Full => BackupError::TooManyWait(WAITING_MAX),
    });
    match (turn, written) {
        (Ok(turn), written) => Ok((turn, written)),
        (Err(e), Some(written)) => {
            waiting::delete(&coordinator.repository, id, &written).await;
            Err(e)
        }
        (Err(e), None) => Err(e),
    }
}

/// Runs a backup whose lease is taken.
///
/// # Errors
/// As [`execute`].
pub(super) async fn execute_plan(
    coordinator: &Coordinator,
    order: &mut Order,
    plan: Plan,
    feed: &Feed,
    lease: HeldLease,
) -> Result<control::BackupDone, BackupError> {
    let began = tokio::time::Instant::now();
    let (repository, id) = (&coordinator.repository, plan.root.run);
    let point = plan.root.id();
    let taken_over = plan.left.is_some();
    let mut result = run(coordinator, order, plan, feed, began).await;
    // The earlier leader may have committed the run after all. The objects that are missing here may be the ones that it then
    // deleted.
    let ended = matches!(&result, Err(BackupError::Commit(CommitError::Ended(_)) | BackupError::Journal(_)));
    if taken_over && ended {
        match repository.catalog().point(&point).await {
            Ok(_) => result = Ok(control::BackupDone { point: point.to_string(), ..Default::default() }),
            Err(FindError::Store(f)) => result = Err(f.into()),
            Err(_) => {}
        }
    }
    // Somebody else leads since then: the run is theirs now.
    if let Some(leadership) = &coordinator.leadership
        && !leadership.is_newest(coordinator.epoch).await
    {
        return result;
    }
    if taken_over && result.as_ref().is_err_and(|e| status::backup(e).code() == tonic::Code::Unavailable) {
        // The store could not be asked; the next leader tries again.
        return result;
    }
    // The run is over and this process will not commit it any more: nobody needs its journal and its lease. Where this process has
    // no right to delete them, the collector ends the run.
    if coordinator.leadership.is_some() {
        let outcome = if result.is_ok() { Outcome::Done } else { Outcome::Failed };
        // This comes first: somebody who puts the journal back later must not bring the run back to life.
        if let Err(e) = ended::write(repository, &id, outcome).await {
            tracing::warn!(run = %id, error = %e, "can't write down that a run is over; its root or its lease's age ends it");
        }
        Journal::delete(repository, &id).await;
    }
    if let Err(e) = repository.store.delete(&lease.key, &lease.version).await {
        tracing::debug!(error = %e, "the lease stays for the collector");
    }
    result
}

async fn take_lease(coordinator: &Coordinator, root: &Root, host: &str) -> Result<HeldLease, BackupError> {
    let repository = &coordinator.repository;
    let key = Key::lease(&root.run);
    let body = Lease::of(root, coordinator.epoch, host).encode();
    let object = envelope::seal(&repository.ring, &repository.config.id, &key, Kind::Lease, &body);
    let object = Bytes::from(object);
    let mut created = repository.store.create(&key, object.clone(), None).await;
    if matches!(created, Err(CreateError::Exists(_))) && forget_begun(coordinator, &key).await? {
        created = repository.store.create(&key, object, None).await;
    }
    let version = match created {
        Ok(version) => version,
        Err(CreateError::Failed(f)) => return Err(f.into()),
        Err(e) => return Err(BackupError::Create(key, e)),
    };
    let made = check_store_clock(&*repository.store, &key).await?;
    Ok(HeldLease { key, version, made })
}

/// When its coordinator was lost, a run of the same request may have had a lease and no journal yet: nobody goes on with such a
/// run. This deletes that lease, if there is one. An object that somebody else put there is no lease.
async fn forget_begun(coordinator: &Coordinator, key: &Key) -> Result<bool, BackupError> {
    let repository = &coordinator.repository;
    let mut forgotten = false;
    for l in repository.store.versions(key.as_str()).await?.into_iter().filter(|l| l.key == *key && !l.delete_marker) {
        let Ok(object) = read_listed(&*repository.store, &l).await else { continue };
        let opened = envelope::open(&repository.ring, &repository.config.id, key, Kind::Lease, &object);
        let lease = opened.ok().and_then(|body| Lease::decode(&body).ok());
        // A lease of this coordinator's own epoch belongs to another run of this process.
        if lease.is_none_or(|lease| lease.epoch < coordinator.epoch) {
            tracing::warn!(object = %key, "a lease without a journal is left over; it goes");
            forgotten |= repository.store.delete(key, &l.version).await.is_ok();
        }
    }
    Ok(forgotten)
}

/// A lease that this coordinator holds.
pub(super) struct HeldLease {
    pub(super) key: Key,
    pub(super) version: Version,
    /// When it was made, by the store's clock.
    pub(super) made: Moment,
}

/// What is decided before any data is read.
pub(super) struct Plan {
    pub(super) root: Root,
    /// When it began, by the store's clock.
    pub(super) since: Moment,
    pub(super) choice: Choice,
    pub(super) locks: Locks,
    pub(super) rpo: Option<Duration>,
    /// What an earlier leader left of the run.
    pub(super) left: Option<Left>,
    /// Cancellation comes here before the run has begun, and all events after that.
    pub(super) inbox: Inbox,
}

async fn run(
    coordinator: &Coordinator,
    order: &mut Order,
    plan: Plan,
    feed: &Feed,
    began: tokio::time::Instant,
) -> Result<control::BackupDone, BackupError> {
    let repository = &coordinator.repository;
    let began_in = repository.store.identity().await?;
    let last_seen = coordinator.cache.last_seen();
    last_seen.stands_at(&repository.store.address())?;
    if let Some(seen) = last_seen.newest_seen(&plan.root.app)
        && !repository.catalog().has(&plan.root.app, &seen.point).await?
    {
        return Err(seen.missing().into());
    }
    let domain = repository.domain(plan.root.domain()).await?;
    let parent = parent::open(repository, plan.root.domain(), plan.choice).await?;
    let run = Arc::new(make(coordinator, &plan, domain, parent.as_ref(), began_in).await?);
    let Plan { root, rpo, left, inbox, .. } = plan;
    for source in &order.sources {
        run.add_volume(source, VolumeBuild::of(source, root.moment, parent.as_ref()));
    }
    coordinator.backups.begin(root.run, coordinator.epoch, run.clone());
    let mut inbox = coordinator.runs.begin(root.run, inbox);
    feed.update(|v| {
        v.point = root.id().to_string();
        v.parent = parent.as_ref().map(|p| p.found.root.id().to_string()).unwrap_or_default();
    });
    // The older the newest point is, the sooner its promise breaks.
    let due = rpo.map(|rpo| parent.as_ref().map_or(root.moment, |p| p.found.root.moment.plus(rpo)));
    let parent_id = parent.as_ref().map(|p| p.found.root.id());
    let result = match prepare(order, &run, parent_id, left, feed).await {
        Ok(done) => {
            match assign_volumes((coordinator, order), &run, parent.as_ref(), (due, done), &mut inbox, feed).await {
                Ok(()) => commit(order, &run, parent.as_ref(), began, &mut inbox).await,
                Err(e) => Err(e),
            }
        }
        Err(e) => Err(e),
    };
    coordinator.backups.end(&root.run);
    coordinator.runs.end(&root.run);
    if result.is_ok() {
        last_seen.saw(&root.app, &root.id());
    }
    result
}

/// The state of a run before anything of it is stored. Loads what is known of the application's chunks.
async fn make(
    coordinator: &Coordinator,
    plan: &Plan,
    domain: Arc<Domain>,
    parent: Option<&OpenPoint>,
    began_in: String,
) -> Result<Run, BackupError> {
    let repository = &coordinator.repository;
    let Plan { root, since, locks, .. } = *plan;
    let (ring, config) = (&repository.ring, &repository.config);
    let mut index = ChunkIndex::load(&*repository.store, ring, &config.id, &root.domain(), &coordinator.cache).await?;
    let set_aside = damaged::load(repository, &root.app).await?;
    if !set_aside.is_empty() {
        tracing::warn!(run = %root.run, packs = set_aside.len(), "packs were set aside; what the source still has of them is stored again");
    }
    index.set_aside(set_aside.iter().copied());
    if let Some(parent) = parent {
        parent::complete_index(repository, parent, &mut index).await?;
    }
    let preparer = Preparer::new(domain.chunks().clone()).map_err(BackupError::Setup)?;
    Ok(Run {
        repository: repository.clone(),
        cache: coordinator.cache.clone(),
        admission: coordinator.admission.clone(),
        repository_name: coordinator.name.clone(),
        root,
        since,
        began_in,
        locks,
        index: Mutex::new(index),
        preparer,
        metadata: tokio::sync::Mutex::new(MetadataWriter::new(repository.target(&domain, PackKind::Metadata))),
        domain,
        volumes: Mutex::default(),
        stored: Mutex::default(),
        referenced: Mutex::default(),
        // Packs that were set aside count as gone.
        present: tokio::sync::Mutex::new(set_aside.into_iter().map(|id| (id, false)).collect()),
        parent: parent.map(|p| p.found.root.id()),
        parent_packs: metadata_packs(parent.iter().flat_map(|p| p.placement.packs.iter().cloned())),
        parent_keys: Arc::default(),
        stored_bytes: AtomicU64::new(0),
        sampling: tokio::sync::Mutex::default(),
        assigned: Mutex::default(),
        claims: super::Claims::default(),
        hurried: Mutex::default(),
        journal: coordinator
            .leadership
            .is_some()
            .then(|| Journal::new(repository.clone(), root.run, coordinator.epoch)),
        sizes: Mutex::default(),
        quotas: Mutex::default(),
        granted_unwritten: AtomicU64::new(0),
        granted: Mutex::default(),
    })
}

/// Begins the journal, or replays what an earlier leader left. Returns the volumes that are done.
async fn prepare(
    order: &Order,
    run: &Arc<Run>,
    parent: Option<PointId>,
    left: Option<Left>,
    feed: &Feed,
) -> Result<Vec<String>, BackupError> {
    let Some(journal) = &run.journal else { return Ok(Vec::new()) };
    let Some(left) = left else {
        journal.note(begin(order, &run.root, parent, feed.now().ordered_by));
        journal.write().await?;
        return Ok(Vec::new());
    };
    journal.note(Record::TakeOver { epoch: left.epoch, number: left.number });
    journal.write().await?;
    run.replay(&left).await
}
