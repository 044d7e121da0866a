//! `milkrun show`

use std::time::Duration;

use milkrun_coordinator::manifests;
use milkrun_repository::metadata::MetadataError;
use milkrun_repository::point::Selector;
use milkrun_repository::point::catalog::{FindError, PlaceError, chain};
use milkrun_repository::point::root::{Class, FileSystem, Layout, VolumeKind};
use milkrun_repository::repository::{NoDomain, PointError};
use serde_json::json;

use crate::args::{self, Global};
use crate::output::{CliError, Exit, print, print_json, table};
use crate::{place, units};

/// The number of requests for each GiB is shown only from this many bytes on.
const RATE_FROM: u64 = 64 << 20;

pub(crate) async fn run(a: args::Show, global: &Global) -> Result<Exit, CliError> {
    let selector: Selector =
        a.point.parse().map_err(|e: milkrun_repository::point::select::BadSelector| CliError::usage(e.to_string()))?;
    let (repository, _) = place::open(a.repository.url()?, global).await?;
    place::check_address(&repository, false, global)?;
    let found = repository.select(&a.whose.select(selector)).await.map_err(|e| find_error(&a.point, e))?;
    let point = repository.open_point(found).await.map_err(point_error)?;
    let lines = repository.manifests(&point).await.map_err(metadata_error)?;
    let objects = manifests::decode(&lines)
        .map_err(|line| damage(format!("line {line} of the stored manifests is no Kubernetes object")))?;
    let (root, body) = (&point.found.root, &point.body);
    let packs = &point.placement.packs;
    let pack_bytes: u64 = packs.iter().map(|p| p.length).sum();
    if global.json {
        let volumes: Vec<_> = body
            .volumes
            .iter()
            .map(|v| {
                json!({
                    "name": v.name.as_str(),
                    "kind": kind(v.kind),
                    "size_bytes": v.map.len,
                    "hole_bytes": v.hole_bytes,
                    "new_bytes": v.new_bytes,
                    "stored_bytes": v.stored_bytes,
                    "sector_bytes": v.sector_bytes,
                    "lists_in_a_row": v.layout.by_lists,
                    "sampled_bytes": v.layout.sampled_bytes,
                    "restore_requests": v.layout.ranges,
                    "restore_opened_bytes": v.layout.opened_bytes,
                    "time": v.moment.to_string(),
                    "file_system": text(&v.file_system.kind),
                    "file_system_label": text(&v.file_system.label),
                    "claim": serde_json::from_str::<serde_json::Value>(&v.claim).ok(),
                    "notes": v.notes,
                })
            })
            .collect();
        let objects: Vec<_> = objects
            .iter()
            .map(|o| {
                let id = &o.identity;
                json!({ "kind": id.kind, "group": id.group, "namespace": id.namespace, "name": id.name })
            })
            .collect();
        print_json(json!({
            "point": root.id().to_string(),
            "application": body.application.name.as_str(),
            "cluster": body.application.cluster.as_str(),
            "namespace": body.application.namespace.as_ref().map(|n| n.as_str()),
            "namespace_uid": text(&body.namespace_uid),
            "class": root.class.as_str(),
            "wished_lock_seconds": body.lock_ms / 1000,
            "moments_differ": body.moments_differ(),
            "skipped": body.skipped.iter().map(|s| json!({ "name": s.name.as_str(), "reason": s.reason })).collect::<Vec<_>>(),
            "time": root.moment.to_string(),
            "locked_until": root.lock_until.map(|l| l.to_string()),
            "host": body.host,
            "writer": body.writer,
            "parent": body.parent.map(|p| p.to_string()),
            "seconds": Duration::from_millis(body.duration_ms).as_secs_f64(),
            "stored_bytes": body.stored_bytes,
            "packs": packs.len(),
            "pack_bytes": pack_bytes,
            "volumes": volumes,
            "manifests": objects,
        }));
        return Ok(Exit::Done);
    }
    print(&format!("{}\n", root.id()));
    let mut facts = vec![
        ("application", body.application.to_string()),
        ("time", root.moment.to_string()),
        ("locked until", root.lock_until.map_or_else(|| "not locked".into(), |l| l.to_string())),
        (
            "made by",
            format!("{} on {}, in {}", body.writer, body.host, units::time(Duration::from_millis(body.duration_ms))),
        ),
        ("grew by", units::bytes(body.stored_bytes)),
        ("needs", format!("{} packs of {} in all", packs.len(), units::bytes(pack_bytes))),
    ];
    facts.extend((root.class != Class::None).then(|| ("class", root.class.to_string())));
    facts.extend(body.parent.map(|p| ("parent", p.to_string())));
    for (name, value) in facts {
        print(&format!("  {name:<13} {value}\n"));
    }
    if !body.volumes.is_empty() {
        let mut rows = vec![["VOLUME", "KIND", "SIZE", "HOLES", "NEW", "STORED", "HOLDS"].map(str::to_owned).to_vec()];
        for v in &body.volumes {
            let sizes = [v.map.len, v.hole_bytes, v.new_bytes, v.stored_bytes].map(units::bytes);
            let first = [v.name.to_string(), kind(v.kind).into()];
            rows.push(first.into_iter().chain(sizes).chain([holds(&v.file_system)]).collect());
        }
        print(&format!("\n{}", table(&rows)));
    }
    if body.moments_differ() {
        print("  The volumes are of different moments: no snapshot shows all of them at once.\n");
        for v in &body.volumes {
            print(&format!("  {}: of {}\n", v.name, v.moment));
        }
    }
    for s in &body.skipped {
        print(&format!("  {} was left out: {}\n", s.name, s.reason));
    }
    for v in &body.volumes {
        if v.kind == VolumeKind::Image {
            print(&format!("  {}: {}\n", v.name, describe(&v.layout, v.map.len - v.hole_bytes)));
        }
        for n in &v.notes {
            print(&format!("  note on {}: {n}\n", v.name));
        }
    }
    if !objects.is_empty() {
        print(&format!("\n{} MANIFESTS\n", objects.len()));
        for o in &objects {
            print(&format!("{}\n", o.identity));
        }
    }
    Ok(Exit::Done)
}

/// What is known, or nothing.
fn text(text: &str) -> Option<&str> {
    Some(text).filter(|t| !t.is_empty())
}

fn holds(f: &FileSystem) -> String {
    match (f.kind.as_str(), f.label.as_str()) {
        ("", _) => "-".to_owned(),
        (kind, "") => kind.to_owned(),
        (kind, label) => format!("{kind} {label:?}"),
    }
}

/// How a volume was read, and what it takes to restore it.
fn describe(layout: &Layout, data: u64) -> String {
    let read = match layout.by_lists {
        0 => "read in full".to_owned(),
        n => format!(
            "rests on lists of changes, {n} in a row, which were not verified but for a sample of {}",
            units::bytes(layout.sampled_bytes)
        ),
    };
    #[expect(clippy::cast_precision_loss, reason = "ratios for people")]
    let (gib, opened) = (data.max(1) as f64 / f64::from(1 << 30), layout.opened_bytes as f64 / data.max(1) as f64);
    #[expect(clippy::cast_precision_loss, reason = "ratios for people")]
    let requests = layout.ranges as f64 / gib;
    let times = if layout.ranges == 1 { "once".to_owned() } else { format!("{} times", layout.ranges) };
    // For little data a rate says nothing.
    let rate = if data < RATE_FROM { String::new() } else { format!(" ({requests:.0} for each GiB)") };
    format!("{read}; a restore asks {times}{rate} and opens {opened:.2} bytes for each that it writes")
}

fn kind(kind: VolumeKind) -> &'static str {
    match kind {
        VolumeKind::Image => "image",
        VolumeKind::Stream => "stream",
    }
}

fn damage(message: String) -> CliError {
    CliError { exit: Exit::Damage, message, advice: Some("Run `milkrun verify` to see how far it goes.") }
}

pub(crate) fn find_error(what: &str, e: FindError) -> CliError {
    match e {
        FindError::Store(f) => f.into(),
        e @ FindError::Namesakes(_) => CliError::failed(format!("{what}: {e}")),
        FindError::None => CliError::failed(format!("{what}: there is no such restore point"))
            .with("`milkrun points` lists what there is."),
        e @ (FindError::Refused { .. } | FindError::NewestRefused { .. }) => damage(format!("{what}: {}", chain(&e))),
    }
}

fn point_error(e: PointError) -> CliError {
    match e {
        PointError::Placement(PlaceError::Store(f)) | PointError::Keys { source: NoDomain::Store(f), .. } => f.into(),
        e => damage(chain(&e)),
    }
}

fn metadata_error(e: MetadataError) -> CliError {
    match e {
        MetadataError::Store(f) => f.into(),
        e => damage(chain(&e)),
    }
}
