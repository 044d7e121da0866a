//! Progress and result of a run, as streams for the client that ordered it and for clients that watch. A slow watcher misses
//! moments, never the end.

use std::collections::BTreeMap;

use bytes::Bytes;
use milkrun_proto::control::v1 as control;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

use crate::runs::view::{Kind, Outcome, View, VolumeView};

fn progress(name: &str, v: &VolumeView) -> control::VolumeProgress {
    control::VolumeProgress {
        volume: name.to_owned(),
        done_bytes: v.progress.done_bytes,
        total_bytes: v.progress.total_bytes,
        new_bytes: v.progress.new_bytes,
        stored_bytes: v.progress.stored_bytes,
    }
}

/// A run as a message.
pub(super) fn run(v: &View) -> control::Run {
    let (state, reason) = match &v.outcome {
        None => (control::run::State::Running, String::new()),
        Some(Outcome::BackedUp(_) | Outcome::Restored(_)) => (control::run::State::Done, String::new()),
        Some(Outcome::Failed(status)) => (control::run::State::Failed, status.message().to_owned()),
    };
    let kind = match v.kind {
        Kind::Backup => control::run::Kind::Backup,
        Kind::Restore => control::run::Kind::Restore,
    };
    let volumes = v.volumes.iter().map(|(name, volume)| control::VolumeState {
        name: name.clone(),
        node: volume.node.clone(),
        attempt: volume.attempt,
        done: volume.done,
        progress: Some(progress(name, volume)),
    });
    control::Run {
        run: v.run.as_bytes().to_vec().into(),
        kind: kind.into(),
        state: state.into(),
        application: v.application.as_ref().map(|a| a.name.to_string()).unwrap_or_default(),
        cluster: v.application.as_ref().map(|a| a.cluster.to_string()).unwrap_or_default(),
        namespace: v
            .application
            .as_ref()
            .and_then(|a| a.namespace.as_ref())
            .map(ToString::to_string)
            .unwrap_or_default(),
        point: v.point.clone(),
        parent: v.parent.clone(),
        began_ms: v.began.millis(),
        ended_ms: v.ended.map_or(0, |e| e.millis()),
        reason,
        volumes: volumes.collect(),
        ordered_by: v.ordered_by.clone(),
        waiting: v.waiting,
        repository: v.repository.clone(),
    }
}

/// The volumes as they were last sent, to send progress only of those that changed.
struct Moved(BTreeMap<String, VolumeView>);

impl Moved {
    fn since(&mut self, view: &View) -> Vec<control::VolumeProgress> {
        let moved = view.volumes.iter().filter(|(name, v)| v.attempt > 0 && self.0.get(*name) != Some(v));
        let out = moved.map(|(name, v)| progress(name, v)).collect();
        self.0 = view.volumes.clone();
        out
    }
}

/// Sends what `tell` makes of each change, until the run has ended.
async fn follow<T>(
    mut view: watch::Receiver<View>,
    events: mpsc::Sender<Result<T, Status>>,
    mut tell: impl FnMut(&View) -> Vec<T>,
) -> Option<(View, mpsc::Sender<Result<T, Status>>)> {
    loop {
        let now = view.borrow_and_update().clone();
        for event in tell(&now) {
            // The client may have stopped listening; the run goes on.
            events.send(Ok(event)).await.ok()?;
        }
        if now.outcome.is_some() {
            return Some((now, events));
        }
        tokio::select! {
            changed = view.changed() => changed.ok()?,
            () = events.closed() => return None,
        }
    }
}

/// For the client that ordered a backup.
pub(super) async fn backup(view: watch::Receiver<View>, events: mpsc::Sender<Result<control::BackupEvent, Status>>) {
    use control::backup_event::Event;
    let event = |event| control::BackupEvent { event: Some(event) };
    let (mut waited, mut started, mut moved) = (false, false, Moved(BTreeMap::new()));
    let tell = |view: &View| {
        let mut out = Vec::new();
        if view.waiting && !waited {
            waited = true;
            out.push(event(Event::Waiting(control::RunWaiting { run: view.run.as_bytes().to_vec().into() })));
        }
        if !started && !view.point.is_empty() {
            started = true;
            out.push(event(Event::Started(control::RunStarted {
                run: view.run.as_bytes().to_vec().into(),
                point: view.point.clone(),
                parent: view.parent.clone(),
            })));
        }
        out.extend(moved.since(view).into_iter().map(|p| event(Event::Progress(p))));
        out
    };
    let Some((ended, events)) = follow(view, events, tell).await else { return };
    let last = match ended.outcome {
        Some(Outcome::BackedUp(done)) => Ok(event(Event::Done(done))),
        Some(Outcome::Failed(status)) => Err(status),
        Some(Outcome::Restored(_)) | None => Err(Status::internal("a backup that ended as something else")),
    };
    let _ = events.send(last).await;
}

/// For the client that ordered a restore. The manifests come before the result.
pub(super) async fn restore(
    view: watch::Receiver<View>,
    events: mpsc::Sender<Result<control::RestoreEvent, Status>>,
    manifests: oneshot::Receiver<Vec<u8>>,
    piece: usize,
) {
    use control::restore_event::Event;
    let event = |event| control::RestoreEvent { event: Some(event) };
    let (mut started, mut moved) = (false, Moved(BTreeMap::new()));
    let tell = |view: &View| {
        let mut out = Vec::new();
        if !started && !view.point.is_empty() {
            started = true;
            out.push(event(Event::Started(control::RestoreStarted {
                run: view.run.as_bytes().to_vec().into(),
                point: view.point.clone(),
                left_out: view.left_out.clone(),
                moments_differ: view.moments_differ,
                skipped: view.skipped.clone(),
            })));
        }
        out.extend(moved.since(view).into_iter().map(|p| event(Event::Progress(p))));
        out
    };
    let Some((ended, events)) = follow(view, events, tell).await else { return };
    let last = match ended.outcome {
        Some(Outcome::Restored(done)) => {
            let manifests = Bytes::from(manifests.await.unwrap_or_default());
            for at in (0..manifests.len()).step_by(piece) {
                let piece = manifests.slice(at..manifests.len().min(at + piece));
                if events.send(Ok(event(Event::Manifests(piece)))).await.is_err() {
                    return;
                }
            }
            Ok(event(Event::Done(done)))
        }
        Some(Outcome::Failed(status)) => Err(status),
        Some(Outcome::BackedUp(_)) | None => Err(Status::internal("a restore that ended as something else")),
    };
    let _ = events.send(last).await;
}

/// For clients that watch.
pub(super) async fn watch(view: watch::Receiver<View>, events: mpsc::Sender<Result<control::Run, Status>>) {
    // The last message contains the end.
    let _ = follow(view, events, |view| vec![run(view)]).await;
}
