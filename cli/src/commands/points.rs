//! `milkrun points`

use milkrun_proto::control::v1 as control;
use milkrun_repository::clock::Moment;
use serde_json::{Value, json};

use super::reader;
use crate::args::{self, Global};
use crate::output::{CliError, Exit, note, print, print_json, table};
use crate::units;

/// Text, or nothing.
pub(crate) fn text(text: &str) -> Option<&str> {
    Some(text).filter(|t| !t.is_empty())
}

/// A moment, or nothing.
pub(crate) fn time(ms: i64) -> Option<String> {
    (ms != 0).then(|| Moment::from_millis(ms).to_string())
}

/// The application of a point, for people.
pub(crate) fn application(p: &control::Point) -> String {
    match (p.cluster.as_str(), text(&p.namespace)) {
        (milkrun_repository::id::ClusterId::LOCAL, None) => p.application.clone(),
        (milkrun_repository::id::ClusterId::LOCAL, Some(namespace)) => {
            format!("{} (namespace {namespace})", p.application)
        }
        (cluster, None) => format!("{} (cluster {cluster})", p.application),
        (cluster, Some(namespace)) => format!("{} (namespace {namespace}, cluster {cluster})", p.application),
    }
}

pub(crate) async fn run(a: args::Points, global: &Global) -> Result<Exit, CliError> {
    let (mut driver, repository) = reader(&a.repository, global).await?;
    let (cluster, namespace) = a.whose.to_wire();
    let application_name = a.application.as_ref().map(ToString::to_string).unwrap_or_default();
    let request = control::ListPointsRequest { repository, application: application_name, cluster, namespace };
    let mut replies = driver.control.list_points(request).await?.into_inner();
    let (mut points, mut refused, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(reply) = replies.message().await? {
        points.extend(reply.points);
        refused.extend(reply.refused);
        notes.extend(reply.notes);
    }
    for text in notes {
        note(&format!("milkrun: {text}"));
    }
    for r in &refused {
        note(&format!("milkrun: not listed: {}: {}", r.object, r.reason));
    }
    if global.json {
        let refused: Vec<_> = refused.iter().map(|r| json!({ "object": r.object, "reason": r.reason })).collect();
        print_json(json!({ "points": points.iter().map(document).collect::<Vec<_>>(), "refused": refused }));
        return Ok(Exit::Done);
    }
    if points.is_empty() {
        note("There are no restore points yet.");
        return Ok(Exit::Done);
    }
    let mut rows = vec![
        ["POINT", "APPLICATION", "TIME", "VOLUMES", "SIZE", "GREW BY", "LOCKED UNTIL"].map(str::to_owned).to_vec(),
    ];
    for p in &points {
        rows.push(vec![
            p.point.clone(),
            application(p),
            Moment::from_millis(p.moment_ms).to_string(),
            p.volumes.len().to_string(),
            units::bytes(p.size_bytes),
            units::bytes(p.stored_bytes),
            time(p.lock_until_ms).unwrap_or_else(|| "not locked".into()),
        ]);
    }
    print(&table(&rows));
    Ok(Exit::Done)
}

fn document(p: &control::Point) -> Value {
    json!({
        "point": p.point,
        "application": p.application,
        "cluster": p.cluster,
        "namespace": text(&p.namespace),
        "class": p.class,
        "time": Moment::from_millis(p.moment_ms).to_string(),
        "locked_until": time(p.lock_until_ms),
        "size_bytes": p.size_bytes,
        "stored_bytes": p.stored_bytes,
        "volumes": p.volumes,
        "skipped": p.skipped.iter().map(|s| &s.name).collect::<Vec<_>>(),
        "moments_differ": p.moments_differ,
        "manifests": p.manifests,
        "host": p.host,
        "hidden": p.hidden,
    })
}
