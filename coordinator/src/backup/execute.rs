//! A backup run, from the order to the commit.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use milkrun_proto::agent::v1 as wire;
use milkrun_proto::control::v1 as control;
use milkrun_repository::chunk::Piece;
use milkrun_repository::clock::Moment;
use milkrun_repository::id::{AppName, PointId, RunId};
use milkrun_repository::index::{ChunkIndex, PackInfo};
use milkrun_repository::keys::envelope::{self, Kind};
use milkrun_repository::metadata::MetadataWriter;
use milkrun_repository::pack::PackKind;
use milkrun_repository::point::commit::{Commit, CommitError, Committed, Locks, check_store_clock};
use milkrun_repository::point::journal::Record;
use milkrun_repository::point::lease::Lease;
use milkrun_repository::point::root::{ManifestEntry, MapId, VolumeKind};
use milkrun_repository::point::{Root, RootBody};
use milkrun_repository::repository::OpenPoint;
use milkrun_repository::store::{CreateError, Key, Version};
use milkrun_repository::volume_map::{Child, Extent, Leaf, MapBuilder, MapRoot};
use tokio::sync::mpsc;
use wire::from_agent::Message as FromAgent;
use wire::to_agent::Message as ToAgent;

use super::parent::{self, Choice};
use super::take_over::begin;
use super::volume::{Finished, VolumeBuild};
use super::{BackupError, Run, lock};
use crate::Coordinator;
use crate::inventory::{Reach, SourceSpec};
use crate::journal::{Journal, Left};
use crate::moves::{Moves, Verdict, by_node};
use crate::rpc::status;
use crate::runs::view::Feed;
use crate::runs::{self, RunEvent};

/// Bytes of manifests that one leaf covers.
const MANIFEST_LEAF: usize = 16 << 20;

/// What to back up.
#[derive(Clone, Debug)]
pub struct Order {
    /// The application.
    pub application: AppName,
    /// Volumes and streams; none and no manifests: those of the inventory.
    pub sources: Vec<SourceSpec>,
    /// Manifests as JSON lines, and how many.
    pub manifests: Vec<u8>,
    /// How many objects that is.
    pub manifest_objects: u32,
    /// How long the point stays locked; `None`: as the repository says.
    pub lock_for: Option<Duration>,
    /// `auto`, `none` or an id.
    pub parent: String,
    /// zstd level.
    pub level: i32,
    /// Who coordinates, for people.
    pub host: String,
    /// Read devices that are mounted read-write.
    pub allow_mounted: bool,
    /// Accept files that change.
    pub allow_changing: bool,
}

/// Runs a backup to its end.
///
/// # Errors
/// [`BackupError`]; then no restore point exists (unless it says that this is not known).
pub(crate) async fn execute(
    coordinator: &Coordinator,
    mut order: Order,
    id: RunId,
    feed: &Feed,
) -> Result<control::BackupDone, BackupError> {
    let mut rpo = None;
    if !coordinator.inventory.trusts_orders() {
        let application = coordinator.inventory.application(&order.application)?;
        order.sources = application.sources;
        rpo = application.rpo;
    }
    check_names(&order)?;
    let choice: Choice = order.parent.parse()?;
    let repository = &coordinator.repository;
    let app = repository.ring.app_hash(&order.application);
    let moment = Moment::now();
    let locks = Locks::of(&repository.config, moment, order.lock_for.unwrap_or(repository.config.lock.period));
    let root = Root {
        tombstone: false,
        repository: repository.config.id,
        app,
        run: id,
        moment,
        lock_until: locks.point.map(|l| l.until),
    };
    let lease = take_lease(coordinator, &root, &order.host).await?;
    let plan = Plan { root, choice, locks, rpo, left: None };
    execute_plan(coordinator, &order, plan, feed, lease).await
}

/// Runs a backup whose lease is taken.
///
/// # Errors
/// As [`execute`].
pub(super) async fn execute_plan(
    coordinator: &Coordinator,
    order: &Order,
    plan: Plan,
    feed: &Feed,
    (lease_key, lease_version): (Key, Version),
) -> Result<control::BackupDone, BackupError> {
    let began = tokio::time::Instant::now();
    let (repository, id) = (&coordinator.repository, plan.root.run);
    let point = plan.root.id();
    let taken_over = plan.left.is_some();
    let mut result = run(coordinator, order, plan, feed, began).await;
    if let (true, Err(BackupError::Commit(CommitError::Ended(_)))) = (taken_over, &result)
        && repository.catalog().point(&point).await.is_ok()
    {
        // The leader before committed it after all.
        result = Ok(control::BackupDone { point: point.to_string(), ..Default::default() });
    }
    // Somebody else leads since: the run is theirs now.
    if let Some(leadership) = &coordinator.leadership
        && !leadership.is_newest(coordinator.epoch).await
    {
        return result;
    }
    if taken_over && result.as_ref().is_err_and(|e| status::backup(e).code() == tonic::Code::Unavailable) {
        // The store could not be asked; the next leader tries again.
        return result;
    }
    // The run is over and this process will not commit it any more: nobody needs its journal and its lease. What can't be
    // deleted (a writer without that right) is ended by the collector.
    if coordinator.leadership.is_some() {
        Journal::delete(repository, &id).await;
    }
    if let Err(e) = repository.store.delete(&lease_key, &lease_version).await {
        tracing::debug!(error = %e, "the lease stays for the collector");
    }
    result
}

fn check_names(order: &Order) -> Result<(), BackupError> {
    let mut names = HashSet::new();
    if let Some(twice) = order.sources.iter().find(|s| !names.insert(&s.name)) {
        return Err(BackupError::Order(format!("two sources are called {}", twice.name)));
    }
    if order.sources.is_empty() && order.manifests.is_empty() {
        return Err(BackupError::Order("nothing to back up: name at least one volume, stream or manifest".into()));
    }
    Ok(())
}

async fn take_lease(coordinator: &Coordinator, root: &Root, host: &str) -> Result<(Key, Version), BackupError> {
    let repository = &coordinator.repository;
    let key = Key::lease(&root.run);
    let body = Lease::of(root, coordinator.epoch, host).encode();
    let object = envelope::seal(&repository.ring, &repository.config.id, &key, Kind::Lease, &body);
    let version = match repository.store.create(&key, object.into(), None).await {
        Ok(version) => version,
        Err(CreateError::Failed(f)) => return Err(f.into()),
        Err(e) => return Err(BackupError::Create(key, e)),
    };
    check_store_clock(&*repository.store, &key).await?;
    Ok((key, version))
}

/// What is settled before anything moves.
pub(super) struct Plan {
    pub(super) root: Root,
    pub(super) choice: Choice,
    pub(super) locks: Locks,
    pub(super) rpo: Option<Duration>,
    /// What an earlier leader did of it.
    pub(super) left: Option<Left>,
}

async fn run(
    coordinator: &Coordinator,
    order: &Order,
    plan: Plan,
    feed: &Feed,
    began: tokio::time::Instant,
) -> Result<control::BackupDone, BackupError> {
    let repository = &coordinator.repository;
    let Plan { root, choice, locks, rpo, left } = plan;
    let parent = parent::open(repository, root.app, choice).await?;
    let (ring, config) = (&repository.ring, &repository.config);
    let mut index = ChunkIndex::load(&*repository.store, ring, &config.id, &root.app, &coordinator.cache).await?;
    if let Some(parent) = &parent {
        parent::complete_index(repository, parent, &mut index).await?;
    }
    let metadata = MetadataWriter::new(repository.target(PackKind::Metadata), ring.domain(root.app))
        .map_err(BackupError::Setup)?;
    let volumes = order.sources.iter().map(|s| (s.name.to_string(), build(s, parent.as_ref()))).collect();
    let run = Arc::new(Run {
        repository: repository.clone(),
        cache: coordinator.cache.clone(),
        root,
        locks,
        index: Mutex::new(index),
        metadata: tokio::sync::Mutex::new(metadata),
        volumes,
        stored: Mutex::default(),
        referenced: Mutex::default(),
        present: tokio::sync::Mutex::default(),
        parent_packs: Mutex::new(parent.as_ref().map(|p| p.placement.packs.clone()).unwrap_or_default()),
        stored_bytes: AtomicU64::new(0),
        assigned: Mutex::default(),
        claims: super::Claims::default(),
        hurried: Mutex::default(),
        journal: coordinator
            .leadership
            .is_some()
            .then(|| Journal::new(repository.clone(), root.run, coordinator.epoch)),
        sizes: order.sources.iter().map(|s| (s.name.to_string(), s.size)).collect(),
        quotas: Mutex::default(),
        granted: Mutex::default(),
    });
    let mut inbox = coordinator.runs.begin(root.run, runs::Run::Backup(run.clone()));
    feed.update(|v| {
        v.point = root.id().to_string();
        v.parent = parent.as_ref().map(|p| p.found.root.id().to_string()).unwrap_or_default();
    });
    // The older the newest point is, the nearer its promise is to being broken.
    let due = rpo.map(|rpo| parent.as_ref().map_or(root.moment, |p| p.found.root.moment.plus(rpo)));
    let parent_id = parent.as_ref().map(|p| p.found.root.id());
    let result = match prepare(order, &run, parent_id, left, feed).await {
        Ok(done) => match move_volumes(coordinator, order, &run, due, done, &mut inbox, feed).await {
            Ok(()) => commit(order, &run, parent.as_ref(), began, &mut inbox).await,
            Err(e) => Err(e),
        },
        Err(e) => Err(e),
    };
    coordinator.runs.end(&root.run);
    result
}

/// Begins the journal, or goes on with what an earlier one says. Returns the volumes that are done.
async fn prepare(
    order: &Order,
    run: &Run,
    parent: Option<PointId>,
    left: Option<Left>,
    feed: &Feed,
) -> Result<Vec<String>, BackupError> {
    let Some(journal) = &run.journal else { return Ok(Vec::new()) };
    let Some(Left { records, epoch, number }) = left else {
        journal.note(begin(order, parent, feed.now().ordered_by));
        journal.write().await?;
        return Ok(Vec::new());
    };
    journal.note(Record::TakeOver { epoch, number });
    journal.write().await?;
    run.replay(records).await
}

fn build(source: &SourceSpec, parent: Option<&OpenPoint>) -> tokio::sync::Mutex<VolumeBuild> {
    let kind = if source.stream { VolumeKind::Stream } else { VolumeKind::Image };
    // Only images are predicted: a stream's bytes shift.
    let map = parent.and_then(|p| {
        let i = p.body.volumes.iter().position(|v| v.name == source.name && v.kind == kind && !source.stream)?;
        Some(p.map(i, &p.body.volumes[i].map))
    });
    tokio::sync::Mutex::new(VolumeBuild::new(source.name.clone(), kind, map))
}

/// How long writing down that a run ended may hold up its end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// How often a run looks whether a volume waits in vain.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Moves the volumes to their end, or until one fails.
async fn move_volumes(
    coordinator: &Coordinator,
    order: &Order,
    run: &Arc<Run>,
    due: Option<Moment>,
    done: Vec<String>,
    inbox: &mut mpsc::UnboundedReceiver<RunEvent>,
    feed: &Feed,
) -> Result<(), BackupError> {
    let sources: HashMap<&str, &SourceSpec> = order.sources.iter().map(|s| (s.name.as_str(), s)).collect();
    for name in &done {
        feed.volume(name, |v| v.done = true);
    }
    let open = order.sources.iter().filter(|s| !done.iter().any(|d| d == s.name.as_str()));
    let reach: Vec<(String, Vec<Reach>)> = open.map(|s| (s.name.to_string(), s.reach.clone())).collect();
    let mut moves = Moves::begin(coordinator, run.root.run, order.application.to_string(), due, feed, reach);
    let mut look = tokio::time::interval(LOOK_EVERY);
    let result = loop {
        if moves.all_done() {
            break Ok(());
        }
        let event = tokio::select! {
            event = inbox.recv() => match event {
                Some(event) => event,
                None => break Err(BackupError::AgentGone),
            },
            _ = look.tick() => match moves.forsaken() {
                None => {
                    // The inventory may have changed, and who is there.
                    moves.renew();
                    continue;
                }
                Some((volume, nodes)) => break Err(BackupError::NoNode { volume, nodes }),
            },
        };
        match apply(coordinator, order, run, &sources, &mut moves, feed, event).await {
            Ok(()) => {}
            Err(e) => break Err(e),
        }
    };
    if result.is_err() {
        if let Some(journal) = &run.journal {
            // Before all else: nobody may go on with it, should this process end now.
            journal.note(Record::Ended);
            let _ = tokio::time::timeout(END_LIMIT, journal.write()).await;
        }
        let under_way = moves.under_way();
        for (volume, attempt, node) in &under_way {
            if let Some(link) = coordinator.agents.link(node) {
                link.send(ToAgent::Cancel(assignment_of(coordinator, run, volume, *attempt))).await;
            }
        }
        runs::await_stopped(inbox, by_node(&under_way)).await;
    }
    result
}

/// Applies one event.
async fn apply(
    coordinator: &Coordinator,
    order: &Order,
    run: &Arc<Run>,
    sources: &HashMap<&str, &SourceSpec>,
    moves: &mut Moves<'_>,
    feed: &Feed,
    event: RunEvent,
) -> Result<(), BackupError> {
    match event {
        RunEvent::Placed { volume, node } => {
            let Some(source) = sources.get(volume.as_str()) else { return Ok(()) };
            let Some(given) = moves.placed(&volume, &node) else { return Ok(()) };
            let resume_at = run.assign(&volume, given.attempt, &node).await;
            if given.attempt > 1 || resume_at > 0 {
                tracing::warn!(run = %run.root.run, volume, node, attempt = given.attempt, resume_at, "a volume goes on");
            }
            let has_parent = run.volumes[volume.as_str()].lock().await.has_parent();
            let a = assignment_of(coordinator, run, &volume, given.attempt);
            let message = backup_volume(order, run, source, a, given.path, has_parent, resume_at);
            if !given.link.send(ToAgent::Backup(message)).await {
                tracing::debug!(node, "an agent went away before it had its assignment");
            }
            Ok(())
        }
        RunEvent::Finished(volume) => {
            moves.done(&volume);
            run.release(&volume);
            Ok(())
        }
        RunEvent::Agent(node, FromAgent::Progress(p)) if moves.is_present(&node, p.assignment.as_ref()) => {
            let volume = p.assignment.as_ref().map(|a| a.volume.clone()).unwrap_or_default();
            feed.volume(&volume, |v| v.progress = p);
            Ok(())
        }
        RunEvent::Agent(node, FromAgent::Failed(f)) => {
            let (kind, a) = (f.kind(), f.assignment.unwrap_or_default());
            match moves.failed(&node, a.attempt, &a.volume, kind) {
                Verdict::Stale => Ok(()),
                Verdict::Again => {
                    tracing::warn!(run = %run.root.run, volume = a.volume, node, reason = f.reason, "a volume goes on elsewhere");
                    give_back(run, moves, &a.volume, sources)
                }
                Verdict::Final => {
                    run.release(&a.volume);
                    moves.done(&a.volume);
                    Err(BackupError::Volume { volume: a.volume, reason: f.reason, kind })
                }
            }
        }
        RunEvent::AgentGone(_) if coordinator.inventory.trusts_orders() => Err(BackupError::AgentGone),
        RunEvent::AgentGone(node) => {
            for (volume, _) in moves.at(&node) {
                give_back(run, moves, &volume, sources)?;
            }
            Ok(())
        }
        RunEvent::Drained(node) => {
            for (volume, attempt) in moves.at(&node) {
                if let Some(link) = coordinator.agents.link(&node) {
                    link.send(ToAgent::Cancel(assignment_of(coordinator, run, &volume, attempt))).await;
                }
                give_back(run, moves, &volume, sources)?;
            }
            Ok(())
        }
        RunEvent::Agent(..) => Ok(()),
        RunEvent::Cancel => Err(BackupError::Cancelled),
    }
}

/// A volume lost its node: it waits for another. A stream that was begun can't be read again.
fn give_back(
    run: &Run,
    moves: &mut Moves<'_>,
    volume: &str,
    sources: &HashMap<&str, &SourceSpec>,
) -> Result<(), BackupError> {
    run.release(volume);
    if sources.get(volume).is_some_and(|s| s.stream) {
        moves.done(volume);
        let reason = "its agent is gone, and a stream can't be read twice".to_owned();
        return Err(BackupError::Volume { volume: volume.to_owned(), reason, kind: wire::failed::Kind::Source });
    }
    moves.again(volume);
    Ok(())
}

fn assignment_of(coordinator: &Coordinator, run: &Run, volume: &str, attempt: u32) -> wire::Assignment {
    let epoch = coordinator.epoch;
    wire::Assignment { run: run.root.run.as_bytes().to_vec().into(), volume: volume.to_owned(), attempt, epoch }
}

fn backup_volume(
    order: &Order,
    run: &Run,
    source: &SourceSpec,
    assignment: wire::Assignment,
    path: String,
    has_parent: bool,
    resume_at: u64,
) -> wire::BackupVolume {
    let config = &run.repository.config;
    let kind = if source.stream { wire::VolumeKind::Stream } else { wire::VolumeKind::Image };
    wire::BackupVolume {
        assignment: Some(assignment),
        kind: kind.into(),
        path,
        repository: config.id.as_bytes().to_vec().into(),
        domain_key: run.repository.ring.domain(run.root.app).as_bytes().to_vec().into(),
        data_key: config.keys.data.as_bytes().to_vec().into(),
        cutters: Some(wire::Cutters {
            min_pages: config.pages.min_pages,
            avg_pages: config.pages.avg_pages,
            max_pages: config.pages.max_pages,
            hole_pages: config.pages.hole_pages,
            stream_min: config.streams.min,
            stream_avg: config.streams.avg,
            stream_max: config.streams.max,
        }),
        level: order.level,
        region_bytes: milkrun_repository::config::REGION_BYTES,
        has_parent,
        allow_mounted: order.allow_mounted,
        allow_changing: order.allow_changing,
        resume_at,
    }
}

/// Everything is moved: manifests, index, and the commit.
async fn commit(
    order: &Order,
    run: &Arc<Run>,
    parent: Option<&OpenPoint>,
    began: tokio::time::Instant,
    inbox: &mut mpsc::UnboundedReceiver<RunEvent>,
) -> Result<control::BackupDone, BackupError> {
    let mut finished: Vec<Finished> = Vec::new();
    for source in &order.sources {
        finished.extend(run.volumes[source.name.as_str()].lock().await.finished.clone());
    }
    let mut maps: Vec<MapRoot> = finished.iter().map(|f| f.map).collect();
    let mut manifests = None;
    if order.manifest_objects > 0 {
        let map = run.put_manifests(&order.manifests).await?;
        let id = MapId { len: map.len, level: map.level, chunk: map.chunk.map(|c| c.id) };
        manifests = Some(ManifestEntry { objects: order.manifest_objects, map: id });
        maps.push(map);
    }
    run.close_metadata().await?;
    run.write_segment(true).await?;
    let repository = &run.repository;
    repository.lock_config(run.locks).await?;
    while let Ok(event) = inbox.try_recv() {
        if matches!(event, RunEvent::Cancel) {
            return Err(BackupError::Cancelled);
        }
    }
    let (stored, reused) = run.receipts()?;
    let packs_reused = reused.len() as u64;
    let body = RootBody {
        application: order.application.clone(),
        host: order.host.clone(),
        writer: format!("milkrun {}", env!("CARGO_PKG_VERSION")),
        parent: parent.map(|p| p.found.root.id()),
        duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        stored_bytes: run.stored_bytes(),
        volumes: finished.iter().map(|f| f.entry.clone()).collect(),
        manifests,
    };
    let committed: Committed = Commit {
        store: &*repository.store,
        config: &repository.config,
        ring: &repository.ring,
        root: run.root,
        body,
        maps: maps.iter().map(|m| m.chunk.map(|c| c.place)).collect(),
        locks: run.locks,
        stored,
        reused,
    }
    .run()
    .await?;
    run.grew(usize::try_from(committed.stored_bytes).unwrap_or(usize::MAX));
    metrics::counter!("milkrun_lock_extensions_total").increment(committed.locks_extended);
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970")]
    let now = Moment::now().seconds() as f64;
    metrics::gauge!("milkrun_last_success_timestamp_seconds", "application" => order.application.to_string()).set(now);
    tracing::info!(run = %run.root.run, point = %run.root.id(), application = %order.application, "committed");
    Ok(control::BackupDone {
        point: run.root.id().to_string(),
        moment_ms: run.root.moment.millis(),
        lock_until_ms: run.root.lock_until.map_or(0, Moment::millis),
        duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        stored_bytes: run.stored_bytes(),
        volumes: finished.into_iter().map(result).collect(),
        manifest_objects: order.manifest_objects,
        packs_reused,
        locks_extended: committed.locks_extended,
    })
}

fn result(f: Finished) -> control::VolumeResult {
    control::VolumeResult {
        name: f.entry.name.to_string(),
        size_bytes: f.entry.map.len,
        read_bytes: f.read_bytes,
        hole_bytes: f.entry.hole_bytes,
        new_bytes: f.entry.new_bytes,
        stored_bytes: f.entry.stored_bytes,
        notes: f.entry.notes,
    }
}

impl Run {
    /// Stores the manifests as a stream in metadata packs.
    async fn put_manifests(self: &Arc<Self>, bytes: &[u8]) -> Result<MapRoot, BackupError> {
        let cutter = self.repository.config.streams;
        let seed = self.repository.ring.domain(self.root.app).cut_seed();
        let mut pieces = Vec::new();
        cutter.cut(seed, bytes, true, &mut pieces);
        let mut builder = MapBuilder::new();
        let mut put = |bytes: Vec<u8>| async move { self.put_metadata(&bytes).await };
        let mut leaf = Leaf::default();
        for piece in pieces {
            let Piece::Data { offset, len } = piece else { continue };
            if leaf.len() as usize + len > MANIFEST_LEAF {
                let full = std::mem::take(&mut leaf);
                let chunk = Some(self.put_metadata(&full.encode()).await?);
                builder.push(Child { len: full.len(), chunk }, &mut put).await?;
            }
            let reference = self.put_metadata(&bytes[offset..offset + len]).await?;
            let place = reference.place;
            leaf.extents.push(Extent::Data { len: place.plain_len, chunk_offset: 0, id: reference.id, place });
        }
        if !leaf.is_empty() {
            let chunk = Some(self.put_metadata(&leaf.encode()).await?);
            builder.push(Child { len: leaf.len(), chunk }, &mut put).await?;
        }
        builder.finish(&mut put).await
    }

    /// Receipts of what this run stored and its maps name, and what they reuse.
    fn receipts(&self) -> Result<(Vec<milkrun_repository::point::StoredPack>, Vec<PackInfo>), BackupError> {
        let referenced = lock(&self.referenced).clone();
        let stored: HashMap<_, _> = lock(&self.stored).drain(..).map(|s| (s.info().id, s)).collect();
        let index = lock(&self.index);
        let mut reused = Vec::new();
        for id in referenced.iter().filter(|id| !stored.contains_key(*id)) {
            reused.push(index.pack(id).cloned().ok_or(CommitError::Unknown(*id))?);
        }
        let stored = stored.into_iter().filter(|(id, _)| referenced.contains(id)).map(|(_, s)| s).collect();
        Ok((stored, reused))
    }
}
