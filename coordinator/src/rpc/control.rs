//! The service for clients that order: orders come in, progress and results go out. A run goes on whether anybody watches or not.

use std::pin::Pin;
use std::time::Duration;

use milkrun_identity::{Action, Peer};
use milkrun_proto::control::v1 as control;
use milkrun_proto::control::v1::control_server::Control;
use milkrun_repository::Repository;
use milkrun_repository::chunk::codec::Level;
use milkrun_repository::clock::Moment;
use milkrun_repository::id::{AppId, ClusterId, RunId};
use milkrun_repository::point::Selector;
use milkrun_repository::point::root::Class;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

use super::transport::connection::peer_of;
use super::transport::gate::Kept;
use super::{run_events, status};
use crate::inventory::{Reach, SourceSpec};
use crate::repositories::{Repositories, Standing};
use crate::runs::RunEvent;
use crate::runs::view::{Feed, Kind, Outcome, View};
use crate::{backup, manifests, restore, skipped};

/// Events that wait in the channel.
const EVENTS_WAITING: usize = 64;
/// Bytes of manifests in one message.
const MANIFEST_PIECE: usize = 1 << 20;
/// Bytes of manifests that an order may bring.
const MANIFESTS_MAX: usize = 256 << 20;

/// The longest lock that an order may ask for, unless the repository's own is longer.
const LOCK_MAX: Duration = Duration::from_secs(365 * 86_400);
/// Bytes of a host's name (RFC 1035: 253 characters).
const HOST_MAX: usize = 253;

/// The service.
pub struct Service(pub Repositories);

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn bad(e: &(dyn std::error::Error + 'static)) -> Status {
    Status::invalid_argument(e.to_string())
}

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
    fn backup_order(&self, o: control::BackupOrder, repository: &Repository) -> Result<backup::Order, Status> {
        let trusted = self.0.shared().inventory.trusts_orders();
        if !trusted && !o.sources.is_empty() {
            return Err(Status::invalid_argument(
                "which volumes an application has, and where, is said by the coordinator's inventory: name none",
            ));
        }
        let application = self.application(&o.application, &o.cluster, &o.namespace)?;
        if !trusted && application.name_in(&self.0.shared().cluster).is_none() {
            let what = format!(
                "the inventory lists applications of cluster {} alone, without namespaces",
                self.0.shared().cluster
            );
            return Err(Status::invalid_argument(what));
        }
        let skipped = o.skipped.iter().map(|s| skipped::from_wire(s).map_err(|e| bad(&e)));
        let sources = o.sources.into_iter().map(|s| {
            let name = s.name.parse().map_err(|e| bad(&e))?;
            let reach = vec![Reach { node: None, path: s.path }];
            let changed_from = Some(s.changed_from).filter(|p| !p.is_empty());
            let moment = (s.moment_ms != 0).then(|| Moment::from_millis(s.moment_ms));
            let (stream, claim) = (s.stream, s.claim);
            Ok(SourceSpec { name, stream, size: None, reach, changed_from, skip_free: false, moment, claim })
        });
        Level::new(o.level).map_err(|e| bad(&e))?;
        let most = LOCK_MAX.max(repository.config.lock.period);
        // Where the one who orders is not the one who answers for the bucket: compliance can't be taken back.
        if !trusted && o.lock_seconds > most.as_secs() {
            let what = format!("a lock of {} s: a coordinator takes at most {} s", o.lock_seconds, most.as_secs());
            return Err(Status::invalid_argument(what));
        }
        if o.host.len() > HOST_MAX || o.host.chars().any(char::is_control) {
            return Err(status::nonsense("the host's name is too long, or no text"));
        }
        Ok(backup::Order {
            application,
            namespace_uid: o.namespace_uid,
            class: if o.class.is_empty() { Class::None } else { o.class.parse().map_err(|e| bad(&e))? },
            skipped: skipped.collect::<Result<_, Status>>()?,
            sources: sources.collect::<Result<_, Status>>()?,
            manifests: Vec::new(),
            manifest_objects: o.manifest_objects,
            lock_for: (o.lock_seconds > 0).then(|| Duration::from_secs(o.lock_seconds)),
            parent: o.parent,
            level: o.level,
            adapt_level: o.adapt_level,
            host: o.host,
            allow_mounted: o.allow_mounted,
            allow_changing: o.allow_changing,
            allow_empty: o.allow_empty,
            whole_chunks: o.whole_chunks,
            skip_free: o.skip_free,
            full_every: o.full_every,
        })
    }

    /// The application that is meant.
    fn application(&self, name: &str, cluster: &str, namespace: &str) -> Result<AppId, Status> {
        let cluster =
            if cluster.is_empty() { self.0.shared().cluster.clone() } else { cluster.parse().map_err(|e| bad(&e))? };
        let namespace = Some(namespace).filter(|n| !n.is_empty());
        let namespace = namespace.map(str::parse).transpose().map_err(|e| bad(&e))?;
        Ok(AppId { cluster, namespace, name: name.parse().map_err(|e| bad(&e))? })
    }

    fn run_id(bytes: &[u8]) -> Result<RunId, Status> {
        RunId::try_from(bytes).map_err(|e| bad(&e))
    }

    /// Whether a caller may do this to a run.
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

fn restore_order(r: control::RestoreRequest, own: &ClusterId) -> Result<restore::Order, Status> {
    let cluster = if r.cluster.is_empty() { own.clone() } else { r.cluster.parse().map_err(|e| bad(&e))? };
    let namespace = Some(r.namespace.as_str()).filter(|n| !n.is_empty());
    let namespace = namespace.map(str::parse).transpose().map_err(|e| bad(&e))?;
    let selector: Selector = r.selector.parse().map_err(|e| bad(&e))?;
    let targets = r.targets.into_iter().map(|t| {
        let name = t.name.parse().map_err(|e| bad(&e))?;
        let node = Some(t.node).filter(|n| !n.is_empty());
        Ok(restore::TargetSpec { name, path: t.path, node, stream: t.stream })
    });
    Ok(restore::Order {
        selector: selector.within(cluster, namespace),
        targets: targets.collect::<Result<_, Status>>()?,
        selector_text: r.selector,
        manifests: r.manifests,
        force: r.force,
        discard_rest: r.discard_rest,
    })
}

/// What is stored as manifests are manifests, and as many as were announced: nobody could restore others.
fn check_manifests(order: &backup::Order) -> Result<(), Status> {
    let objects = manifests::decode(&order.manifests)
        .map_err(|line| Status::invalid_argument(format!("line {line} of the manifests is no Kubernetes object")))?;
    if objects.len() == order.manifest_objects as usize {
        return Ok(());
    }
    let what = format!("{} manifests came, and {} were announced", objects.len(), order.manifest_objects);
    Err(Status::invalid_argument(what))
}

#[tonic::async_trait]
impl Control for Service {
    type BackupStream = Events<control::BackupEvent>;
    type RestoreStream = Events<control::RestoreEvent>;
    type WatchRunStream = Events<control::Run>;

    async fn backup(
        &self,
        request: Request<Streaming<control::BackupRequest>>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let peer = peer_of(&request)?;
        let kept = request.extensions().get::<Kept>().cloned();
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.and_then(|m| m.message);
        let Some(control::backup_request::Message::Order(order)) = first else {
            return Err(status::nonsense("the order comes first"));
        };
        let application = self.application(&order.application, &order.cluster, &order.namespace)?;
        may(&peer, Action::Backup, self.0.shared().role_name(&application))?;
        let coordinator = self.0.one(&order.repository).map_err(|e| status::no_repository(&e))?;
        let mut order = self.backup_order(order, &coordinator.repository)?;
        while let Some(message) = incoming.message().await? {
            match message.message {
                Some(control::backup_request::Message::Manifests(piece)) => order.manifests.extend_from_slice(&piece),
                _ => return Err(status::nonsense("only manifests follow the order")),
            }
            if order.manifests.len() > MANIFESTS_MAX {
                return Err(status::nonsense("more than 256 MiB of manifests"));
            }
        }
        let order = tokio::task::spawn_blocking(move || check_manifests(&order).map(|()| order));
        let order = order.await.map_err(|_| Status::internal("the manifests could not be looked at"))??;
        let id = RunId::random();
        let feed = Feed::new(id, Kind::Backup, Some(order.application.clone()), peer.to_string())
            .of_repository(&coordinator.name);
        self.0.shared().runs.show(feed.clone());
        let shown = feed.clone();
        let (repository, epoch) = (&coordinator.name, coordinator.epoch);
        let span = tracing::info_span!("backup", run = %id, application = %order.application, repository, epoch);
        let work = async move {
            let outcome = match backup::execute(&coordinator, order, id, &shown).await {
                Ok(done) => Outcome::BackedUp(done),
                Err(e) => {
                    tracing::info!(reason = milkrun_repository::point::catalog::chain(&e), "a backup failed");
                    Outcome::Failed(status::backup(&e))
                }
            };
            shown.end(outcome);
            // The run has the manifests until here, whether anybody waits for it or not.
            drop(kept);
        };
        tokio::spawn(work.instrument(span));
        let (events, outgoing) = mpsc::channel(EVENTS_WAITING);
        tokio::spawn(run_events::backup(feed.watch(), events));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn restore(
        &self,
        request: Request<control::RestoreRequest>,
    ) -> Result<Response<Self::RestoreStream>, Status> {
        let peer = peer_of(&request)?;
        // Of which application the point is, is known once it was found; then its role is asked for.
        if !peer.may_some(Action::Restore) {
            may(&peer, Action::Restore, None)?;
        }
        let request = request.into_inner();
        let coordinator = self.0.one(&request.repository).map_err(|e| status::no_repository(&e))?;
        let order = restore_order(request, &self.0.shared().cluster)?;
        let id = RunId::random();
        let feed = Feed::new(id, Kind::Restore, None, peer.to_string()).of_repository(&coordinator.name);
        self.0.shared().runs.show(feed.clone());
        let shown = feed.clone();
        let (manifests, wanted) = oneshot::channel();
        let span = tracing::info_span!("restore", run = %id, repository = coordinator.name, epoch = coordinator.epoch);
        let work = async move {
            let outcome = match restore::execute(&coordinator, order, &peer, id, &shown).await {
                Ok(done) => {
                    // Nobody waits for them any more, perhaps.
                    let _ = manifests.send(done.manifests);
                    Outcome::Restored(done.report)
                }
                Err(e) => Outcome::Failed(status::restore(&e)),
            };
            shown.end(outcome);
        };
        tokio::spawn(work.instrument(span));
        let (events, outgoing) = mpsc::channel(EVENTS_WAITING);
        tokio::spawn(run_events::restore(feed.watch(), events, wanted, MANIFEST_PIECE));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
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
        let (events, outgoing) = mpsc::channel(EVENTS_WAITING);
        tokio::spawn(run_events::watch(feed.watch(), events));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
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
