//! What people can see of a run. It is kept while the run goes on and for a while after. Any number of clients can watch it.

use std::collections::BTreeMap;

use milkrun_proto::agent::v1 as wire;
use milkrun_proto::control::v1 as control;
use milkrun_repository::clock::Moment;
use milkrun_repository::id::{AppId, RunId};
use tokio::sync::watch;

/// The kind of a run.
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
    /// All volumes were restored.
    Restored(control::RestoreDone),
    /// It failed; no restore point is listed.
    Failed(tonic::Status),
}

/// One volume of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeView {
    /// The node that has it; empty: it waits.
    pub node: String,
    /// The number of its present attempt.
    pub attempt: u32,
    /// Whether it is done.
    pub done: bool,
    /// Its progress.
    pub progress: wire::Progress,
}

/// A run at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// Its id.
    pub run: RunId,
    /// Its kind.
    pub kind: Kind,
    /// How people name the repository; empty where there is one.
    pub repository: String,
    /// It waits for its turn: another backup of the same application is under way.
    pub waiting: bool,
    /// Its application; for a restore known once its point was found.
    pub application: Option<AppId>,
    /// The point that it makes or reads; empty until that is known.
    pub point: String,
    /// The parent.
    pub parent: String,
    /// Volumes of the point that no target names.
    pub left_out: Vec<String>,
    /// For a restore: the point's volumes are from different moments.
    pub moments_differ: bool,
    /// For a restore: volumes that the application has and the point does not have.
    pub skipped: Vec<control::Skipped>,
    /// Who ordered it.
    pub ordered_by: String,
    /// When it began.
    pub began: Moment,
    /// When it ended.
    pub ended: Option<Moment>,
    /// Its volumes.
    pub volumes: BTreeMap<String, VolumeView>,
    /// How it ended.
    pub outcome: Option<Outcome>,
}

/// The sending side: shows a run to all who watch.
#[derive(Clone, Debug)]
pub struct Feed {
    view: watch::Sender<View>,
}

impl Feed {
    /// For a run that begins.
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

    /// Sets the repository.
    #[must_use]
    pub fn of_repository(self, name: &str) -> Self {
        self.update(|v| name.clone_into(&mut v.repository));
        self
    }

    /// Changes the view.
    pub fn update(&self, change: impl FnOnce(&mut View)) {
        self.view.send_modify(change);
    }

    /// Changes the view of one volume.
    pub fn volume(&self, name: &str, change: impl FnOnce(&mut VolumeView)) {
        self.update(|v| change(v.volumes.entry(name.to_owned()).or_default()));
    }

    /// A volume is done: all of its bytes are shown. Agents report progress only now and then, and not at the end.
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

    /// The present view, and each change from here on.
    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// The present view.
    pub fn now(&self) -> View {
        self.view.borrow().clone()
    }
}
