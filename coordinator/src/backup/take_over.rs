//! Goes on with runs that an earlier leader left unfinished: their journals are replayed without transferring data.
//!
//! The new leader lists leases and reads each journal twice: first the order and where the journal ends, then all of it, 16 objects
//! at a time. It replays the records through the same code that agents' calls go through. It trusts nothing: the commit checks
//! packs, and maps are written anew.
//!
//! An older leader that wakes up can finish an object that it was writing. It can't make progress with the run: its journal is not
//! read any more, agents do not take its calls any more, and of two roots at one key the store takes the first. If the older
//! leader's root is first, all that it names is durable and locked. The newer leader then finds the key taken, or fails in another
//! way, since the older one deleted the journal. In both cases it finds the point in the store, and the run is done.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use milkrun_repository::clock::Moment;
use milkrun_repository::id::{AppId, RunId};
use milkrun_repository::keys::envelope::{self, Kind};
use milkrun_repository::point::commit::Locks;
use milkrun_repository::point::ended;
use milkrun_repository::point::journal::{self, Record};
use milkrun_repository::point::lease::Lease;
use milkrun_repository::point::root::Root;
use milkrun_repository::store::{Failure, GetError, Listed, Trouble, read_listed};

use super::execute::{self, HeldLease, Plan};
use super::opened;
use super::order::Order;
use super::parent::Choice;
use super::waiting;
use crate::Coordinator;
use crate::inventory::{Reach, SourceSpec};
use crate::journal::{Journal, Left};
use crate::restore::LeftRestore;
use crate::rpc::status;
use crate::runs::queue::Turn;
use crate::runs::view::{Feed, Kind as RunKind, Outcome};

/// How many leases are read side by side: anybody who may write can put thousands there.
const LOOKS: usize = 16;

/// A run that was left unfinished.
struct Found {
    lease: Lease,
    taken: HeldLease,
    left: Left,
}

impl Found {
    /// The application of a backup.
    fn application(&self) -> Option<&AppId> {
        self.left.records.iter().find_map(|r| match r {
            Record::Begin(begin) => Some(&begin.application),
            _ => None,
        })
    }

    /// Turns it into a restore, if it is one that is not over.
    fn into_restore(self) -> Result<LeftRestore, Box<Self>> {
        let restore = self.left.records.iter().find_map(|r| match r {
            Record::Restore(restore) => Some(restore.clone()),
            _ => None,
        });
        match restore {
            Some(restore) if !self.left.records.contains(&Record::Ended) => Ok(LeftRestore {
                run: self.lease.run,
                restore,
                began: self.lease.moment,
                left: self.left,
                lease: (self.taken.key, self.taken.version),
            }),
            _ => Err(Box::new(self)),
        }
    }
}

/// Goes on with every run that was left unfinished, each in a task of its own.
///
/// # Errors
/// [`Failure`] when the store can't be asked for them.
pub(crate) async fn take_over(coordinator: &Coordinator) -> Result<(), Failure> {
    let repository = &coordinator.repository;
    let versions = repository.store.versions("leases/").await?;
    let mut restores = Vec::new();
    let mut begun: Vec<RunId> = Vec::new();
    // All runs that were left go on at once, also several of one application; new orders wait for the last of them.
    let mut turns: HashMap<AppId, Option<Arc<Turn>>> = HashMap::new();
    // All versions of each lease: an object that somebody put on top of it hides no run.
    let mut leases: BTreeMap<RunId, Vec<Listed>> = BTreeMap::new();
    for v in versions.into_iter().filter(|v| !v.delete_marker) {
        if let Some(run) = v.key.parse_lease() {
            leases.entry(run).or_default().push(v);
        }
    }
    let looks = leases.into_iter().map(|(run, versions)| find_one(coordinator, run, versions));
    let mut looks = futures::stream::iter(looks).buffered(LOOKS);
    while let Some(found) = looks.next().await {
        let Some(found) = found else { continue };
        let run = found.lease.run;
        begun.push(run);
        // A take-over that failed half-way is tried again: runs that already go on are skipped.
        if coordinator.runs.is_under_way(&run) {
            continue;
        }
        tracing::warn!(run = %found.lease.run, "a run that another coordinator left goes on");
        let coordinator = coordinator.clone();
        match found.into_restore() {
            Err(backup) => {
                let turn = backup.application().and_then(|application| {
                    let free = || coordinator.runs.turn_if_free(&coordinator.name, application).map(Arc::new);
                    turns.entry(application.clone()).or_insert_with(free).clone()
                });
                tokio::spawn(async move {
                    go_on(&coordinator, *backup).await;
                    drop(turn);
                });
            }
            Ok(restore) => restores.push(restore),
        }
    }
    // Their targets are reserved before anybody can order another restore. If two of them want the same place, the newer one gets
    // it.
    restores.sort_by_key(|r| std::cmp::Reverse(r.began));
    for restore in restores {
        let coordinator = coordinator.clone();
        match coordinator.runs.reserve(restore.run, restore.targets()) {
            Ok(()) => drop(tokio::spawn(async move { restore.go_on(&coordinator).await })),
            Err((path, other)) => drop(tokio::spawn(async move { restore.give_up(&coordinator, path, other).await })),
        }
    }
    // Waiting orders wait on, behind the runs that had begun. New orders need not wait for that.
    tokio::spawn(wait_on_all(coordinator.clone(), begun));
    Ok(())
}

/// How long to wait before the store is asked for waiting orders again.
const AGAIN: Duration = Duration::from_secs(10);

/// Lets every order that was waiting when its coordinator was lost wait on, the oldest first.
async fn wait_on_all(coordinator: Coordinator, begun: Vec<RunId>) {
    let left = loop {
        match waiting::all(&coordinator.repository, &begun).await {
            Ok(left) => break left,
            Err(e) => tracing::warn!(error = %e, "can't ask which orders wait; asking again"),
        }
        tokio::time::sleep(AGAIN).await;
        if let Some(leadership) = &coordinator.leadership
            && matches!(leadership.leads(coordinator.epoch).await, Ok(false))
        {
            return;
        }
    };
    for left in left {
        // The same order may have been sent again already.
        if coordinator.runs.is_under_way(&left.run) {
            continue;
        }
        tracing::warn!(run = %left.run, "an order that waited when another coordinator left goes on waiting");
        let coordinator = coordinator.clone();
        // This order has its place in the queue before the next one is taken.
        let (queued, waits) = tokio::sync::oneshot::channel();
        tokio::spawn(async move { wait_on(&coordinator, left, queued).await });
        let _ = waits.await;
    }
}

/// What was left of a run, from the first version of its lease for which `find` returns something.
async fn find_one(coordinator: &Coordinator, run: RunId, versions: Vec<Listed>) -> Option<Found> {
    for version in versions {
        match find(coordinator, run, &version).await {
            Ok(None) => {}
            Ok(found) => return found,
            Err(reason) => tracing::error!(%run, reason, "a run can't be taken over; it stays unfinished"),
        }
    }
    None
}

/// What was left of a run; `None` if it keeps no journal: its own process goes on with it, or nobody does.
async fn find(coordinator: &Coordinator, run: RunId, listed: &Listed) -> Result<Option<Found>, String> {
    let repository = &coordinator.repository;
    let (lease_key, lease_version) = (listed.key.clone(), listed.version.clone());
    let chain = |e: &dyn std::error::Error| milkrun_repository::point::catalog::chain(e);
    let bytes = match read_listed(&*repository.store, listed).await {
        Ok(bytes) => Some(bytes),
        Err(GetError::NotFound(_)) => return Ok(None),
        Err(GetError::Failed(f)) if f.trouble == Trouble::Foreign => None,
        Err(e) => return Err(chain(&e)),
    };
    let opened = bytes.map(|b| envelope::open(&repository.ring, &repository.config.id, &lease_key, Kind::Lease, &b));
    let Some(Ok(body)) = opened else {
        // The object has no effect, and is deleted if possible.
        tracing::warn!(object = %lease_key, version = %lease_version, "is no lease: not by a holder of the secret");
        if let Err(e) = repository.store.delete(&lease_key, &lease_version).await {
            tracing::debug!(error = %e, "it stays");
        }
        return Ok(None);
    };
    let lease = Lease::decode(&body).map_err(|e| chain(&e))?;
    // An old lease that somebody put back is no run that was left.
    let is_old = lease.moment.plus(ended::LIFE) < Moment::now();
    if lease.run != run || is_old || ended::is_ended(repository, &run).await.map_err(|e| chain(&e))? {
        tracing::warn!(%run, "a run that is over has a lease: nobody goes on with it");
        Journal::delete(repository, &run).await;
        if let Err(e) = repository.store.delete(&lease_key, &lease_version).await {
            tracing::debug!(error = %e, "the lease stays for the collector");
        }
        return Ok(None);
    }
    let left = Journal::read(repository, &run).await.map_err(|e| chain(&e))?;
    let taken = HeldLease { key: lease_key, version: lease_version, made: listed.modified };
    Ok(left.map(|left| Found { lease, taken, left }))
}

async fn go_on(coordinator: &Coordinator, found: Found) {
    let Found { lease, taken, left } = found;
    if left.records.contains(&Record::Ended) {
        tracing::info!(run = %lease.run, "a run had ended; what is left of it goes");
        Journal::delete(&coordinator.repository, &lease.run).await;
        let _ = coordinator.repository.store.delete(&taken.key, &taken.version).await;
        return;
    }
    let begun = left.records.iter().find_map(|r| match r {
        Record::Begin(begin) => Some(begin.clone()),
        _ => None,
    });
    let Some(begin) = begun else {
        tracing::error!(run = %lease.run, "a journal does not say what its run is; it stays unfinished");
        return;
    };
    let feed = Feed::new(lease.run, RunKind::Backup, Some(begin.application.clone()), begin.ordered_by.clone())
        .of_repository(&coordinator.name);
    coordinator.runs.show(feed.clone());
    let config = &coordinator.repository.config;
    let lock_for = (begin.lock_ms > 0).then(|| Duration::from_millis(begin.lock_ms));
    let locks = Locks::of(config, lease.moment, lock_for.unwrap_or(config.lock.period));
    let root = Root {
        tombstone: false,
        repository: config.id,
        app: lease.app,
        domain: begin.domain,
        class: begin.class,
        run: lease.run,
        moment: lease.moment,
        lock_until: locks.point.map(|l| l.until),
    };
    let rpo = begin
        .application
        .name_in(&coordinator.cluster)
        .and_then(|name| coordinator.inventory.application(name).ok()?.rpo);
    let (inbox, _announced) = coordinator.runs.announce(lease.run);
    let choice = begin.parent.map_or(Choice::None, Choice::Point);
    let mut order = order_of(begin);
    for record in &left.records {
        match record {
            Record::Source(source) => order.sources.push(source_of(source.clone())),
            Record::Complete(complete) => opened::take(&mut order, complete.clone()),
            _ => {}
        }
    }
    let plan = Plan { root, since: taken.made, choice, locks, rpo, left: Some(left), inbox };
    let outcome = match execute::execute_plan(coordinator, &mut order, plan, &feed, taken).await {
        Ok(done) => Outcome::BackedUp(done),
        Err(e) => {
            tracing::error!(run = %lease.run, reason = milkrun_repository::point::catalog::chain(&e), "a run failed");
            Outcome::Failed(status::backup(&e))
        }
    };
    feed.end(outcome);
}

async fn wait_on(coordinator: &Coordinator, left: waiting::Left, queued: tokio::sync::oneshot::Sender<()>) {
    let waiting::Left { run, begin, parent, full_every } = left;
    let application = Some(begin.application.clone());
    let feed = Feed::new(run, RunKind::Backup, application, begin.ordered_by.clone()).of_repository(&coordinator.name);
    if coordinator.runs.show_once(feed.clone()).is_err() {
        return;
    }
    let order = Order { parent, full_every, ..order_of(begin) };
    let (inbox, _announced) = coordinator.runs.announce(run);
    drop(queued);
    let outcome = match execute::execute(coordinator, order, run, (inbox, true), &feed).await {
        Ok(done) => Outcome::BackedUp(done),
        Err(e) => {
            tracing::error!(%run, reason = milkrun_repository::point::catalog::chain(&e), "a run failed");
            Outcome::Failed(status::backup(&e))
        }
    };
    feed.end(outcome);
}

fn source_of(s: journal::Source) -> SourceSpec {
    SourceSpec {
        name: s.name,
        stream: s.stream,
        size: (s.size > 0).then_some(s.size),
        reach: s.reach.into_iter().map(|(node, path)| Reach { node: Some(node), path }).collect(),
        // The rest is read in full.
        changed_from: None,
        skip_free: false,
        moment: s.moment,
        claim: s.claim,
    }
}

fn order_of(begin: journal::Begin) -> Order {
    Order {
        application: begin.application,
        namespace_uid: begin.namespace_uid,
        class: begin.class,
        sources: begin.sources.into_iter().map(source_of).collect(),
        skipped: begin.skipped,
        manifests: begin.manifests,
        manifest_objects: begin.manifest_objects,
        lock_for: (begin.lock_ms > 0).then(|| Duration::from_millis(begin.lock_ms)),
        parent: String::new(),
        level: begin.level,
        adapt_level: begin.adapt_level,
        host: begin.host,
        allow_mounted: begin.allow_mounted,
        allow_changing: begin.allow_changing,
        allow_empty: begin.allow_empty,
        whole_chunks: begin.whole_chunks,
        skip_free: false,
        full_every: 0,
        open: begin.open,
        complete: !begin.open,
    }
}
