//! `milkrun verify`

use std::collections::BTreeSet;
use std::path::Path;

use milkrun_repository::damaged;
use milkrun_repository::id::PackId;
use milkrun_repository::keys::VerifyingKey;
use milkrun_repository::point::Selector;
use milkrun_repository::point::catalog::chain;
use milkrun_repository::repository::Repository;
use milkrun_repository::store::CreateError;
use milkrun_repository::verify::{self, Options, PublicError, Report};
use serde_json::json;

use crate::args::{self, Global};
use crate::output::{CliError, Exit, print, print_json};
use crate::{place, units};

/// Packs read at once.
const PARALLEL: usize = 4;

pub(crate) async fn run(a: args::Verify, global: &Global) -> Result<Exit, CliError> {
    let url = a.repository.url()?;
    let mut aside = None;
    let report = match &a.public_key {
        Some(file) => {
            let options = public_options(&a)?;
            let place = place::connect(url, global).await?;
            let key = read_key(file)?;
            let verified = verify::verify_public(&*place.store, key, &options).await;
            verified.map_err(public_error)?.1
        }
        None => {
            let (repository, _) = place::open(url, global).await?;
            place::check_address(&repository, false, global)?;
            let mut options = Options { data_percent: a.data.unwrap_or(0), parallel: PARALLEL, ..Options::default() };
            for text in &a.which {
                match text.parse() {
                    Ok(Selector::Point(id)) => options.points.push(id),
                    Ok(Selector::Latest(app)) if !text.contains('@') => {
                        options.apps.push(repository.ring.app_hash(&a.whose.named(&app.name)))
                    }
                    Ok(selector) => {
                        let found = repository.select(&a.whose.select(selector)).await;
                        options.points.push(found.map_err(|e| super::show::find_error(text, e))?.root.id());
                    }
                    Err(e) => return Err(CliError::usage(e.to_string())),
                }
            }
            let cache = place::cache(&repository, global);
            let report = verify::verify(&repository, &cache, &options).await?;
            if report.points == 0 && report.findings.is_empty() && !a.which.is_empty() {
                return Err(
                    CliError::failed("there is no such restore point").with("`milkrun points` lists what there is.")
                );
            }
            if a.set_aside {
                aside = match set_aside(&repository, &report).await {
                    Ok(packs) => Some(packs),
                    Err(e) => {
                        // The findings are printed even if setting aside fails.
                        print_report(&report, None, a.data.is_some(), global);
                        return Err(e);
                    }
                };
            }
            report
        }
    };
    Ok(print_report(&report, aside, a.data.is_some() || a.public_key.is_some(), global))
}

/// Sets aside the damaged packs that are not set aside yet. Returns how many these are.
async fn set_aside(repository: &Repository, report: &Report) -> Result<usize, CliError> {
    let mut count = 0;
    for (app, packs) in &report.damaged {
        let known = damaged::load(repository, app).await?;
        let new: BTreeSet<PackId> = packs.difference(&known).copied().collect();
        if !new.is_empty() {
            damaged::set_aside(repository, app, &new).await.map_err(|e| match e {
                CreateError::Failed(f) => f.into(),
                e @ CreateError::Exists(_) => CliError::failed(chain(&e)),
            })?;
            count += new.len();
        }
    }
    Ok(count)
}

fn public_options(a: &args::Verify) -> Result<Options, CliError> {
    let mut options = Options { parallel: PARALLEL, ..Options::default() };
    for text in &a.which {
        let no_names = "without the secret, applications have no names: name restore points, or nothing for all";
        options.points.push(text.parse().map_err(|_| CliError::usage(no_names))?);
    }
    Ok(options)
}

fn read_key(path: &Path) -> Result<VerifyingKey, CliError> {
    let text = std::fs::read_to_string(path).map_err(|e| CliError::failed(format!("can't read {path:?}: {e}")))?;
    let mut key = [0; 32];
    hex::decode_to_slice(text.trim(), &mut key)
        .map_err(|_| CliError::usage(format!("{path:?} holds no public key (64 hexadecimal digits)")))?;
    Ok(VerifyingKey::from_bytes(key))
}

fn public_error(e: PublicError) -> CliError {
    match e {
        PublicError::Store(f) => f.into(),
        PublicError::Open(e) => e.into(),
        e @ PublicError::Stranger => CliError { exit: Exit::Damage, message: chain(&e), advice: None },
    }
}

fn print_report(report: &Report, aside: Option<usize>, data: bool, global: &Global) -> Exit {
    let exit = if report.findings.is_empty() { Exit::Done } else { Exit::Damage };
    if global.json {
        let findings: Vec<_> = report
            .findings
            .iter()
            .map(|f| {
                let points: Vec<String> = f.points.iter().map(ToString::to_string).collect();
                json!({ "object": f.object, "reason": f.reason, "points": points })
            })
            .collect();
        print_json(json!({
            "checked": {
                "points": report.points,
                "tombstones": report.tombstones,
                "packs": report.packs,
                "map_chunks": report.map_chunks,
                "extents": report.extents,
                "index_entries": report.index_entries,
                "packs_read": report.packs_read,
                "bytes_read": report.bytes_read,
                "chunks_opened": report.chunks_opened,
                "extents_compared": report.extents_compared,
            },
            "findings": findings,
            "set_aside": aside,
        }));
        return exit;
    }
    print(&format!(
        "Checked {} restore points, {} packs, {} map chunks with {} extents.\n",
        report.points, report.packs, report.map_chunks, report.extents
    ));
    if data {
        print(&format!("Read {} in {} packs", units::bytes(report.bytes_read), report.packs_read));
        print(&if report.chunks_opened > 0 {
            format!(
                ", opened {} chunks, and compared the digests of pages in {} extents.\n",
                report.chunks_opened, report.extents_compared
            )
        } else {
            ".\n".into()
        });
    }
    if report.findings.is_empty() {
        print("Nothing is wrong.\n");
        return exit;
    }
    print(&format!("{} findings:\n", report.findings.len()));
    for f in &report.findings {
        print(&format!("  {}: {}\n", f.object, f.reason));
        for point in &f.points {
            print(&format!("    touches {point}\n"));
        }
    }
    match aside {
        Some(0) => print("There was nothing to set aside that is not yet.\n"),
        Some(packs) => print(&format!(
            "Packs set aside: {packs}. The next backups store again what was in them and the source still has.\n"
        )),
        None if report.damaged.is_empty() => {}
        None => print(
            "Later backups may still refer to these packs. With --set-aside they store again what was in them and the source still has.\n",
        ),
    }
    exit
}
