//! `milkrun show`

use std::time::Duration;

use milkrun_coordinator::manifests::Identity;
use milkrun_proto::control::v1 as control;
use milkrun_repository::clock::Moment;
use milkrun_repository::point::Selector;
use serde_json::{Value, json};

use super::points::{application, text, time};
use super::reader;
use crate::args::{self, Global};
use crate::output::{CliError, Exit, note, print, print_json, table};
use crate::units;

/// Below so many bytes of data the number of requests for each GiB means nothing.
const RATE_FROM: u64 = 64 << 20;

pub(crate) async fn run(a: args::Show, global: &Global) -> Result<Exit, CliError> {
    let parsed: Result<Selector, _> = a.point.parse();
    parsed.map_err(|e| CliError::usage(e.to_string()))?;
    let (mut driver, repository) = reader(&a.repository, global).await?;
    let (cluster, namespace) = a.whose.to_wire();
    let request = control::ShowPointRequest { repository, selector: a.point.clone(), cluster, namespace };
    let mut replies = driver.control.show_point(request).await?.into_inner();
    let (mut detail, mut objects) = (None, Vec::new());
    while let Some(reply) = replies.message().await? {
        detail = detail.or(reply.detail);
        let name =
            |o: control::ObjectName| Identity { group: o.group, kind: o.kind, namespace: o.namespace, name: o.name };
        objects.extend(reply.objects.into_iter().map(name));
    }
    let detail = detail.unwrap_or_default();
    let point = detail.point.clone().unwrap_or_default();
    if point.hidden {
        note(&format!("milkrun: {} is hidden by a delete marker; it is still there and locked", point.point));
    }
    if global.json {
        print_json(document(&point, &detail, &objects));
    } else {
        print_for_people(&point, &detail, &objects);
    }
    Ok(Exit::Done)
}

fn document(point: &control::Point, detail: &control::PointDetail, objects: &[Identity]) -> Value {
    let objects: Vec<_> = objects
        .iter()
        .map(|id| json!({ "kind": id.kind, "group": id.group, "namespace": id.namespace, "name": id.name }))
        .collect();
    json!({
        "point": point.point,
        "application": point.application,
        "cluster": point.cluster,
        "namespace": text(&point.namespace),
        "namespace_uid": text(&point.namespace_uid),
        "class": point.class,
        "time": Moment::from_millis(point.moment_ms).to_string(),
        "locked_until": time(point.lock_until_ms),
        "wished_lock_seconds": point.wished_lock_seconds,
        "host": point.host,
        "writer": point.writer,
        "parent": text(&point.parent),
        "seconds": Duration::from_millis(point.duration_ms).as_secs_f64(),
        "stored_bytes": point.stored_bytes,
        "packs": detail.packs,
        "pack_bytes": detail.pack_bytes,
        "volumes": detail.volumes.iter().map(volume_document).collect::<Vec<_>>(),
        "moments_differ": point.moments_differ,
        "skipped": point.skipped.iter().map(|s| json!({ "name": s.name, "reason": s.reason })).collect::<Vec<_>>(),
        "manifests": objects,
    })
}

fn volume_document(v: &control::VolumeResult) -> Value {
    json!({
        "name": v.name,
        "kind": kind(v),
        "size_bytes": v.size_bytes,
        "hole_bytes": v.hole_bytes,
        "new_bytes": v.new_bytes,
        "stored_bytes": v.stored_bytes,
        "sector_bytes": v.sector_bytes,
        "lists_in_a_row": v.by_lists,
        "sampled_bytes": v.sampled_bytes,
        "restore_requests": v.restore_ranges,
        "restore_opened_bytes": v.restore_opened_bytes,
        "time": Moment::from_millis(v.moment_ms).to_string(),
        "file_system": text(&v.file_system),
        "file_system_label": text(&v.file_system_label),
        "claim": serde_json::from_str::<Value>(&v.claim).ok(),
        "notes": v.notes,
    })
}

fn print_for_people(point: &control::Point, detail: &control::PointDetail, objects: &[Identity]) {
    print(&format!("{}\n", point.point));
    let took = units::time(Duration::from_millis(point.duration_ms));
    let mut facts = vec![
        ("application", application(point)),
        ("time", Moment::from_millis(point.moment_ms).to_string()),
        ("locked until", time(point.lock_until_ms).unwrap_or_else(|| "not locked".into())),
        ("made by", format!("{} on {}, in {took}", point.writer, point.host)),
        ("grew by", units::bytes(point.stored_bytes)),
        ("needs", format!("{} packs of {} in all", detail.packs, units::bytes(detail.pack_bytes))),
    ];
    facts.extend((point.class != "none").then(|| ("class", point.class.clone())));
    facts.extend(text(&point.parent).map(|p| ("parent", p.to_owned())));
    for (name, value) in facts {
        print(&format!("  {name:<13} {value}\n"));
    }
    if !detail.volumes.is_empty() {
        let mut rows = vec![["VOLUME", "KIND", "SIZE", "HOLES", "NEW", "STORED", "HOLDS"].map(str::to_owned).to_vec()];
        for v in &detail.volumes {
            let sizes = [v.size_bytes, v.hole_bytes, v.new_bytes, v.stored_bytes].map(units::bytes);
            let first = [v.name.clone(), kind(v).into()];
            rows.push(first.into_iter().chain(sizes).chain([holds(v)]).collect());
        }
        print(&format!("\n{}", table(&rows)));
    }
    if point.moments_differ {
        print("  The volumes are of different moments: no snapshot shows all of them at once.\n");
        for v in &detail.volumes {
            print(&format!("  {}: of {}\n", v.name, Moment::from_millis(v.moment_ms)));
        }
    }
    for s in &point.skipped {
        print(&format!("  {} was left out: {}\n", s.name, s.reason));
    }
    for v in &detail.volumes {
        if !v.stream {
            print(&format!("  {}: {}\n", v.name, describe(v)));
        }
        for n in &v.notes {
            print(&format!("  note on {}: {n}\n", v.name));
        }
    }
    if !objects.is_empty() {
        print(&format!("\n{} MANIFESTS\n", objects.len()));
        for o in objects {
            print(&format!("{o}\n"));
        }
    }
}

fn kind(v: &control::VolumeResult) -> &'static str {
    if v.stream { "stream" } else { "image" }
}

fn holds(v: &control::VolumeResult) -> String {
    match (v.file_system.as_str(), v.file_system_label.as_str()) {
        ("", _) => "-".to_owned(),
        (kind, "") => kind.to_owned(),
        (kind, label) => format!("{kind} {label:?}"),
    }
}

/// How a volume was read, and what it takes to restore it.
fn describe(v: &control::VolumeResult) -> String {
    let read = match v.by_lists {
        0 => "read in full".to_owned(),
        n => format!(
            "rests on lists of changes, {n} in a row, which were not verified but for a sample of {}",
            units::bytes(v.sampled_bytes)
        ),
    };
    let data = v.size_bytes.saturating_sub(v.hole_bytes);
    #[expect(clippy::cast_precision_loss, reason = "ratios for people")]
    let (gib, opened) = (data.max(1) as f64 / f64::from(1 << 30), v.restore_opened_bytes as f64 / data.max(1) as f64);
    #[expect(clippy::cast_precision_loss, reason = "ratios for people")]
    let requests = v.restore_ranges as f64 / gib;
    let times = if v.restore_ranges == 1 { "once".to_owned() } else { format!("{} times", v.restore_ranges) };
    let rate = if data < RATE_FROM { String::new() } else { format!(" ({requests:.0} for each GiB)") };
    format!("{read}; a restore asks {times}{rate} and opens {opened:.2} bytes for each that it writes")
}
