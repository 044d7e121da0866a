//! Assigns a run's volumes to nodes that reach them, and assigns them again when an agent is lost, until all are done or one has
//! failed.

use std::sync::Arc;
use std::time::Duration;

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::clock::Moment;
use milkrun_repository::pack::PackKind;
use milkrun_repository::point::journal::Record;
use milkrun_repository::repository::OpenPoint;
use tokio::sync::mpsc;
use wire::from_agent::Message as FromAgent;
use wire::to_agent::Message as ToAgent;

use super::order::Order;
use super::{BackupError, Run, opened};
use crate::Coordinator;
use crate::inventory::{Reach, SourceSpec};
use crate::runs::view::Feed;
use crate::runs::{self, RunEvent};
use crate::volume_assignments::{Verdict, VolumeAssignments, by_node};

/// How long recording the end of a run may delay that end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// How often a run checks whether a volume waits in vain.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Takes all volumes to their end, or until one fails.
pub(super) async fn assign_volumes(
    (coordinator, order): (&Coordinator, &mut Order),
    run: &Arc<Run>,
    parent: Option<&OpenPoint>,
    (due, done): (Option<Moment>, Vec<String>),
    inbox: &mut mpsc::UnboundedReceiver<RunEvent>,
    feed: &Feed,
) -> Result<(), BackupError> {
    for name in &done {
        show_whole(run, name, feed).await;
    }
    let open = order.sources.iter().filter(|s| !done.iter().any(|d| d == s.name.as_str()));
    let reach: Vec<(String, Vec<Reach>)> = open.map(|s| (s.name.to_string(), s.reach.clone())).collect();
    let mut assignments =
        VolumeAssignments::begin(coordinator, run.root.run, order.application.to_string(), due, feed, reach);
    let (mut look, mut since) = (tokio::time::interval(LOOK_EVERY), tokio::time::Instant::now());
    let result = loop {
        if order.complete && assignments.all_done() {
            break Ok(());
        }
        let event = tokio::select! {
            event = inbox.recv() => match event {
                Some(event) => event,
                None => break Err(BackupError::AgentGone),
            },
            _ = look.tick() => match assignments.forsaken() {
                // While volumes are read, others wait for their slots.
                _ if !order.complete && assignments.all_done() && since.elapsed() > runs::OPEN_MAX => {
                    break Err(BackupError::NeverFinished);
                }
                None => {
                    // The inventory and the connected agents may have changed.
                    assignments.renew();
                    continue;
                }
                Some((volume, nodes)) => break Err(BackupError::NoNode { volume, nodes }),
            },
        };
        if matches!(event, RunEvent::AddSource(..) | RunEvent::Finished(_)) {
            since = tokio::time::Instant::now();
        }
        match apply(coordinator, order, run, parent, &mut assignments, feed, event).await {
            Ok(()) => {}
            Err(e) => break Err(e),
        }
    };
    if result.is_err() {
        if let Some(journal) = &run.journal {
            // Before all else, so that nobody goes on with the run if this process ends now.
            journal.note(Record::Ended);
            if !matches!(tokio::time::timeout(END_LIMIT, journal.write()).await, Ok(Ok(()))) {
                tracing::warn!(run = %run.root.run, "can't write down that this run ended: another coordinator may go on with it");
            }
        }
        let under_way = assignments.under_way();
        for (volume, attempt, node) in &under_way {
            if let Some(link) = coordinator.agents.link(node) {
                link.send(ToAgent::Cancel(assignment_of(coordinator, run, volume, *attempt))).await;
            }
        }
        runs::await_stopped(inbox, by_node(&under_way)).await;
    }
    result
}

/// Applies one event.
async fn apply(
    coordinator: &Coordinator,
    order: &mut Order,
    run: &Arc<Run>,
    parent: Option<&OpenPoint>,
    assignments: &mut VolumeAssignments<'_>,
    feed: &Feed,
    event: RunEvent,
) -> Result<(), BackupError> {
    match event {
        RunEvent::Placed { volume, node } => place(coordinator, order, run, assignments, &volume, &node).await,
        RunEvent::Finished(volume) => {
            assignments.done(&volume);
            run.release(&volume);
            show_whole(run, &volume, feed).await;
            Ok(())
        }
        RunEvent::Agent(node, FromAgent::Progress(p), _room)
            if assignments.is_present(&node, p.assignment.as_ref()) =>
        {
            let volume = p.assignment.as_ref().map(|a| a.volume.clone()).unwrap_or_default();
            feed.volume(&volume, |v| v.progress = p);
            Ok(())
        }
        RunEvent::Agent(node, FromAgent::Failed(f), _room) => {
            let (kind, a) = (f.kind(), f.assignment.unwrap_or_default());
            match assignments.failed(&node, a.attempt, &a.volume, kind) {
                Verdict::Stale => Ok(()),
                Verdict::Again => {
                    tracing::warn!(run = %run.root.run, volume = a.volume, node, reason = f.reason, "a volume goes on elsewhere");
                    give_back(run, assignments, &a.volume, order)
                }
                Verdict::Final => {
                    run.release(&a.volume);
                    assignments.done(&a.volume);
                    Err(BackupError::Volume { volume: a.volume, reason: f.reason, kind })
                }
            }
        }
        RunEvent::AgentGone(_) if coordinator.inventory.trusts_orders() => Err(BackupError::AgentGone),
        RunEvent::AgentGone(node) => {
            for (volume, _) in assignments.at(&node) {
                give_back(run, assignments, &volume, order)?;
            }
            Ok(())
        }
        RunEvent::Drained(node) => {
            for (volume, attempt) in assignments.at(&node) {
                if let Some(link) = coordinator.agents.link(&node) {
                    link.send(ToAgent::Cancel(assignment_of(coordinator, run, &volume, attempt))).await;
                }
                give_back(run, assignments, &volume, order)?;
            }
            Ok(())
        }
        RunEvent::AddSource(source, reply) => {
            let added = opened::add_source(order, run, parent, assignments, *source).await?;
            // The one who asked may be gone.
            drop(reply.send(added));
            Ok(())
        }
        RunEvent::Complete(complete, reply) => {
            let completed = opened::complete(order, run, *complete).await?;
            drop(reply.send(completed));
            Ok(())
        }
        RunEvent::AddTarget(_, reply) => {
            drop(reply.send(Err("the run is a backup: it has no targets".into())));
            Ok(())
        }
        RunEvent::Agent(..) => Ok(()),
        RunEvent::Cancel => Err(BackupError::Cancelled),
    }
}

/// Gives a volume to the agent of the node that was chosen for it.
async fn place(
    coordinator: &Coordinator,
    order: &Order,
    run: &Arc<Run>,
    assignments: &mut VolumeAssignments<'_>,
    volume: &str,
    node: &str,
) -> Result<(), BackupError> {
    let Some(source) = order.source(volume) else { return Ok(()) };
    let Some(given) = assignments.placed(volume, node) else { return Ok(()) };
    let resume_at = run.assign(volume, given.attempt, node).await;
    if given.attempt > 1 || resume_at > 0 {
        tracing::warn!(run = %run.root.run, volume, node, attempt = given.attempt, resume_at, "a volume goes on");
    }
    let skip_free = (order.skip_free || source.skip_free) && !source.stream;
    let by_list = if skip_free {
        run.begin_leaving_out(volume).await?;
        false
    } else {
        run.begin_by_list(volume, source, order.full_every, given.attempt, resume_at).await?
    };
    let Some(build) = run.build_of(volume) else { return Ok(()) };
    let has_parent = build.lock().await.has_parent();
    let a = assignment_of(coordinator, run, volume, given.attempt);
    let message = wire::BackupVolume {
        has_parent,
        skip_free,
        changed_from: source.changed_from.clone().filter(|_| by_list).unwrap_or_default(),
        ..backup_volume(order, run, source, a, given.path, resume_at)
    };
    if !given.link.send(ToAgent::Backup(message)).await {
        tracing::debug!(node, "an agent went away before it had its assignment");
    }
    Ok(())
}

/// Shows a volume whose map is complete with all of its bytes.
async fn show_whole(run: &Run, volume: &str, feed: &Feed) {
    let Some(build) = run.build_of(volume) else { return };
    if let Some(len) = build.lock().await.finished.as_ref().map(|f| f.entry.map.len) {
        feed.whole(volume, len);
    }
}

/// A volume lost its node and waits for another one. A stream that has begun can't be read again.
fn give_back(
    run: &Run,
    assignments: &mut VolumeAssignments<'_>,
    volume: &str,
    order: &Order,
) -> Result<(), BackupError> {
    run.release(volume);
    if order.source(volume).is_some_and(|s| s.stream) {
        assignments.done(volume);
        let reason = "its agent is gone, and a stream can't be read twice".to_owned();
        return Err(BackupError::Volume { volume: volume.to_owned(), reason, kind: wire::failed::Kind::Source });
    }
    assignments.again(volume);
    Ok(())
}

fn assignment_of(coordinator: &Coordinator, run: &Run, volume: &str, attempt: u32) -> wire::Assignment {
    let epoch = coordinator.epoch;
    wire::Assignment { run: run.root.run.as_bytes().to_vec().into(), volume: volume.to_owned(), attempt, epoch }
}

/// The file system that the facts of a claim name.
fn file_system_of(claim: &str) -> String {
    let facts: serde_json::Value = serde_json::from_str(claim).unwrap_or_default();
    facts["fsType"].as_str().unwrap_or_default().to_owned()
}

fn backup_volume(
    order: &Order,
    run: &Run,
    source: &SourceSpec,
    assignment: wire::Assignment,
    path: String,
    resume_at: u64,
) -> wire::BackupVolume {
    let config = &run.repository.config;
    let kind = if source.stream { wire::VolumeKind::Stream } else { wire::VolumeKind::Image };
    wire::BackupVolume {
        assignment: Some(assignment),
        kind: kind.into(),
        path,
        repository: config.id.as_bytes().to_vec().into(),
        domain_key: run.domain.chunks().as_bytes().to_vec().into(),
        data_key: run.domain.recipient(PackKind::Data).as_bytes().to_vec().into(),
        cutters: Some(wire::Cutters {
            min_pages: config.pages.min_pages,
            avg_pages: config.pages.avg_pages,
            max_pages: config.pages.max_pages,
            hole_pages: config.pages.hole_pages,
            stream_min: config.streams.min,
            stream_avg: config.streams.avg,
            stream_max: config.streams.max,
        }),
        level: order.level,
        adapt_level: order.adapt_level,
        may_keep: true,
        region_bytes: milkrun_repository::config::REGION_BYTES,
        parent: run.parent.map(|p| p.to_string()).unwrap_or_default(),
        whole_chunks: order.whole_chunks,
        allow_mounted: order.allow_mounted,
        allow_changing: order.allow_changing,
        resume_at,
        expected_file_system: file_system_of(&source.claim),
        ..Default::default()
    }
}
