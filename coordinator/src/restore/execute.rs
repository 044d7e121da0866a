//! A restore run: the point is found and opened, and every target is checked, before the first byte is written.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use milkrun_identity::{Action, Peer};
use milkrun_proto::agent::v1 as wire;
use milkrun_proto::control::v1 as control;
use milkrun_repository::id::{AppId, RunId};
use milkrun_repository::point::Root;
use milkrun_repository::point::catalog::{FindError, chain};
use milkrun_repository::point::ended::Outcome;
use milkrun_repository::point::journal::Record;
use milkrun_repository::repository::{NoDomain, OpenPoint, PointError};
use tokio::sync::mpsc;
use wire::to_agent::Message as ToAgent;

use super::order::Order;
use super::progress::Progress;
use super::targets::{Targets, assignment};
use super::{RestoreError, Run};
use crate::inventory::Reach;
use crate::runs::view::Feed;
use crate::runs::{self, Inbox, RunEvent};
use crate::volume_assignments::by_node;
use crate::{Coordinator, skipped};

/// The result of a restore.
pub(crate) struct Done {
    /// The report for people and scripts.
    pub(crate) report: control::RestoreDone,
    /// The manifests as JSON lines, if the order asked for them.
    pub(crate) manifests: Vec<u8>,
}

/// Runs a restore to its end.
///
/// # Errors
/// [`RestoreError`].
pub(crate) async fn execute(
    coordinator: &Coordinator,
    order: Order,
    by: &Peer,
    run_id: RunId,
    feed: &Feed,
) -> Result<Done, RestoreError> {
    let looked_up = look_up(coordinator, &order, Some(by), feed).await?;
    let targets = order.targets.iter().map(|t| (t.node.clone(), t.path.clone())).collect();
    coordinator.runs.reserve(run_id, targets).map_err(|(path, run)| RestoreError::Taken { path, run })?;
    let (point, application) = (looked_up.point.found.root.id(), looked_up.point.body.application.clone());
    let ordered_by = feed.now().ordered_by;
    let done = match Progress::begin(coordinator, run_id, &order, point, &application, ordered_by).await {
        Ok(progress) => carry_out(coordinator, &order, looked_up, run_id, feed, progress).await,
        Err(e) => Err(e),
    };
    coordinator.restores.end(&run_id);
    coordinator.runs.end(&run_id);
    done
}

/// The point and the volumes of an order, before anything is written.
pub(super) struct LookedUp {
    began: tokio::time::Instant,
    point: OpenPoint,
    /// Volumes to restore, and their numbers in the point.
    wanted: HashMap<String, usize>,
    left_out: Vec<String>,
    manifests: Vec<u8>,
}

/// Finds the point and checks the order. If `by` is given, checks that this peer may restore the point.
///
/// # Errors
/// [`RestoreError`].
pub(super) async fn look_up(
    coordinator: &Coordinator,
    order: &Order,
    by: Option<&Peer>,
    feed: &Feed,
) -> Result<LookedUp, RestoreError> {
    let began = tokio::time::Instant::now();
    let repository = &coordinator.repository;
    let point = find(coordinator, order, by, feed).await?;
    let names: Vec<String> = point.body.volumes.iter().map(|v| v.name.to_string()).collect();
    let wanted = check_targets(order, &names)?;
    check_places(coordinator, order, &point.body.application)?;
    let manifests = if order.manifests { repository.manifests(&point).await? } else { Vec::new() };
    let mut left_out: Vec<String> = names.into_iter().filter(|n| !wanted.contains_key(n)).collect();
    if !order.manifests && point.body.manifests.is_some() {
        left_out.push("manifests".into());
    }
    Ok(LookedUp { began, point, wanted, left_out, manifests })
}

/// Finds the point, and checks that the one who orders may restore it.
pub(super) async fn find(
    coordinator: &Coordinator,
    order: &Order,
    by: Option<&Peer>,
    feed: &Feed,
) -> Result<OpenPoint, RestoreError> {
    let repository = &coordinator.repository;
    let role = || RestoreError::Role {
        who: by.map(ToString::to_string).unwrap_or_default(),
        selector: order.selector_text.clone(),
    };
    if let (Some(by), Some(app)) = (by, order.selector.application())
        && !by.may(Action::Restore, coordinator.role_name(app))
    {
        return Err(role());
    }
    let sees_all = by.is_none_or(|by| by.may(Action::Restore, None));
    let found = repository.select(&order.selector).await.map_err(|e| match e {
        FindError::Store(f) => RestoreError::Store(f),
        FindError::Namesakes(_) if !sees_all => {
            RestoreError::Find { selector: order.selector_text.clone(), source: FindError::None }
        }
        source => RestoreError::Find { selector: order.selector_text.clone(), source },
    })?;
    remember(coordinator, order, &found.root).await?;
    let point = repository.open_point(found).await.map_err(|e| match e {
        PointError::Placement(milkrun_repository::point::catalog::PlaceError::Store(f))
        | PointError::Keys { source: NoDomain::Store(f), .. } => RestoreError::Store(f),
        e => RestoreError::Point(e),
    })?;
    let application = point.body.application.clone();
    feed.update(|v| {
        v.application = Some(application.clone());
        v.moments_differ = point.body.moments_differ();
        v.skipped = point.body.skipped.iter().map(skipped::to_wire).collect();
    });
    if let Some(by) = by
        && !by.may(Action::Restore, coordinator.role_name(&application))
    {
        return Err(role());
    }
    Ok(point)
}

/// Warns if a newer point was here once: the restored data is then older than it could be.
async fn remember(coordinator: &Coordinator, order: &Order, root: &Root) -> Result<(), RestoreError> {
    let last_seen = coordinator.cache.last_seen();
    if let Some(seen) = last_seen.newest_seen(&root.app)
        && !coordinator.repository.catalog().has(&root.app, &seen.point).await?
    {
        tracing::warn!("{}", seen.missing());
        return Ok(());
    }
    if order.selector.is_newest() {
        last_seen.saw(&root.app, &root.id());
    }
    Ok(())
}

/// Restores the volumes. The targets are reserved for this run, and stay so.
///
/// # Errors
/// [`RestoreError`].
pub(super) async fn carry_out(
    coordinator: &Coordinator,
    order: &Order,
    looked_up: LookedUp,
    run_id: RunId,
    feed: &Feed,
    progress: Progress,
) -> Result<Done, RestoreError> {
    let LookedUp { began, point, wanted, left_out, manifests } = looked_up;
    let id = point.found.root.id();
    let run = Arc::new(Run {
        repository: coordinator.repository.clone(),
        point,
        volumes: wanted,
        keys: tokio::sync::Mutex::default(),
        assigned: std::sync::Mutex::default(),
    });
    coordinator.restores.begin(run_id, coordinator.epoch, run.clone());
    let mut inbox = coordinator.runs.begin(run_id, Inbox::default());
    feed.update(|v| {
        v.left_out = left_out;
        v.point = id.to_string();
    });
    let moved = assign_volumes(coordinator, order, &run, run_id, &mut inbox, feed, &progress).await;
    let outcome = if moved.is_ok() { Outcome::Done } else { Outcome::Failed };
    let ended = progress.end(coordinator, outcome).await;
    // If another coordinator goes on with the restore, it writes the targets again. So the result says that, and not that it is
    // done or over.
    let volumes = match (moved, ended) {
        (Err(e), Err(RestoreError::Unended { .. })) => return Err(RestoreError::Unended { how: chain(&e) }),
        (moved, ended) => {
            let volumes = moved?;
            ended?;
            volumes
        }
    };
    let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Done { report: control::RestoreDone { volumes, point: id.to_string(), duration_ms }, manifests })
}

/// Checks that the targets are where the inventory lets the application's restores write: agents write to devices as root.
fn check_places(coordinator: &Coordinator, order: &Order, application: &AppId) -> Result<(), RestoreError> {
    if coordinator.inventory.trusts_orders() || order.by_operator || order.targets.is_empty() {
        return Ok(());
    }
    let known = coordinator.inventory.application(&application.name)?;
    let places: Vec<&Reach> = known.sources.iter().flat_map(|s| &s.reach).chain(&known.targets).collect();
    for t in &order.targets {
        let Some(node) = &t.node else {
            return Err(RestoreError::Order(format!("say on which node {} goes: {}=NODE:PATH", t.name, t.name)));
        };
        if !places.iter().any(|p| p.node.as_ref() == Some(node) && p.path == t.path) {
            let what = format!("the inventory does not let restores of {application} write {node}:{}", t.path);
            return Err(RestoreError::Order(what));
        }
    }
    Ok(())
}

fn check_targets(order: &Order, names: &[String]) -> Result<HashMap<String, usize>, RestoreError> {
    let known = || if names.is_empty() { "no volumes".to_owned() } else { names.join(", ") };
    if order.targets.is_empty() && !order.manifests {
        let what = format!(
            "say where to: the point has {} (--volume NAME=PATH, --stream NAME=PATH, --manifests DIR)",
            known()
        );
        return Err(RestoreError::Order(what));
    }
    let mut wanted = HashMap::new();
    let mut paths = HashSet::new();
    for target in &order.targets {
        let at = names.iter().position(|n| n == target.name.as_str());
        let at = at.ok_or_else(|| {
            RestoreError::Order(format!("the point has no volume {}; it has {}", target.name, known()))
        })?;
        if wanted.insert(target.name.to_string(), at).is_some() {
            return Err(RestoreError::Order(format!("volume {} is named twice", target.name)));
        }
        if !paths.insert((&target.node, &target.path)) {
            return Err(RestoreError::Order(format!("{} is the target of two volumes", target.path)));
        }
    }
    Ok(wanted)
}

/// How often a restore checks whether the agents of its targets are connected.
const LOOK_EVERY: Duration = Duration::from_secs(1);

async fn assign_volumes(
    coordinator: &Coordinator,
    order: &Order,
    run: &Arc<Run>,
    run_id: RunId,
    inbox: &mut mpsc::UnboundedReceiver<RunEvent>,
    feed: &Feed,
    progress: &Progress,
) -> Result<Vec<control::VolumeRestored>, RestoreError> {
    let application = run.point.body.application.to_string();
    let mut targets = Targets::new(coordinator, order, run, run_id, application, feed, progress);
    let mut look = tokio::time::interval(LOOK_EVERY);
    let result = loop {
        if targets.all_done() {
            break Ok(());
        }
        let step = tokio::select! {
            event = inbox.recv() => match event {
                Some(event) => targets.apply(event).await,
                None => Err(RestoreError::AgentGone),
            },
            _ = look.tick() => targets.prepare().await,
        };
        if let Err(e) = step {
            break Err(e);
        }
    };
    if let Err(e) = result {
        // Before all else, so that nobody goes on with the restore if this process ends now. If somebody does already, the agents
        // are told all the same.
        let _ = progress.note(Record::Ended).await;
        let under_way = targets.under_way();
        for (volume, attempt, node) in &under_way {
            if let Some(link) = coordinator.agents.link(node) {
                link.send(ToAgent::Cancel(assignment(coordinator, run_id, volume, *attempt))).await;
            }
        }
        runs::await_stopped(inbox, by_node(&under_way)).await;
        return Err(e);
    }
    let volumes = &run.point.body.volumes;
    let size = |name: &str| run.volumes.get(name).map_or(0, |&i| volumes[i].map.len);
    let restored = targets.restored();
    Ok(restored
        .into_iter()
        .map(|(name, r)| control::VolumeRestored {
            size_bytes: size(&name),
            name,
            written_bytes: r.written_bytes,
            hole_bytes: r.hole_bytes,
            fetched_bytes: r.fetched_bytes,
            requests: r.requests,
        })
        .collect())
}
