//! `milkrun runs`, `milkrun watch`, `milkrun cancel`

use std::time::Duration;

use control::run::{Kind, State};
use milkrun_proto::control::v1 as control;
use milkrun_repository::clock::Moment;
use milkrun_repository::id::RunId;
use serde_json::{Value, json};

use crate::args::Global;
use crate::driver::Driver;
use crate::output::{CliError, Exit, note, print, print_json, table};
use crate::progress::Progress;
use crate::units;

fn id_of(r: &control::Run) -> String {
    r.run.iter().map(|b| format!("{b:02x}")).collect()
}

fn kind(r: &control::Run) -> &'static str {
    match r.kind() {
        Kind::Backup => "backup",
        Kind::Restore => "restore",
        Kind::Unspecified => "unknown",
    }
}

fn state(r: &control::Run) -> &'static str {
    match r.state() {
        State::Running if r.waiting => "waiting",
        State::Running => "running",
        State::Done => "done",
        State::Failed => "failed",
        State::Unspecified => "unknown",
    }
}

fn document(r: &control::Run) -> Value {
    let time = |ms: i64| (ms != 0).then(|| Moment::from_millis(ms).to_string());
    let volumes: Vec<Value> = r
        .volumes
        .iter()
        .map(|v| {
            let p = v.progress.clone().unwrap_or_default();
            json!({
                "name": v.name,
                "node": v.node,
                "attempt": v.attempt,
                "done": v.done,
                "done_bytes": p.done_bytes,
                "total_bytes": p.total_bytes,
                "new_bytes": p.new_bytes,
                "stored_bytes": p.stored_bytes,
            })
        })
        .collect();
    json!({
        "run": id_of(r),
        "kind": kind(r),
        "state": state(r),
        "application": r.application,
        "cluster": r.cluster,
        "namespace": (!r.namespace.is_empty()).then_some(&r.namespace),
        "repository": (!r.repository.is_empty()).then_some(&r.repository),
        "point": r.point,
        "parent": r.parent,
        "began": time(r.began_ms),
        "ended": time(r.ended_ms),
        "ordered_by": r.ordered_by,
        "reason": r.reason,
        "volumes": volumes,
    })
}

pub(crate) async fn list(global: &Global) -> Result<Exit, CliError> {
    let mut driver = Driver::required(global).await?;
    let runs = driver.control.list_runs(control::ListRunsRequest {}).await?.into_inner().runs;
    if global.json {
        print_json(json!({ "runs": runs.iter().map(document).collect::<Vec<_>>() }));
        return Ok(Exit::Done);
    }
    if runs.is_empty() {
        note("There are no runs since the coordinator started.");
        return Ok(Exit::Done);
    }
    let mut rows =
        vec![["RUN", "KIND", "APPLICATION", "STATE", "VOLUMES", "BEGAN", "TOOK"].map(str::to_owned).to_vec()];
    let several = runs.iter().any(|r| !r.repository.is_empty());
    if several {
        rows[0].push("REPOSITORY".to_owned());
    }
    for r in &runs {
        let done = r.volumes.iter().filter(|v| v.done).count();
        let took = match r.ended_ms {
            0 => String::new(),
            ended => units::time(Moment::from_millis(ended).since(Moment::from_millis(r.began_ms))),
        };
        rows.push(vec![
            id_of(r),
            kind(r).into(),
            r.application.clone(),
            state(r).into(),
            format!("{done} of {}", r.volumes.len()),
            Moment::from_millis(r.began_ms).to_string(),
            took,
        ]);
        if several {
            rows.last_mut().into_iter().for_each(|row| row.push(r.repository.clone()));
        }
    }
    print(&table(&rows));
    for r in runs.iter().filter(|r| !r.reason.is_empty()) {
        print(&format!("{}: {}\n", id_of(r), r.reason));
    }
    Ok(Exit::Done)
}

pub(crate) async fn watch(run: RunId, global: &Global) -> Result<Exit, CliError> {
    let mut driver = Driver::required(global).await?;
    let request = control::WatchRunRequest { run: run.as_bytes().to_vec().into() };
    let mut updates = driver.control.watch_run(request).await?.into_inner();
    let mut progress = Progress::new(global.quiet);
    let mut last = None;
    let lost = loop {
        match updates.message().await {
            Ok(Some(run)) => {
                for volume in run.volumes.iter().filter(|v| !v.done) {
                    if let Some(p) = &volume.progress {
                        progress.update(p);
                    }
                }
                last = Some(run);
            }
            Ok(None) => break None,
            Err(status) => break Some(status),
        }
    };
    progress.finish();
    if let Some(status) = lost {
        return Err(status.into());
    }
    let Some(last) = last.filter(|r| r.state() != State::Running) else {
        return Err(CliError {
            exit: Exit::Unknown,
            ..CliError::failed("the coordinator stopped reporting before the run ended; the run may go on")
        });
    };
    if global.json {
        print_json(document(&last));
    }
    if last.state() == State::Failed {
        return Err(CliError::failed(last.reason));
    }
    if !global.json {
        let took = Duration::from_millis(u64::try_from(last.ended_ms - last.began_ms).unwrap_or(0));
        print(&format!("{} of {}: {} in {}\n", kind(&last), last.application, last.point, units::time(took)));
    }
    Ok(Exit::Done)
}

pub(crate) async fn cancel(run: RunId, global: &Global) -> Result<Exit, CliError> {
    let mut driver = Driver::required(global).await?;
    driver.control.cancel(control::CancelRequest { run: run.as_bytes().to_vec().into() }).await?;
    if global.json {
        print_json(json!({ "run": run.hex(), "cancelled": true }));
    } else {
        print("It is being stopped; nothing of it will be listed.\n");
    }
    Ok(Exit::Done)
}
