//! Restore points as people see them: listed, shown, and verified.

use std::collections::BTreeSet;

use milkrun_identity::{Action, Peer};
use milkrun_proto::control::v1 as control;
use milkrun_repository::clock::Moment;
use milkrun_repository::damaged;
use milkrun_repository::id::{AppId, PackId};
use milkrun_repository::metadata::MetadataError;
use milkrun_repository::point::catalog::{FindError, Found, chain};
use milkrun_repository::point::{RootBody, Selector, VolumeEntry, VolumeKind};
use milkrun_repository::repository::{NoDomain, PointError};
use milkrun_repository::store::{CreateError, Failure};
use milkrun_repository::verify::{self, Options, Report};

use crate::{Coordinator, manifests, skipped};

/// Packs that a verification reads at once.
const PARALLEL: usize = 4;

/// Why a request about points fails.
#[derive(Debug, thiserror::Error)]
pub enum PointsError {
    /// There is no such point.
    #[error("{selector}: {source}")]
    Find {
        /// The selector that was given.
        selector: String,
        /// Why.
        source: FindError,
    },
    /// None of the named points exists.
    #[error("there is no such restore point")]
    Nothing,
    /// The caller may not see it.
    #[error("{who} has no role for view of {what}")]
    Role {
        /// The caller.
        who: String,
        /// The selector that was given.
        what: String,
    },
    /// It can't be read.
    #[error(transparent)]
    Point(#[from] PointError),
    /// Its manifests can't be read.
    #[error(transparent)]
    Map(#[from] MetadataError),
    /// Its manifests make no sense.
    #[error("line {0} of the stored manifests is no Kubernetes object")]
    Manifests(usize),
    /// As many verifications as may go on at once are under way.
    #[error("{0} verifications of this repository are under way already: wait for one to end")]
    Busy(usize),
    /// The process ends.
    #[error("stopped")]
    Stopped,
    /// The store can't be asked.
    #[error(transparent)]
    Store(#[from] Failure),
}

/// Selects points: those of one application, those of a cluster and a namespace, or all.
#[derive(Clone, Debug)]
pub enum Filter {
    /// Those of this application.
    Application(AppId),
    /// Those that match all fields; an empty field matches any.
    All {
        /// Their cluster.
        cluster: String,
        /// Their namespace.
        namespace: String,
    },
}

impl Filter {
    fn takes(&self, app: &AppId) -> bool {
        match self {
            Self::Application(wanted) => wanted == app,
            Self::All { cluster, namespace } => {
                let of = app.namespace.as_ref().map_or("", |n| n.as_str());
                (cluster.is_empty() || cluster == app.cluster.as_str()) && (namespace.is_empty() || namespace == of)
            }
        }
    }
}

fn may_view(coordinator: &Coordinator, peer: &Peer, app: &AppId) -> bool {
    peer.may(Action::View, coordinator.role_name(app))
}

/// The points of a repository, oldest first.
///
/// # Errors
/// [`Failure`] when the store can't be asked.
pub(crate) async fn list(
    coordinator: &Coordinator,
    filter: &Filter,
    peer: &Peer,
) -> Result<control::ListPointsReply, Failure> {
    let repository = &coordinator.repository;
    let last_seen = coordinator.cache.last_seen();
    let mut reply = control::ListPointsReply::default();
    let hash = match filter {
        Filter::Application(app) => Some(repository.ring.app_hash(app)),
        Filter::All { .. } => None,
    };
    let listing = repository.catalog().list(hash.as_ref()).await?;
    let ordered = repository.order(listing.points).await?;
    let sees_all = peer.may(Action::View, None);
    let asked = match filter {
        Filter::Application(app) => may_view(coordinator, peer, app),
        Filter::All { .. } => sees_all,
    };
    let mut damaged = Vec::new();
    for found in ordered.points().iter().filter(|f| !f.root.tombstone) {
        match repository.body(found).await {
            Ok(body) if !filter.takes(&body.application) || !may_view(coordinator, peer, &body.application) => {}
            Ok(body) => {
                if found.hidden {
                    let id = found.root.id();
                    reply.notes.push(format!("{id} is hidden by a delete marker; it is still there and locked"));
                }
                reply.points.push(point(found, &body));
            }
            Err(PointError::Keys { source: NoDomain::Store(f), .. }) => return Err(f),
            Err(e) => damaged.push((found.root.key().to_string(), chain(&e))),
        }
    }
    if asked {
        let missing = last_seen.all_seen().into_iter().filter(|seen| hash.is_none_or(|app| app == seen.app));
        let missing = missing.filter(|seen| !ordered.points().iter().any(|f| f.root.id() == seen.point));
        reply.notes.extend(missing.map(|seen| seen.missing().to_string()));
        let refused = listing.refused.into_iter().map(|r| (format!("{} version {}", r.key, r.version), r.reason));
        let refused = refused.chain(damaged);
        reply.refused = refused.map(|(object, reason)| control::RefusedObject { object, reason }).collect();
    }
    Ok(reply)
}

fn point(found: &Found, body: &RootBody) -> control::Point {
    let AppId { cluster, namespace, name } = &body.application;
    control::Point {
        point: found.root.id().to_string(),
        application: name.to_string(),
        cluster: cluster.to_string(),
        namespace: namespace.as_ref().map(ToString::to_string).unwrap_or_default(),
        namespace_uid: body.namespace_uid.clone(),
        class: found.root.class.to_string(),
        moment_ms: found.root.moment.millis(),
        lock_until_ms: found.root.lock_until.map_or(0, Moment::millis),
        wished_lock_seconds: body.lock_ms / 1000,
        size_bytes: body.volumes.iter().map(|v| v.map.len).sum(),
        stored_bytes: body.stored_bytes,
        volumes: body.volumes.iter().map(|v| v.name.to_string()).collect(),
        manifests: body.manifests.map_or(0, |m| m.objects),
        host: body.host.clone(),
        writer: body.writer.clone(),
        parent: body.parent.map(|p| p.to_string()).unwrap_or_default(),
        duration_ms: body.duration_ms,
        hidden: found.hidden,
        moments_differ: body.moments_differ(),
        skipped: body.skipped.iter().map(skipped::to_wire).collect(),
    }
}

/// A volume of a root, as a message.
pub(crate) fn volume(v: &VolumeEntry) -> control::VolumeResult {
    control::VolumeResult {
        name: v.name.to_string(),
        size_bytes: v.map.len,
        read_bytes: 0,
        hole_bytes: v.hole_bytes,
        new_bytes: v.new_bytes,
        stored_bytes: v.stored_bytes,
        notes: v.notes.clone(),
        by_lists: v.layout.by_lists,
        sampled_bytes: v.layout.sampled_bytes,
        restore_ranges: v.layout.ranges,
        restore_opened_bytes: v.layout.opened_bytes,
        moment_ms: v.moment.millis(),
        file_system: v.file_system.kind.clone(),
        file_system_label: v.file_system.label.clone(),
        stream: v.kind == VolumeKind::Stream,
        sector_bytes: v.sector_bytes,
        claim: v.claim.clone(),
    }
}

/// Finds a point for a caller who may see it. A caller who may not see it does not learn whether it exists.
async fn find(coordinator: &Coordinator, selector: &Selector, text: &str, peer: &Peer) -> Result<Found, PointsError> {
    if let Some(app) = selector.application()
        && !may_view(coordinator, peer, app)
    {
        return Err(PointsError::Role { who: peer.to_string(), what: text.to_owned() });
    }
    coordinator.repository.select(selector).await.map_err(|e| match e {
        FindError::Store(f) => PointsError::Store(f),
        FindError::Namesakes(_) if !peer.may(Action::View, None) => {
            PointsError::Find { selector: text.to_owned(), source: FindError::None }
        }
        source => PointsError::Find { selector: text.to_owned(), source },
    })
}

/// What a point holds, and the names of its manifests.
///
/// # Errors
/// [`PointsError`].
pub(crate) async fn show(
    coordinator: &Coordinator,
    selector: &Selector,
    text: &str,
    peer: &Peer,
) -> Result<(control::PointDetail, Vec<control::ObjectName>), PointsError> {
    let repository = &coordinator.repository;
    let found = find(coordinator, selector, text, peer).await?;
    let opened = repository.open_point(found).await?;
    if !may_view(coordinator, peer, &opened.body.application) {
        return Err(PointsError::Role { who: peer.to_string(), what: text.to_owned() });
    }
    let lines = repository.manifests(&opened).await?;
    let objects = manifests::decode(&lines).map_err(PointsError::Manifests)?;
    let detail = control::PointDetail {
        point: Some(point(&opened.found, &opened.body)),
        packs: opened.placement.packs.len() as u64,
        pack_bytes: opened.placement.packs.iter().map(|p| p.length).sum(),
        volumes: opened.body.volumes.iter().map(volume).collect(),
    };
    let name = |o: &manifests::Object| control::ObjectName {
        group: o.identity.group.clone(),
        kind: o.identity.kind.clone(),
        namespace: o.identity.namespace.clone(),
        name: o.identity.name.clone(),
    };
    Ok((detail, objects.iter().map(name).collect()))
}

/// What to verify.
pub(crate) struct Verification {
    /// Points or applications, each with the text that named it; empty: all.
    pub(crate) which: Vec<(Selector, String)>,
    /// How much of the data is read.
    pub(crate) data_percent: u8,
    /// Whether damaged packs are set aside.
    pub(crate) set_aside: bool,
}

/// Verifies that points are whole.
///
/// # Errors
/// [`PointsError`].
pub(crate) async fn verify(
    coordinator: &Coordinator,
    wanted: Verification,
    peer: &Peer,
) -> Result<control::VerifyReply, PointsError> {
    let repository = &coordinator.repository;
    let role = |what: &str| PointsError::Role { who: peer.to_string(), what: what.to_owned() };
    let mut options = Options { data_percent: wanted.data_percent, parallel: PARALLEL, ..Options::default() };
    if wanted.which.is_empty() && !peer.may(Action::View, None) {
        return Err(role("all applications"));
    }
    for (selector, text) in &wanted.which {
        match selector {
            Selector::Application(app) => {
                if !may_view(coordinator, peer, app) {
                    return Err(role(text));
                }
                options.apps.push(repository.ring.app_hash(app));
            }
            selector => {
                let found = find(coordinator, selector, text, peer).await?;
                if !peer.may(Action::View, None)
                    && !may_view(coordinator, peer, &repository.body(&found).await?.application)
                {
                    return Err(role(text));
                }
                options.points.push(found.root.id());
            }
        }
    }
    let permit =
        coordinator.verifying.clone().try_acquire_owned().map_err(|_| PointsError::Busy(crate::VERIFYING_MAX))?;
    // The verification has a thread of its own: its future can't move between threads.
    let (of, cache) = (repository.clone(), coordinator.cache.clone());
    let handle = tokio::runtime::Handle::current();
    let work = tokio::task::spawn_blocking(move || {
        // The permit is held also when no caller waits any more.
        let _permit = permit;
        handle.block_on(verify::verify(&of, &cache, &options))
    });
    let report = match work.await {
        Ok(report) => report?,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(_) => return Err(PointsError::Stopped),
    };
    if report.points == 0 && report.findings.is_empty() && !wanted.which.is_empty() {
        return Err(PointsError::Nothing);
    }
    let mut reply = report_to_wire(&report);
    if wanted.set_aside {
        // The findings stand, also if they can't be written down.
        match set_aside(coordinator, &report).await {
            Ok(packs) => reply.set_aside = Some(packs),
            Err(why) => reply.set_aside_failed = why,
        }
    }
    Ok(reply)
}

/// Sets aside the packs that were found damaged and are not set aside yet. Returns how many they are.
async fn set_aside(coordinator: &Coordinator, report: &Report) -> Result<u64, String> {
    let mut count = 0;
    for (app, packs) in &report.damaged {
        let known = damaged::load(&coordinator.repository, app).await.map_err(|f| chain(&f))?;
        let new: BTreeSet<PackId> = packs.difference(&known).copied().collect();
        if !new.is_empty() {
            let stored = damaged::set_aside(&coordinator.repository, app, &new).await;
            stored.map_err(|e| match e {
                CreateError::Failed(f) => chain(&f),
                e @ CreateError::Exists(_) => chain(&e),
            })?;
            count += new.len() as u64;
        }
    }
    Ok(count)
}

/// A report, as a message.
pub fn report_to_wire(report: &Report) -> control::VerifyReply {
    let finding = |f: &verify::Finding| control::Finding {
        object: f.object.clone(),
        reason: f.reason.clone(),
        points: f.points.iter().map(ToString::to_string).collect(),
    };
    control::VerifyReply {
        points: report.points,
        tombstones: report.tombstones,
        packs: report.packs,
        map_chunks: report.map_chunks,
        extents: report.extents,
        index_entries: report.index_entries,
        packs_read: report.packs_read,
        bytes_read: report.bytes_read,
        chunks_opened: report.chunks_opened,
        extents_compared: report.extents_compared,
        damaged_packs: report.damaged.values().map(|packs| packs.len() as u64).sum(),
        findings: report.findings.iter().map(finding).collect(),
        set_aside: None,
        set_aside_failed: String::new(),
    }
}
