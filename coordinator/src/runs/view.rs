//! What can be seen of a run: kept while it goes on and for a while after, watched by any number of people.

use std::collections::BTreeMap;

use milkrun_proto::agent::v1 as wire;
use milkrun_proto::control::v1 as control;
use milkrun_repository::clock::Moment;
use milkrun_repository::id::{AppId, RunId};
use tokio::sync::watch;

/// What a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A backup.
    Backup,
    /// A restore.
    Restore,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A restore point was committed.
    BackedUp(control::BackupDone),
    /// Everything is where it should be.
    Restored(control::RestoreDone),
    /// It failed; nothing of it is listed.
    Failed(tonic::Status),
}

/// One volume of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeView {
    /// Where it is moved; empty: it waits.
    pub node: String,
    /// The how-manieth attempt that is.
    pub attempt: u32,
    /// Whether it is done.
    pub done: bool,
    /// How far it is.
    pub progress: wire::Progress,
}

/// A run at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// Its id.
    pub run: RunId,
    /// What it is.
    pub kind: Kind,
    /// How people name the repository; empty where there is one.
    pub repository: String,
    /// Another backup of the same application is under way: it waits for its turn.
    pub waiting: bool,
    /// Whose application; of a restore known once its point was found.
    pub application: Option<AppId>,
    /// The point that it makes or reads; empty until that is known.
    pub point: String,
    /// The point that predicts.
    pub parent: String,
    /// Volumes of the point that no target names.
    pub left_out: Vec<String>,
    /// Of a restore: the point's volumes are of different moments.
    pub moments_differ: bool,
    /// Of a restore: volumes that the application has and the point has not.
    pub skipped: Vec<control::Skipped>,
    /// Who wanted it.
    pub ordered_by: String,
    /// When.
    pub began: Moment,
    /// When it ended.
    pub ended: Option<Moment>,
    /// Its volumes.
    pub volumes: BTreeMap<String, VolumeView>,
    /// How it ended.
    pub outcome: Option<Outcome>,
}

/// Shows a run to whoever watches.
#[derive(Clone, Debug)]
pub struct Feed {
    view: watch::Sender<View>,
}

impl Feed {
    /// Of a run that begins.
    pub fn new(run: RunId, kind: Kind, application: Option<AppId>, ordered_by: String) -> Self {
        let view = View {
            run,
            kind,
            repository: String::new(),
            waiting: false,
            application,
            point: String::new(),
            parent: String::new(),
            left_out: Vec::new(),
            moments_differ: false,
            skipped: Vec::new(),
            ordered_by,
            began: Moment::now(),
            ended: None,
            volumes: BTreeMap::new(),
            outcome: None,
        };
        Self { view: watch::Sender::new(view) }
    }

    /// Of this repository.
    #[must_use]
    pub fn of_repository(self, name: &str) -> Self {
        self.update(|v| name.clone_into(&mut v.repository));
        self
    }

    /// Changes what is seen.
    pub fn update(&self, change: impl FnOnce(&mut View)) {
        self.view.send_modify(change);
    }

    /// Changes what is seen of one volume.
    pub fn volume(&self, name: &str, change: impl FnOnce(&mut VolumeView)) {
        self.update(|v| change(v.volumes.entry(name.to_owned()).or_default()));
    }

    /// A volume is done. All its bytes are shown: what its agent says of its progress now and then, it does not say at the end.
    pub fn whole(&self, name: &str, len: u64) {
        self.volume(name, |v| {
            v.done = true;
            (v.progress.done_bytes, v.progress.total_bytes) = (len, len);
        });
    }

    /// It ended.
    pub fn end(&self, outcome: Outcome) {
        let (kind, ended) = match &outcome {
            Outcome::BackedUp(_) => ("backup", "done"),
            Outcome::Restored(_) => ("restore", "done"),
            Outcome::Failed(_) if self.now().kind == Kind::Backup => ("backup", "failed"),
            Outcome::Failed(_) => ("restore", "failed"),
        };
        metrics::counter!("milkrun_runs_total", "kind" => kind, "outcome" => ended).increment(1);
        self.update(|v| {
            v.ended = Some(Moment::now());
            v.outcome = Some(outcome);
        });
    }

    /// Now, and each change from here on.
    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// As it is now.
    pub fn now(&self) -> View {
        self.view.borrow().clone()
    }
}
