//! `milkrun points`

use milkrun_repository::clock::Moment;
use milkrun_repository::id::AppId;
use milkrun_repository::point::catalog::chain;
use milkrun_repository::repository::{NoDomain, PointError};
use serde_json::json;

use crate::args::{self, Global, Whose};
use crate::output::{CliError, Exit, note, print, print_json, table};
use crate::{place, units};

/// Whether it is of the cluster and the namespace that were asked for, if any were.
fn is_meant(whose: &Whose, app: &AppId) -> bool {
    let cluster = whose.cluster_id.as_ref().is_none_or(|c| *c == app.cluster);
    cluster && (whose.namespace.is_none() || whose.namespace == app.namespace)
}

pub(crate) async fn run(a: args::Points, global: &Global) -> Result<Exit, CliError> {
    let (repository, _) = place::open(a.repository.url()?, global).await?;
    place::check_address(&repository, false, global)?;
    let app = a.application.as_ref().map(|app| repository.ring.app_hash(&a.whose.named(app)));
    let listing = repository.catalog().list(app.as_ref()).await?;
    let mut documents = Vec::new();
    let mut rows = vec![
        ["POINT", "APPLICATION", "TIME", "VOLUMES", "SIZE", "GREW BY", "LOCKED UNTIL"].map(str::to_owned).to_vec(),
    ];
    let mut damaged = Vec::new();
    let ordered = repository.order(listing.points).await?;
    for found in ordered.points().iter().filter(|f| !f.root.tombstone) {
        let id = found.root.id();
        let body = match repository.body(found).await {
            Ok(body) if !is_meant(&a.whose, &body.application) => continue,
            Ok(body) => body,
            Err(PointError::Keys { source: NoDomain::Store(f), .. }) => return Err(f.into()),
            Err(e) => {
                damaged.push((found.root.key().to_string(), chain(&e)));
                continue;
            }
        };
        let size: u64 = body.volumes.iter().map(|v| v.map.len).sum();
        let locked = found.root.lock_until.map(|l| l.to_string());
        documents.push(json!({
            "point": id.to_string(),
            "application": body.application.name.as_str(),
            "cluster": body.application.cluster.as_str(),
            "namespace": body.application.namespace.as_ref().map(|n| n.as_str()),
            "class": found.root.class.as_str(),
            "moments_differ": body.moments_differ(),
            "skipped": body.skipped.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
            "time": found.root.moment.to_string(),
            "locked_until": locked,
            "size_bytes": size,
            "stored_bytes": body.stored_bytes,
            "volumes": body.volumes.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(),
            "manifests": body.manifests.map_or(0, |m| m.objects),
            "host": body.host,
            "hidden": found.hidden,
        }));
        rows.push(vec![
            id.to_string(),
            body.application.to_string(),
            Moment::to_string(&found.root.moment),
            body.volumes.len().to_string(),
            units::bytes(size),
            units::bytes(body.stored_bytes),
            locked.unwrap_or_else(|| "not locked".into()),
        ]);
        if found.hidden {
            note(&format!("milkrun: {id} is hidden by a delete marker; it is still there and locked"));
        }
    }
    let cache = place::cache(&repository, global);
    for seen in cache.witness().all_seen() {
        let asked = app.is_none_or(|app| app == seen.app);
        if asked && !ordered.points().iter().any(|f| f.root.id() == seen.point) {
            note(&format!("milkrun: {}", seen.missing()));
        }
    }
    let refused = listing.refused.into_iter().map(|r| (format!("{} version {}", r.key, r.version), r.reason));
    let refused: Vec<(String, String)> = refused.chain(damaged).collect();
    for (object, reason) in &refused {
        note(&format!("milkrun: not listed: {object}: {reason}"));
    }
    if global.json {
        let refused: Vec<_> = refused.iter().map(|(o, r)| json!({ "object": o, "reason": r })).collect();
        print_json(json!({ "points": documents, "refused": refused }));
    } else if rows.len() > 1 {
        print(&table(&rows));
    } else {
        note("There are no restore points yet.");
    }
    Ok(Exit::Done)
}
