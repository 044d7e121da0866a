//! `milkrun backup`

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use milkrun_coordinator::manifests;
use milkrun_observe::start::{Standard, was_closed};
use milkrun_proto::control::v1 as control;
use milkrun_repository::clock::Moment;
use milkrun_repository::config::LockMode;
use serde_json::{Value, json};
use tokio_stream::StreamExt;

use super::{Interrupt, check_lock_for, identity};
use crate::args::{self, Global, Named};
use crate::driver::Driver;
use crate::embedded::{self, host};
use crate::output::{CliError, Exit, note, print, print_json, table};
use crate::progress::Progress;
use crate::{place, units};

/// Bytes of manifests in one message.
const MANIFEST_PIECE: usize = 1 << 20;

pub(crate) async fn run(a: args::Backup, global: &Global) -> Result<Exit, CliError> {
    check_sources(&a, global)?;
    if let Some(lock_for) = a.lock_for {
        check_lock_for(lock_for, a.yes)?;
    }
    // Manifests that can't be parsed are refused before a byte is moved.
    let mut objects = manifests::load_paths(&a.manifests).map_err(|e| CliError::from_error(&e))?;
    let lines = manifests::encode(&mut objects);
    let order = order(&a, objects.len());
    if let Some(url) = &global.coordinator {
        let driver = Driver::connect(url, global).await?;
        let order = control::BackupOrder { repository: global.repository_name.clone().unwrap_or_default(), ..order };
        let done = drive(driver, order, lines, global).await?;
        report(&a, &done, global);
        return Ok(Exit::Done);
    }
    let (repository, place) = place::open(a.repository.url()?, global).await?;
    place::check_address(&repository, true, global)?;
    if a.lock_for.is_some() && repository.config.lock.mode == LockMode::None {
        return Err(CliError::usage("the repository was made without locks: --lock-for can't be kept"));
    }
    let driver = embedded::start(repository, &place, &a.stream_command, global).await?;
    let done = drive(driver, order, lines, global).await?;
    report(&a, &done, global);
    Ok(Exit::Done)
}

pub(crate) fn order(a: &args::Backup, objects: usize) -> control::BackupOrder {
    let list = |n: &Named| a.changed_from.iter().find(|c| c.name == n.name).map(|c| c.path.clone()).unwrap_or_default();
    let source = |n: &Named, stream| control::Source {
        name: n.name.to_string(),
        path: n.path.clone(),
        stream,
        changed_from: list(n),
        moment_ms: a.taken.iter().find(|t| t.name == n.name).map_or(0, |t| t.moment.millis()),
        claim: String::new(),
    };
    let (cluster, namespace) = a.whose.to_wire();
    let volumes = a.volume.iter().map(|n| source(n, false));
    let commands: Vec<Named> =
        a.stream_command.iter().map(|n| Named { path: embedded::path_of(n), ..n.clone() }).collect();
    control::BackupOrder {
        application: a.application.to_string(),
        sources: volumes.chain(a.stream.iter().chain(&commands).map(|n| source(n, true))).collect(),
        manifest_objects: u32::try_from(objects).unwrap_or(u32::MAX),
        lock_seconds: a.lock_for.map_or(0, |d| d.as_secs()),
        parent: a.parent.clone(),
        level: a.level.from,
        adapt_level: a.level.adapts,
        host: host(),
        allow_mounted: a.allow_mounted,
        allow_changing: a.allow_changing,
        allow_empty: a.allow_empty,
        whole_chunks: a.whole_chunks,
        full_every: a.full_every,
        skip_free: a.skip_free,
        cluster,
        namespace,
        namespace_uid: String::new(),
        class: a.class.to_string(),
        repository: String::new(),
        skipped: a.skip.iter().map(|n| control::Skipped { name: n.name.to_string(), reason: n.path.clone() }).collect(),
    }
}

/// Refuses names and paths that must be a mistake: one name twice, one device under two names, standard input twice.
fn check_sources(a: &args::Backup, global: &Global) -> Result<(), CliError> {
    if global.coordinator.is_some() {
        return match a
            .volume
            .iter()
            .chain(&a.stream)
            .chain(&a.stream_command)
            .chain(&a.changed_from)
            .map(|n| &n.name)
            .chain(a.taken.iter().map(|t| &t.name))
            .next()
        {
            None => Ok(()),
            Some(name) => Err(CliError::usage(format!(
                "which volumes {} has, and where, is said by the coordinator's inventory: leave out {name}",
                a.application
            ))),
        };
    }
    let mut names = HashMap::new();
    let mut sources: HashMap<String, &Named> = HashMap::new();
    for named in a.volume.iter().chain(&a.stream) {
        if names.insert(&named.name, &named.path).is_some() {
            return Err(CliError::usage(format!("{} is named twice", named.name)));
        }
        if let Some(first) = sources.insert(identity(&named.path), named) {
            let what = format!("{} and {} are the same: {}", first.name, named.name, named.path);
            return Err(CliError::usage(what));
        }
    }
    for named in &a.stream_command {
        if names.insert(&named.name, &named.path).is_some() {
            return Err(CliError::usage(format!("{} is named twice", named.name)));
        }
    }
    if let Some(t) = a.taken.iter().find(|t| !names.contains_key(&t.name)) {
        return Err(CliError::usage(format!(
            "--taken says when {} was, and nothing that is backed up is called so",
            t.name
        )));
    }
    let mut lists = HashSet::new();
    for list in &a.changed_from {
        if !lists.insert(&list.name) {
            return Err(CliError::usage(format!("{} has two lists of changes", list.name)));
        }
        if !a.volume.iter().any(|v| v.name == list.name) {
            return Err(CliError::usage(format!(
                "a list of changes is for a --volume, and none is called {}",
                list.name
            )));
        }
    }
    if a.stream.iter().any(|s| s.path == "-") && was_closed(Standard::In) {
        return Err(CliError::usage("standard input is closed: there is nothing to read from it"));
    }
    if let Some(v) = a.volume.iter().find(|v| v.path == "-") {
        return Err(CliError::usage(format!("a volume can't be read from standard input: --stream {}=-", v.name)));
    }
    if a.volume.is_empty() && a.stream.is_empty() && a.stream_command.is_empty() && a.manifests.is_empty() {
        let what = "nothing to back up: name at least one --volume, --stream, --stream-command or --manifests";
        return Err(CliError::usage(what));
    }
    Ok(())
}

/// Orders a backup and waits for its end.
pub(crate) async fn drive(
    driver: Driver,
    order: control::BackupOrder,
    manifests: Vec<u8>,
    global: &Global,
) -> Result<control::BackupDone, CliError> {
    let mut control = driver.control;
    let (started, run) = tokio::sync::watch::channel(Vec::new());
    let interrupt = Interrupt::watch(control.clone(), run, driver.remote);
    let first = control::BackupRequest { message: Some(control::backup_request::Message::Order(order)) };
    let pieces: Vec<control::BackupRequest> = manifests
        .chunks(MANIFEST_PIECE)
        .map(|p| control::BackupRequest {
            message: Some(control::backup_request::Message::Manifests(p.to_vec().into())),
        })
        .collect();
    let requests = tokio_stream::iter(std::iter::once(first).chain(pieces));
    let mut events = control.backup(requests).await?.into_inner();
    let mut progress = Progress::new(global.quiet);
    let result = loop {
        match events.next().await {
            Some(Ok(control::BackupEvent { event: Some(event) })) => match event {
                control::backup_event::Event::Waiting(w) => {
                    started.send_replace(w.run.to_vec());
                    if !global.quiet {
                        note("Another backup of this application is under way; this one begins when that has ended.");
                    }
                }
                control::backup_event::Event::Started(s) => {
                    started.send_replace(s.run.to_vec());
                }
                control::backup_event::Event::Progress(p) => progress.update(&p),
                control::backup_event::Event::Done(done) => break Ok(done),
            },
            Some(Ok(_)) => {}
            Some(Err(status)) => break Err(CliError::from(status)),
            None => break Err(CliError::failed("the coordinator ended without a result")),
        }
    };
    progress.finish();
    drop(interrupt);
    result
}

pub(crate) fn volumes_json(done: &control::BackupDone) -> Vec<Value> {
    let volume = |v: &control::VolumeResult| {
        json!({
            "name": v.name,
            "size_bytes": v.size_bytes,
            "read_bytes": v.read_bytes,
            "hole_bytes": v.hole_bytes,
            "new_bytes": v.new_bytes,
            "stored_bytes": v.stored_bytes,
            "lists_in_a_row": v.by_lists,
            "sampled_bytes": v.sampled_bytes,
            "restore_requests": v.restore_ranges,
            "restore_opened_bytes": v.restore_opened_bytes,
            "notes": v.notes,
            "time": Moment::from_millis(v.moment_ms).to_string(),
            "file_system": v.file_system,
            "file_system_label": v.file_system_label,
        })
    };
    done.volumes.iter().map(volume).collect()
}

fn report(a: &args::Backup, done: &control::BackupDone, global: &Global) {
    #[expect(clippy::cast_precision_loss, reason = "seconds for people and scripts")]
    let seconds = done.duration_ms as f64 / 1000.0;
    let lock_until = (done.lock_until_ms != 0).then(|| Moment::from_millis(done.lock_until_ms).to_string());
    if global.json {
        print_json(json!({
            "point": done.point,
            "application": a.application.as_str(),
            "class": a.class.as_str(),
            "moments_differ": done.moments_differ,
            "skipped": done.skipped.iter().map(|s| json!({ "name": s.name, "reason": s.reason })).collect::<Vec<_>>(),
            "time": Moment::from_millis(done.moment_ms).to_string(),
            "seconds": seconds,
            "stored_bytes": done.stored_bytes,
            "locked_until": lock_until,
            "manifests": done.manifest_objects,
            "packs_reused": done.packs_reused,
            "locks_extended": done.locks_extended,
            "volumes": volumes_json(done),
        }));
        return;
    }
    for v in &done.volumes {
        for n in &v.notes {
            note(&format!("milkrun: {}: {n}", v.name));
        }
    }
    print(&format!("{}  {} in {}\n", done.point, a.application, units::time(Duration::from_millis(done.duration_ms))));
    print(&volume_table(done));
    if done.moments_differ {
        note("milkrun: the volumes are of different moments: no snapshot shows all of them at once");
    }
    for s in &done.skipped {
        note(&format!("milkrun: {} was left out: {}", s.name, s.reason));
    }
    if done.manifest_objects > 0 {
        print(&format!("{} manifests\n", done.manifest_objects));
    }
    print(&format!("The repository grew by {}.\n", units::bytes(done.stored_bytes)));
    if let Some(until) = lock_until {
        print(&format!("Locked until {until}.\n"));
    }
}

pub(crate) fn volume_table(done: &control::BackupDone) -> String {
    if done.volumes.is_empty() {
        return String::new();
    }
    let mut rows = vec![["VOLUME", "SIZE", "READ", "HOLES", "NEW", "STORED"].map(str::to_owned).to_vec()];
    for v in &done.volumes {
        let sizes = [v.size_bytes, v.read_bytes, v.hole_bytes, v.new_bytes, v.stored_bytes];
        rows.push(std::iter::once(v.name.clone()).chain(sizes.map(units::bytes)).collect());
    }
    table(&rows)
}
