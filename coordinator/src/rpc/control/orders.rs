//! Orders as they come over the wire: they are read and checked before anything is done.

use std::time::Duration;

use milkrun_proto::control::v1 as control;
use milkrun_repository::Repository;
use milkrun_repository::chunk::codec::Level;
use milkrun_repository::clock::Moment;
use milkrun_repository::id::{AppId, ClusterId};
use milkrun_repository::point::Selector;
use milkrun_repository::point::root::Class;
use tonic::Status;

use crate::inventory::{Reach, SourceSpec};
use crate::rpc::status;
use crate::{Shared, backup, restore, skipped};

/// The longest lock that an order may ask for, unless the repository's own is longer.
const LOCK_MAX: Duration = Duration::from_secs(365 * 86_400);
/// The most bytes of a host's name (RFC 1035: 253 characters).
const HOST_MAX: usize = 253;

pub(super) fn bad(e: &(dyn std::error::Error + 'static)) -> Status {
    Status::invalid_argument(e.to_string())
}

/// The application that an order names.
pub(super) fn application(name: &str, cluster: &str, namespace: &str, own: &ClusterId) -> Result<AppId, Status> {
    let cluster = if cluster.is_empty() { own.clone() } else { cluster.parse().map_err(|e| bad(&e))? };
    let namespace = Some(namespace).filter(|n| !n.is_empty());
    let namespace = namespace.map(str::parse).transpose().map_err(|e| bad(&e))?;
    Ok(AppId { cluster, namespace, name: name.parse().map_err(|e| bad(&e))? })
}

/// Reads the order of a backup. `trusted`: the one who orders may name what is read, and where.
pub(super) fn backup_order(
    o: control::BackupOrder,
    shared: &Shared,
    repository: &Repository,
    trusted: bool,
) -> Result<backup::Order, Status> {
    if !trusted && !o.sources.is_empty() {
        return Err(Status::invalid_argument(
            "which volumes an application has, and where, is said by the coordinator's inventory: name none",
        ));
    }
    let application = application(&o.application, &o.cluster, &o.namespace, &shared.cluster)?;
    if !trusted && application.name_in(&shared.cluster).is_none() {
        let what = format!("the inventory lists applications of cluster {} alone, without namespaces", shared.cluster);
        return Err(Status::invalid_argument(what));
    }
    let skipped = o.skipped.iter().map(|s| skipped::from_wire(s).map_err(|e| bad(&e)));
    let sources = o.sources.into_iter().map(|s| {
        let name = s.name.parse().map_err(|e| bad(&e))?;
        let reach = vec![Reach { node: None, path: s.path }];
        let changed_from = Some(s.changed_from).filter(|p| !p.is_empty());
        let moment = (s.moment_ms != 0).then(|| Moment::from_millis(s.moment_ms));
        let (stream, claim) = (s.stream, s.claim);
        Ok(SourceSpec { name, stream, size: None, reach, changed_from, skip_free: false, moment, claim })
    });
    Level::new(o.level).map_err(|e| bad(&e))?;
    let most = LOCK_MAX.max(repository.config.lock.period);
    // Where the one who orders is not responsible for the bucket: a lock in compliance mode can't be undone.
    if !shared.inventory.trusts_orders() && o.lock_seconds > most.as_secs() {
        let what = format!("a lock of {} s: a coordinator takes at most {} s", o.lock_seconds, most.as_secs());
        return Err(Status::invalid_argument(what));
    }
    if o.host.len() > HOST_MAX || o.host.chars().any(char::is_control) {
        return Err(status::nonsense("the host's name is too long, or no text"));
    }
    Ok(backup::Order {
        application,
        namespace_uid: o.namespace_uid,
        class: if o.class.is_empty() { Class::None } else { o.class.parse().map_err(|e| bad(&e))? },
        skipped: skipped.collect::<Result<_, Status>>()?,
        sources: sources.collect::<Result<_, Status>>()?,
        manifests: Vec::new(),
        manifest_objects: o.manifest_objects,
        lock_for: (o.lock_seconds > 0).then(|| Duration::from_secs(o.lock_seconds)),
        parent: o.parent,
        level: o.level,
        adapt_level: o.adapt_level,
        host: o.host,
        allow_mounted: o.allow_mounted,
        allow_changing: o.allow_changing,
        allow_empty: o.allow_empty,
        whole_chunks: o.whole_chunks,
        skip_free: o.skip_free,
        full_every: o.full_every,
        open: false,
        complete: true,
    })
}

/// A target of a restore.
pub(super) fn target(t: control::Target) -> Result<restore::TargetSpec, Status> {
    let name = t.name.parse().map_err(|e| bad(&e))?;
    let node = Some(t.node).filter(|n| !n.is_empty());
    Ok(restore::TargetSpec { name, path: t.path, node, stream: t.stream })
}

/// Reads the order of a restore.
pub(super) fn restore_order(r: control::RestoreRequest, own: &ClusterId) -> Result<restore::Order, Status> {
    let cluster = if r.cluster.is_empty() { own.clone() } else { r.cluster.parse().map_err(|e| bad(&e))? };
    let namespace = Some(r.namespace.as_str()).filter(|n| !n.is_empty());
    let namespace = namespace.map(str::parse).transpose().map_err(|e| bad(&e))?;
    let selector: Selector = r.selector.parse().map_err(|e| bad(&e))?;
    let targets = r.targets.into_iter().map(target);
    Ok(restore::Order {
        selector: selector.within(cluster, namespace),
        targets: targets.collect::<Result<_, Status>>()?,
        selector_text: r.selector,
        manifests: r.manifests,
        force: r.force,
        discard_rest: r.discard_rest,
        by_operator: false,
    })
}
