//! Runs that are opened before it is known what they read or write. They are opened, filled, and finished. Only the role `operator`
//! may do so.

use milkrun_identity::{Action, Peer};
use milkrun_proto::control::v1 as control;
use milkrun_repository::id::{AppId, RunId};
use milkrun_repository::point::ended;
use milkrun_repository::point::journal::Complete;
use milkrun_repository::store::Failure;
use tokio::sync::oneshot;
use tonic::{Status, Streaming};

use super::orders::{application, backup_order, bad, restore_order, target};
use super::{Service, manifests, may, start};
use crate::inventory::{Reach, SourceSpec};
use crate::rpc::{run_events, status};
use crate::runs::view::{Feed, Kind, Outcome, View};
use crate::runs::{Reply, RunEvent};
use crate::{Coordinator, backup, restore, skipped};

/// The most bytes of a request's id.
const REQUEST_ID_MAX: usize = 256;

impl Service {
    /// Opens a run, or finds the one of the same request.
    pub(super) async fn open(&self, peer: &Peer, request: control::OpenRunRequest) -> Result<control::Run, Status> {
        use control::open_run_request::Order;
        may(peer, Action::Orchestrate, None)?;
        let request_id = request.request_id;
        if request_id.is_empty() || request_id.len() > REQUEST_ID_MAX {
            return Err(status::nonsense("a request has an id of 1 to 256 bytes"));
        }
        let order = request.order.ok_or_else(|| status::nonsense("a run is a backup or a restore"))?;
        let repository = match &order {
            Order::Backup(o) => &o.repository,
            Order::Restore(r) => &r.repository,
        };
        let coordinator = self.0.one(repository).map_err(|e| status::no_repository(&e))?;
        let run = coordinator.repository.ring.run_of_request(&request_id);
        if let Some(feed) = self.0.shared().runs.feed(&run) {
            return Ok(run_events::run(&feed.now()));
        }
        match order {
            Order::Backup(order) => self.open_backup(coordinator, peer, run, order).await,
            Order::Restore(order) => self.open_restore(coordinator, peer, run, order).await,
        }
    }

    async fn open_backup(
        &self,
        coordinator: Coordinator,
        peer: &Peer,
        run: RunId,
        order: control::BackupOrder,
    ) -> Result<control::Run, Status> {
        if !order.sources.is_empty() || order.manifest_objects > 0 {
            return Err(Status::invalid_argument("sources and manifests of a run that is opened are added later"));
        }
        let shared = self.0.shared();
        let app = application(&order.application, &order.cluster, &order.namespace, &shared.cluster)?;
        let past = past(&coordinator, Some(&app), &run).await.map_err(|f| status::failure(&f))?;
        let order = backup_order(order, shared, &coordinator.repository, true)?;
        let order = backup::Order { open: true, complete: false, ..order };
        let feed = Feed::new(run, Kind::Backup, Some(app), peer.to_string()).of_repository(&coordinator.name);
        if let Some(known) = self.show_opened(&feed, past) {
            return Ok(known);
        }
        start::backup(coordinator, order, run, &feed, ());
        Ok(run_events::run(&feed.now()))
    }

    async fn open_restore(
        &self,
        coordinator: Coordinator,
        peer: &Peer,
        run: RunId,
        request: control::RestoreRequest,
    ) -> Result<control::Run, Status> {
        if !request.targets.is_empty() || request.manifests {
            return Err(Status::invalid_argument(
                "targets of a run that is opened are added later, and it has no manifests",
            ));
        }
        let shared = self.0.shared();
        let order = restore_order(request, &shared.cluster)?;
        let order = restore::Order { by_operator: true, ..order };
        let past = past(&coordinator, None, &run).await.map_err(|f| status::failure(&f))?;
        let feed = Feed::new(run, Kind::Restore, None, peer.to_string()).of_repository(&coordinator.name);
        if let Some(known) = self.show_opened(&feed, past) {
            return Ok(known);
        }
        let by = peer.clone();
        let (inbox, announced) = coordinator.runs.announce(run);
        start::restore(coordinator, run, &feed, |coordinator, shown| async move {
            let _announced = announced;
            let done = restore::execute_opened(&coordinator, order, &by, run, (inbox, &shown)).await?;
            Ok(done.report)
        });
        Ok(run_events::run(&feed.now()))
    }

    /// Shows a run that is opened. If it ended under an earlier coordinator, or is shown already, returns it as it is.
    fn show_opened(&self, feed: &Feed, past: Option<Past>) -> Option<control::Run> {
        if let Some(past) = past {
            return Some(past.shown(feed));
        }
        let first = self.0.shared().runs.show_once(feed.clone()).err()?;
        Some(run_events::run(&first.now()))
    }

    /// A run that an operator may fill, and its present view.
    fn opened(&self, peer: &Peer, run: &[u8]) -> Result<(RunId, Feed), Status> {
        may(peer, Action::Orchestrate, None)?;
        let id = Self::run_id(run)?;
        // It may be a run of the coordinator before that is not taken over yet. The same request finds it.
        let unknown = || Status::aborted("the coordinator does not know this run now: open it again");
        let feed = self.0.shared().runs.feed(&id).ok_or_else(unknown)?;
        Ok((id, feed))
    }

    /// Sends an event to a run, and waits for the answer. `had`: whether it had what is asked for, if it has ended well: whoever did not
    /// hear the answer asks again, and the run may end at that moment.
    async fn ask(
        &self,
        run: &RunId,
        feed: &Feed,
        had: impl Fn(&View) -> bool,
        event: impl FnOnce(Reply) -> RunEvent,
    ) -> Result<control::Run, Status> {
        let asked = self.ask_once(run, feed, event).await;
        let now = feed.now();
        let ended_well = matches!(now.outcome, Some(Outcome::BackedUp(_) | Outcome::Restored(_)));
        if ended_well && had(&now) { Ok(run_events::run(&now)) } else { asked }
    }

    async fn ask_once(
        &self,
        run: &RunId,
        feed: &Feed,
        event: impl FnOnce(Reply) -> RunEvent,
    ) -> Result<control::Run, Status> {
        let view = feed.now();
        if let Some(outcome) = &view.outcome {
            return match outcome {
                Outcome::Failed(status) => Err(status.clone()),
                _ => Err(Status::failed_precondition("the run has ended")),
            };
        }
        if view.waiting {
            return Err(Status::unavailable("the run waits for its turn: ask again when it has begun"));
        }
        let (reply, answer) = oneshot::channel();
        let told = self.0.shared().runs.tell(run, event(reply));
        match answer.await {
            Ok(Ok(())) if told => Ok(run_events::run(&feed.now())),
            Ok(Err(why)) => Err(Status::failed_precondition(why)),
            // The run ended meanwhile, or it waits: its outcome shows which.
            _ => match feed.now().outcome {
                Some(Outcome::Failed(status)) => Err(status),
                _ => Err(Status::unavailable("the run does not take it now: ask again")),
            },
        }
    }

    pub(super) async fn add_source_to(
        &self,
        peer: &Peer,
        request: control::AddSourceRequest,
    ) -> Result<control::Run, Status> {
        let (id, feed) = self.opened(peer, &request.run)?;
        let s = request.source.unwrap_or_default();
        let reach: Vec<Reach> = request.at.into_iter().map(|p| Reach { node: Some(p.node), path: p.path }).collect();
        if reach.is_empty() || reach.iter().any(|r| r.path.is_empty() || r.node.as_deref() == Some("")) {
            return Err(Status::invalid_argument("say on which nodes, and where, it can be read"));
        }
        if s.stream && (request.skip_free || !s.changed_from.is_empty()) {
            return Err(Status::invalid_argument("a stream has no file system and no list of changes"));
        }
        if request.skip_free && !s.changed_from.is_empty() {
            let why = "a list of changes and skip_free exclude each other: what is free need not be on the list";
            return Err(Status::invalid_argument(why));
        }
        let source = SourceSpec {
            name: s.name.parse().map_err(|e| bad(&e))?,
            stream: s.stream,
            size: (request.size > 0).then_some(request.size),
            reach,
            changed_from: Some(s.changed_from).filter(|p| !p.is_empty()),
            skip_free: request.skip_free,
            moment: (s.moment_ms != 0).then(|| milkrun_repository::clock::Moment::from_millis(s.moment_ms)),
            claim: s.claim,
        };
        let name = source.name.to_string();
        let had = |view: &View| view.volumes.contains_key(&name);
        self.ask(&id, &feed, had, |reply| RunEvent::AddSource(Box::new(source), reply)).await
    }

    pub(super) async fn add_target_to(
        &self,
        peer: &Peer,
        request: control::AddTargetRequest,
    ) -> Result<control::Run, Status> {
        let (id, feed) = self.opened(peer, &request.run)?;
        let target = target(request.target.unwrap_or_default())?;
        let name = target.name.to_string();
        let had = |view: &View| view.volumes.contains_key(&name);
        self.ask(&id, &feed, had, |reply| RunEvent::AddTarget(Box::new(target), reply)).await
    }

    pub(super) async fn finish_run(
        &self,
        peer: &Peer,
        mut incoming: Streaming<control::FinishRunRequest>,
    ) -> Result<control::Run, Status> {
        use control::finish_run_request::Message;
        let first = incoming.message().await?.and_then(|m| m.message);
        let Some(Message::Order(order)) = first else {
            return Err(status::nonsense("which run it is comes first"));
        };
        let (id, feed) = self.opened(peer, &order.run)?;
        let piece = |m: control::FinishRunRequest| match m.message {
            Some(Message::Manifests(piece)) => Some(piece),
            _ => None,
        };
        let announced = order.manifest_objects;
        let manifests = manifests::receive(&mut incoming, announced, piece, "only manifests follow").await?;
        let skipped = order.skipped.iter().map(|s| skipped::from_wire(s).map_err(|e| bad(&e)));
        let complete =
            Complete { skipped: skipped.collect::<Result<_, Status>>()?, manifest_objects: announced, manifests };
        self.ask(&id, &feed, |_| true, |reply| RunEvent::Complete(Box::new(complete), reply)).await
    }
}

/// The end of a run under an earlier coordinator.
enum Past {
    /// It made this restore point.
    Point(String),
    /// It is over, with this outcome.
    Over(ended::Outcome),
}

impl Past {
    fn shown(self, feed: &Feed) -> control::Run {
        let mut run = run_events::run(&feed.now());
        match self {
            Self::Point(point) => {
                run.point = point;
                run.set_state(control::run::State::Done);
            }
            Self::Over(ended::Outcome::Done) => run.set_state(control::run::State::Done),
            Self::Over(ended::Outcome::Failed) => {
                run.reason = "it failed under an earlier coordinator, which said then why".into();
                run.set_state(control::run::State::Failed);
            }
        }
        run
    }
}

async fn past(coordinator: &Coordinator, app: Option<&AppId>, run: &RunId) -> Result<Option<Past>, Failure> {
    let repository = &coordinator.repository;
    if let Some(app) = app {
        let hash = repository.ring.app_hash(app);
        let points = repository.catalog().list(Some(&hash)).await?.points;
        if let Some(found) = points.iter().find(|f| f.root.run == *run && !f.root.tombstone) {
            return Ok(Some(Past::Point(found.root.id().to_string())));
        }
    }
    Ok(ended::outcome(repository, run).await?.map(Past::Over))
}
