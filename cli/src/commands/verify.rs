//! `milkrun verify`

use std::path::Path;

use milkrun_coordinator::points::report_to_wire;
use milkrun_proto::control::v1 as control;
use milkrun_repository::keys::VerifyingKey;
use milkrun_repository::point::Selector;
use milkrun_repository::point::catalog::chain;
use milkrun_repository::verify::{self, Options, PublicError};
use serde_json::json;

use super::reader;
use crate::args::{self, Global};
use crate::output::{CliError, Exit, print, print_json};
use crate::{place, units};

/// Packs read at once.
const PARALLEL: usize = 4;

pub(crate) async fn run(a: args::Verify, global: &Global) -> Result<Exit, CliError> {
    let read_data = a.data.is_some() || a.public_key.is_some();
    let report = match &a.public_key {
        Some(file) => {
            let options = public_options(&a)?;
            let place = place::connect(a.repository.url()?, global).await?;
            let key = read_key(file)?;
            let verified = verify::verify_public(&*place.store, key, &options).await;
            report_to_wire(&verified.map_err(public_error)?.1)
        }
        None => {
            for text in &a.which {
                let parsed: Result<Selector, _> = text.parse();
                parsed.map_err(|e| CliError::usage(e.to_string()))?;
            }
            let (mut driver, repository) = reader(&a.repository, global).await?;
            let (cluster, namespace) = a.whose.to_wire();
            let request = control::VerifyRequest {
                repository,
                which: a.which.clone(),
                cluster,
                namespace,
                data_percent: a.data.unwrap_or(0).into(),
                set_aside: a.set_aside,
            };
            let mut replies = driver.control.verify(request).await?.into_inner();
            let mut report = replies.message().await?.unwrap_or_default();
            while let Some(more) = replies.message().await? {
                report.findings.extend(more.findings);
            }
            report
        }
    };
    let exit = print_report(&report, read_data, global);
    // The findings are printed even if setting aside fails.
    match report.set_aside_failed.as_str() {
        "" => Ok(exit),
        why => Err(CliError::failed(format!("what is damaged could not be set aside: {why}"))),
    }
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

fn print_report(report: &control::VerifyReply, data: bool, global: &Global) -> Exit {
    let aside = report.set_aside;
    let exit = if report.findings.is_empty() { Exit::Done } else { Exit::Damage };
    if global.json {
        let findings: Vec<_> = report
            .findings
            .iter()
            .map(|f| json!({ "object": f.object, "reason": f.reason, "points": f.points }))
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
        None if report.damaged_packs == 0 => {}
        None => print(
            "Later backups may still refer to these packs. With --set-aside they store again what was in them and the source still has.\n",
        ),
    }
    exit
}
