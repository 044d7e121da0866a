//! `milkrun restore`

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use milkrun_coordinator::manifests;
use milkrun_observe::start::{Standard, was_closed};
use milkrun_proto::control::v1 as control;
use serde_json::json;
use tokio_stream::StreamExt;

use super::{Interrupt, identity};
use crate::args::{self, Global, Named};
use crate::driver::Driver;
use crate::embedded;
use crate::output::{CliError, Exit, note, print, print_json, table};
use crate::progress::Progress;
use crate::{place, units};

/// The result of a restore.
pub(crate) struct Restored {
    pub(crate) done: control::RestoreDone,
    left_out: Vec<String>,
    manifests: Vec<u8>,
}

impl Restored {
    /// The manifests, as JSON lines.
    pub(crate) fn manifests(&self) -> &[u8] {
        &self.manifests
    }
}

pub(crate) async fn run(a: args::Restore, global: &Global) -> Result<Exit, CliError> {
    check_targets(&a)?;
    let driver = match &global.coordinator {
        Some(url) => Driver::connect(url, global).await?,
        None => {
            let (repository, place) = place::open(a.repository.url()?, global).await?;
            place::check_address(&repository, false, global)?;
            embedded::start(repository, &place, &[], global).await?
        }
    };
    let mut request = request(&a, driver.remote)?;
    if driver.remote {
        request.repository = global.repository_name.clone().unwrap_or_default();
    }
    let restored = drive(driver, request, global).await?;
    let written = match &a.manifests {
        Some(folder) => write_manifests(folder, &restored.manifests)?,
        None => Written::default(),
    };
    report(&a, &restored, &written, global);
    Ok(Exit::Done)
}

fn request(a: &args::Restore, remote: bool) -> Result<control::RestoreRequest, CliError> {
    let target = |(n, stream): (&Named, bool)| {
        let (node, path) = match n.path.split_once(':') {
            Some((node, path)) if remote && !path.is_empty() => (node.to_owned(), path.to_owned()),
            _ if remote => {
                let what = format!("say on which node {} goes: {}=NODE:PATH", n.name, n.name);
                return Err(CliError::usage(what));
            }
            _ => (String::new(), n.path.clone()),
        };
        Ok(control::Target { name: n.name.to_string(), path, stream, node })
    };
    let volumes = a.volume.iter().map(|n| (n, false));
    let (cluster, namespace) = a.whose.to_wire();
    Ok(control::RestoreRequest {
        selector: a.point.clone(),
        targets: volumes.chain(a.stream.iter().map(|n| (n, true))).map(target).collect::<Result<_, _>>()?,
        manifests: a.manifests.is_some(),
        force: a.force,
        discard_rest: a.discard_rest,
        cluster,
        namespace,
        repository: String::new(),
    })
}

fn check_targets(a: &args::Restore) -> Result<(), CliError> {
    if let Some(v) = a.volume.iter().find(|v| v.path == "-") {
        return Err(CliError::usage(format!("standard output takes bytes in order: --stream {}=-", v.name)));
    }
    let mut names = HashSet::new();
    if let Some(twice) = a.volume.iter().chain(&a.stream).find(|n| !names.insert(&n.name)) {
        return Err(CliError::usage(format!("{} is named twice", twice.name)));
    }
    let mut targets = std::collections::HashMap::new();
    for target in a.volume.iter().chain(&a.stream) {
        if let Some(first) = targets.insert(identity(&target.path), target)
            && target.path != "-"
        {
            let what = format!("{} and {} go to the same place: {}", first.name, target.name, target.path);
            return Err(CliError::usage(what));
        }
    }
    if to_stdout(a) && was_closed(Standard::Out) {
        return Err(CliError::usage("standard output is closed: nothing can be restored to it"));
    }
    if a.stream.iter().filter(|s| s.path == "-").count() > 1 {
        return Err(CliError::usage("only one stream can go to standard output"));
    }
    if let Some(folder) = &a.manifests {
        let used = std::fs::read_dir(folder).is_ok_and(|mut d| d.next().is_some());
        if used && !a.force {
            return Err(CliError::usage(format!(
                "the folder {folder:?} is not empty: choose another, or pass --force"
            )));
        }
        if folder.exists() && !folder.is_dir() {
            return Err(CliError::usage(format!("{folder:?} is no folder")));
        }
    }
    Ok(())
}

fn to_stdout(a: &args::Restore) -> bool {
    a.stream.iter().any(|s| s.path == "-")
}

/// Orders a restore and waits for its end.
pub(crate) async fn drive(
    driver: Driver,
    request: control::RestoreRequest,
    global: &Global,
) -> Result<Restored, CliError> {
    let mut control = driver.control;
    let (started, run) = tokio::sync::watch::channel(Vec::new());
    let interrupt = Interrupt::watch(control.clone(), run, driver.remote);
    let mut events = control.restore(request).await?.into_inner();
    let mut progress = Progress::new(global.quiet);
    let (mut left_out, mut manifests) = (Vec::new(), Vec::new());
    let result = loop {
        match events.next().await {
            Some(Ok(control::RestoreEvent { event: Some(event) })) => match event {
                control::restore_event::Event::Started(s) => {
                    started.send_replace(s.run.to_vec());
                    left_out = s.left_out;
                    if s.moments_differ {
                        note(
                            "milkrun: the point's volumes are of different moments: no snapshot shows all of them at once",
                        );
                    }
                    for s in s.skipped {
                        note(&format!("milkrun: the point has no {}: it was left out ({})", s.name, s.reason));
                    }
                }
                control::restore_event::Event::Progress(p) => progress.update(&p),
                control::restore_event::Event::Manifests(piece) => manifests.extend_from_slice(&piece),
                control::restore_event::Event::Done(done) => break Ok(done),
            },
            Some(Ok(_)) => {}
            Some(Err(status)) => break Err(CliError::from(status)),
            None => break Err(CliError::failed("the coordinator ended without a result")),
        }
    };
    progress.finish();
    drop(interrupt);
    Ok(Restored { done: result?, left_out, manifests })
}

/// Manifests that were written.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// How many.
    pub(crate) files: usize,
    /// Names of other files in the folder. They stay.
    pub(crate) others: Vec<String>,
}

/// Writes one file per object. A file gets its name only when it is complete.
pub(crate) fn write_manifests(folder: &Path, lines: &[u8]) -> Result<Written, CliError> {
    let objects = manifests::decode(lines).map_err(|line| CliError {
        exit: Exit::Damage,
        message: format!("line {line} of the stored manifests is no Kubernetes object"),
        advice: None,
    })?;
    let fail = |what: &Path, e: std::io::Error| CliError::failed(format!("can't write {what:?}: {e}"));
    std::fs::create_dir_all(folder).map_err(|e| fail(folder, e))?;
    let mut names = HashSet::new();
    for object in &objects {
        let name = object.identity.file_name();
        // Earlier releases did not check this when they made a point.
        if !names.insert(name.clone()) {
            return Err(CliError::failed(format!("two objects of this point are called {}", object.identity)));
        }
        let path = folder.join(name);
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|e| fail(folder, e))?;
        writeln!(file, "{:#}", object.value).map_err(|e| fail(&path, e))?;
        file.as_file().sync_all().map_err(|e| fail(&path, e))?;
        file.persist(&path).map_err(|e| fail(&path, e.error))?;
    }
    let entries = std::fs::read_dir(folder).map_err(|e| fail(folder, e))?;
    let there = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let mut others: Vec<String> = there.filter(|name| !names.contains(name)).collect();
    others.sort();
    Ok(Written { files: names.len(), others })
}

fn report(a: &args::Restore, restored: &Restored, manifests: &Written, global: &Global) {
    if let (Some(folder), [first, rest @ ..]) = (&a.manifests, &manifests.others[..]) {
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        note(&format!(
            "milkrun: {folder:?} had other files before, which are none of this point's and stay: {first}{more}"
        ));
    }
    let done = &restored.done;
    // Standard output may be the restored stream itself.
    let say = |text: &str| if to_stdout(a) { note(text.trim_end()) } else { print(text) };
    if global.json && !to_stdout(a) {
        let volumes: Vec<_> = done
            .volumes
            .iter()
            .map(|v| {
                json!({
                    "name": v.name,
                    "size_bytes": v.size_bytes,
                    "written_bytes": v.written_bytes,
                    "hole_bytes": v.hole_bytes,
                    "fetched_bytes": v.fetched_bytes,
                    "requests": v.requests,
                })
            })
            .collect();
        print_json(json!({
            "point": done.point,
            "seconds": Duration::from_millis(done.duration_ms).as_secs_f64(),
            "volumes": volumes,
            "manifests": manifests.files,
            "other_files": manifests.others,
            "left_out": restored.left_out,
        }));
        return;
    }
    say(&format!("{} restored in {}\n", done.point, units::time(Duration::from_millis(done.duration_ms))));
    if !done.volumes.is_empty() {
        let mut rows = vec![["VOLUME", "SIZE", "WRITTEN", "HOLES", "FETCHED"].map(str::to_owned).to_vec()];
        for v in &done.volumes {
            let sizes = [v.size_bytes, v.written_bytes, v.hole_bytes, v.fetched_bytes].map(units::bytes);
            rows.push(std::iter::once(v.name.clone()).chain(sizes).collect());
        }
        say(&table(&rows));
    }
    if let (Some(folder), count @ 1..) = (&a.manifests, manifests.files) {
        say(&format!("{count} manifests in {}\n", folder.display()));
    }
    if !restored.left_out.is_empty() {
        say(&format!("Left out: {}\n", restored.left_out.join(", ")));
    }
}
