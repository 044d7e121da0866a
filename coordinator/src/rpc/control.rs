//! The service for clients that order. It takes orders, and sends progress and results. A run goes on whether a client watches it
//! or not.

mod freeze;
mod manifests;
mod opened;
mod orders;
mod points;
mod start;

use milkrun_identity::{Action, Peer};
use milkrun_proto::control::v1 as control;
use milkrun_proto::control::v1::control_server::Control;
use milkrun_repository::id::RunId;
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming};

use super::answers::{Answers, events};
use super::transport::connection::peer_of;
use super::transport::gate::Kept;
use super::{run_events, status};
use crate::repositories::{Repositories, Standing};
use crate::restore;
use crate::runs::RunEvent;
use crate::runs::view::{Feed, Kind, View};
use orders::{application, backup_order, bad, restore_order};

/// Bytes of manifests in one message.
const MANIFEST_PIECE: usize = 1 << 20;

/// The service.
pub struct Service(pub Repositories);

fn may(peer: &Peer, action: Action, application: Option<&str>) -> Result<(), Status> {
    if peer.may(action, application) {
        return Ok(());
    }
    let of = application.map(|a| format!(" of {a}")).unwrap_or_default();
    let why = format!("{peer} has no role for {action}{of}");
    tracing::warn!(%peer, why, "a call is refused");
    Err(Status::permission_denied(why))
}

impl Service {
    fn run_id(bytes: &[u8]) -> Result<RunId, Status> {
        RunId::try_from(bytes).map_err(|e| bad(&e))
    }

    /// Checks that a caller may do this to a run.
    fn may_for(&self, peer: &Peer, action: Action, view: &View) -> Result<(), Status> {
        may(peer, action, view.application.as_ref().and_then(|a| self.0.shared().role_name(a)))
    }

    /// A run that the caller may see.
    fn feed(&self, peer: &Peer, run: &[u8]) -> Result<Feed, Status> {
        let id = Self::run_id(run)?;
        let feed = self.0.shared().runs.feed(&id).ok_or_else(|| Status::not_found("there is no such run"))?;
        self.may_for(peer, Action::View, &feed.now())?;
        Ok(feed)
    }
}

#[tonic::async_trait]
impl Control for Service {
    type BackupStream = Answers<control::BackupEvent>;
    type RestoreStream = Answers<control::RestoreEvent>;
    type WatchRunStream = Answers<control::Run>;
    type ListPointsStream = Answers<control::ListPointsReply>;
    type ShowPointStream = Answers<control::ShowPointReply>;
    type VerifyStream = Answers<control::VerifyReply>;

    async fn backup(
        &self,
        request: Request<Streaming<control::BackupRequest>>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        use control::backup_request::Message;
        let peer = peer_of(&request)?;
        let kept = request.extensions().get::<Kept>().cloned();
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.and_then(|m| m.message);
        let Some(Message::Order(order)) = first else {
            return Err(status::nonsense("the order comes first"));
        };
        let shared = self.0.shared();
        let application = application(&order.application, &order.cluster, &order.namespace, &shared.cluster)?;
        may(&peer, Action::Backup, self.0.shared().role_name(&application))?;
        let coordinator = self.0.one(&order.repository).map_err(|e| status::no_repository(&e))?;
        let trusted = shared.inventory.trusts_orders();
        let mut order = backup_order(order, shared, &coordinator.repository, trusted)?;
        let piece = |m: control::BackupRequest| match m.message {
            Some(Message::Manifests(piece)) => Some(piece),
            _ => None,
        };
        let otherwise = "only manifests follow the order";
        order.manifests = manifests::receive(&mut incoming, order.manifest_objects, piece, otherwise).await?;
        let id = RunId::random();
        let feed = Feed::new(id, Kind::Backup, Some(order.application.clone()), peer.to_string())
            .of_repository(&coordinator.name);
        self.0.shared().runs.show(feed.clone());
        // The run holds the manifests until its end.
        start::backup(coordinator, order, id, &feed, kept);
        Ok(Response::new(events(|sender| run_events::backup(feed.watch(), sender))))
    }

    async fn restore(
        &self,
        request: Request<control::RestoreRequest>,
    ) -> Result<Response<Self::RestoreStream>, Status> {
        let peer = peer_of(&request)?;
        // The application of the point is known once the point was found; its role is checked then.
        if !peer.may_some(Action::Restore) {
            may(&peer, Action::Restore, None)?;
        }
        let request = request.into_inner();
        let coordinator = self.0.one(&request.repository).map_err(|e| status::no_repository(&e))?;
        let order = restore_order(request, &self.0.shared().cluster)?;
        let id = RunId::random();
        let feed = Feed::new(id, Kind::Restore, None, peer.to_string()).of_repository(&coordinator.name);
        self.0.shared().runs.show(feed.clone());
        let (manifests, wanted) = oneshot::channel();
        start::restore(coordinator, id, &feed, |coordinator, shown| async move {
            let done = restore::execute(&coordinator, order, &peer, id, &shown).await?;
            // The client may be gone.
            let _ = manifests.send(done.manifests);
            Ok(done.report)
        });
        Ok(Response::new(events(|sender| run_events::restore(feed.watch(), sender, wanted, MANIFEST_PIECE))))
    }

    async fn open_run(&self, request: Request<control::OpenRunRequest>) -> Result<Response<control::Run>, Status> {
        let peer = peer_of(&request)?;
        self.open(&peer, request.into_inner()).await.map(Response::new)
    }

    async fn add_source(&self, request: Request<control::AddSourceRequest>) -> Result<Response<control::Run>, Status> {
        let peer = peer_of(&request)?;
        self.add_source_to(&peer, request.into_inner()).await.map(Response::new)
    }

    async fn add_target(&self, request: Request<control::AddTargetRequest>) -> Result<Response<control::Run>, Status> {
        let peer = peer_of(&request)?;
        self.add_target_to(&peer, request.into_inner()).await.map(Response::new)
    }

    async fn freeze(&self, request: Request<control::FreezeRequest>) -> Result<Response<control::FreezeReply>, Status> {
        let peer = peer_of(&request)?;
        self.freeze_mounts(&peer, request.into_inner()).await?;
        Ok(Response::new(control::FreezeReply {}))
    }

    async fn thaw(&self, request: Request<control::ThawRequest>) -> Result<Response<control::ThawReply>, Status> {
        let peer = peer_of(&request)?;
        self.thaw_mounts(&peer, request.into_inner()).await.map(Response::new)
    }

    async fn finish(
        &self,
        request: Request<Streaming<control::FinishRunRequest>>,
    ) -> Result<Response<control::Run>, Status> {
        let peer = peer_of(&request)?;
        self.finish_run(&peer, request.into_inner()).await.map(Response::new)
    }

    async fn cancel(&self, request: Request<control::CancelRequest>) -> Result<Response<control::CancelReply>, Status> {
        let peer = peer_of(&request)?;
        let run = request.into_inner().run;
        let view = self.feed(&peer, &run)?.now();
        let action = match view.kind {
            Kind::Backup => Action::Backup,
            Kind::Restore => Action::Restore,
        };
        self.may_for(&peer, action, &view)?;
        if self.0.shared().runs.tell(&view.run, RunEvent::Cancel) {
            Ok(Response::new(control::CancelReply {}))
        } else {
            Err(Status::not_found("the run is not under way"))
        }
    }

    async fn list_runs(
        &self,
        request: Request<control::ListRunsRequest>,
    ) -> Result<Response<control::ListRunsReply>, Status> {
        let peer = peer_of(&request)?;
        if !peer.may_some(Action::View) {
            may(&peer, Action::View, None)?;
        }
        let views = self.0.shared().runs.feeds().into_iter().map(|f| f.now());
        let named = |v: &View| v.application.clone();
        let seen =
            views.filter(|v| peer.may(Action::View, named(v).as_ref().and_then(|a| self.0.shared().role_name(a))));
        Ok(Response::new(control::ListRunsReply { runs: seen.map(|v| run_events::run(&v)).collect() }))
    }

    async fn watch_run(
        &self,
        request: Request<control::WatchRunRequest>,
    ) -> Result<Response<Self::WatchRunStream>, Status> {
        let peer = peer_of(&request)?;
        let feed = self.feed(&peer, &request.into_inner().run)?;
        Ok(Response::new(events(|sender| run_events::watch(feed.watch(), sender))))
    }

    async fn list_points(
        &self,
        request: Request<control::ListPointsRequest>,
    ) -> Result<Response<Self::ListPointsStream>, Status> {
        let peer = peer_of(&request)?;
        self.points(&peer, request.into_inner()).await
    }

    async fn show_point(
        &self,
        request: Request<control::ShowPointRequest>,
    ) -> Result<Response<Self::ShowPointStream>, Status> {
        let peer = peer_of(&request)?;
        self.show(&peer, request.into_inner()).await
    }

    async fn verify(&self, request: Request<control::VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        let peer = peer_of(&request)?;
        self.prove(&peer, request.into_inner()).await
    }

    async fn list_agents(
        &self,
        request: Request<control::ListAgentsRequest>,
    ) -> Result<Response<control::ListAgentsReply>, Status> {
        let peer = peer_of(&request)?;
        if !peer.may_some(Action::View) && !peer.may(Action::Operate, None) {
            may(&peer, Action::View, None)?;
        }
        let connected = self.0.shared().agents.list();
        let listed = self.0.shared().inventory.nodes().map_err(|e| Status::unavailable(e.to_string()))?;
        let nodes: std::collections::BTreeSet<String> = listed.into_iter().chain(connected.keys().cloned()).collect();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let agents = nodes.into_iter().map(|node| {
            let agent = connected.get(&node);
            control::Agent {
                version: agent.map(|a| a.version.clone()).unwrap_or_default(),
                protocol: agent.map_or(0, |a| a.protocol),
                volumes: count(self.0.shared().dispatcher.load(&node)),
                volumes_max: agent.and_then(|a| a.volumes_max).map_or(0, count),
                draining: self.0.shared().agents.is_drained(&node) || agent.is_some_and(|a| a.leaving),
                since_ms: agent.map_or(0, |a| a.since.millis()),
                connected: agent.is_some(),
                rival: agent.and_then(|a| a.rival.as_ref()).map(|r| r.whence.clone()).unwrap_or_default(),
                rival_ms: agent.and_then(|a| a.rival.as_ref()).map_or(0, |r| r.at.millis()),
                node,
            }
        });
        Ok(Response::new(control::ListAgentsReply { agents: agents.collect() }))
    }

    async fn list_repositories(
        &self,
        request: Request<control::ListRepositoriesRequest>,
    ) -> Result<Response<control::ListRepositoriesReply>, Status> {
        let peer = peer_of(&request)?;
        if !peer.may_some(Action::View) && !peer.may(Action::Operate, None) {
            may(&peer, Action::View, None)?;
        }
        let repositories = self.0.states().into_iter().map(|(name, state)| {
            let (ready, reason, id) = match &state.standing {
                Standing::Ready(c) => (true, String::new(), c.repository.config.id.hex()),
                Standing::NotReady(why) => (false, why.clone(), String::new()),
            };
            control::RepositoryState { name, address: state.address, ready, reason, since_ms: state.since.millis(), id }
        });
        Ok(Response::new(control::ListRepositoriesReply { repositories: repositories.collect() }))
    }

    async fn drain(&self, request: Request<control::DrainRequest>) -> Result<Response<control::DrainReply>, Status> {
        let peer = peer_of(&request)?;
        may(&peer, Action::Operate, None)?;
        let control::DrainRequest { node, back } = request.into_inner();
        let known = self.0.shared().inventory.node(&node).map_err(|e| Status::unavailable(e.to_string()))?;
        if known.is_none() {
            return Err(Status::not_found(format!("the inventory has no node {node}")));
        }
        tracing::info!(node, back, %peer, "a node is drained or taken back");
        self.0.shared().agents.drain(&node, !back);
        let moved = if back { 0 } else { u32::try_from(self.0.shared().dispatcher.load(&node)).unwrap_or(u32::MAX) };
        if back {
            self.0.shared().dispatcher.replan();
        } else {
            self.0.shared().runs.tell_all(|| RunEvent::Drained(node.clone()));
        }
        if let Some(link) = self.0.shared().agents.link(&node) {
            link.send(milkrun_proto::agent::v1::to_agent::Message::Drain(!back)).await;
        }
        Ok(Response::new(control::DrainReply { moved }))
    }
}
