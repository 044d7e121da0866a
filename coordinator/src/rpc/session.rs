//! The service for the sessions of agents, which stay open.

use std::pin::Pin;
use std::time::Duration;

use milkrun_identity::{NodeName, Peer};
use milkrun_proto::agent::v1 as wire;
use milkrun_proto::agent::v1::session_server::Session;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::status;
use super::transport::connection::caller_of;
use crate::Shared;
use crate::agents::{Link, Registration};
use crate::one_line::one_line;
use crate::repositories::Repositories;
use crate::runs::inbox::Rooms;
use crate::runs::{RunEvent, run_of};

/// The oldest and the newest protocol that are served: those of this minor release, the one before and the one after it. Within
/// that span, messages only gain fields.
pub const PROTOCOLS: std::ops::RangeInclusive<u32> = 1..=3;
/// How often an agent sends a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// After this many missed heartbeats, an agent is considered dead: its volumes go on elsewhere.
const HEARTBEATS_MISSED: u32 = 4;

/// How often a session checks whether the inventory still has its agent's node.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The most characters of the reason why a volume failed, and of an agent's release.
const REASON_MAX: usize = 4096;
const VERSION_MAX: usize = 64;

/// The service.
pub struct Service(pub Repositories);

#[tonic::async_trait]
impl Session for Service {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<wire::ToAgent, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<wire::FromAgent>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let caller = caller_of(&request)?;
        let peer = caller.peer();
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(HEARTBEAT, incoming.message()).await;
        let first = first.map_err(|_| status::nonsense("an agent registers at once"))??.and_then(|m| m.message);
        let Some(wire::from_agent::Message::Register(register)) = first else {
            return Err(status::nonsense("an agent registers first"));
        };
        let node = register.node.clone();
        let refused = |e: &Status| {
            tracing::warn!(node, %peer, from = caller.whence(), reason = e.message(), "an agent is refused");
        };
        self.admit(&peer, &register).inspect_err(refused)?;
        let (down, outgoing) = mpsc::channel(64);
        let link = Link::new(down);
        let repositories = self.0.clone();
        let shared = repositories.shared().clone();
        let registration = Registration {
            node: node.clone(),
            version: one_line(&register.version, VERSION_MAX),
            protocol: register.protocol,
            volumes_max: usize::try_from(register.volumes).ok().filter(|&n| n > 0),
            freezes: register.freezes,
            instance: register.instance.to_vec(),
            whence: caller.whence(),
        };
        let begun = shared.agents.add(registration, link.clone());
        let begun = begun.map_err(|e| Status::already_exists(e.to_string())).inspect_err(refused)?;
        // In the embedded mode, agent and coordinator end together: heartbeats are not needed.
        let listens = peer != Peer::Local;
        let heartbeat_seconds = if listens { u32::try_from(HEARTBEAT.as_secs()).unwrap_or(0) } else { 0 };
        link.send(wire::to_agent::Message::Welcome(wire::Welcome { epoch: repositories.epoch(), heartbeat_seconds }))
            .await;
        if shared.agents.is_drained(&node) {
            link.send(wire::to_agent::Message::Drain(true)).await;
        }
        if begun.again {
            tracing::warn!(node, "an agent connects again while its last session goes on; that one is over");
            gone(&repositories, &node);
        }
        tracing::info!(node, from = caller.whence(), version = register.version, "an agent is connected");
        shared.dispatcher.replan();
        tokio::spawn(async move {
            let session = Listening { shared: shared.clone(), node: node.clone(), session: begun.session };
            let why = tokio::select! {
                why = session.listen(incoming, listens) => Ended::Itself(why),
                () = begun.over.cancelled() => Ended::Itself("it connected again".into()),
                status = caller.ended() => Ended::ByUs(status),
                status = session.unlisted(), if listens => Ended::ByUs(status),
            };
            let present = shared.agents.remove(&node, begun.session);
            let why = match why {
                Ended::Itself(why) => why,
                Ended::ByUs(status) => {
                    let why = status.message().to_owned();
                    link.end(status).await;
                    why
                }
            };
            if present {
                tracing::info!(node, why, "an agent is gone");
                gone(&repositories, &node);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// Why a session is over.
enum Ended {
    /// The agent or its connection ended it.
    Itself(String),
    /// The coordinator ended it.
    ByUs(Status),
}

fn gone(repositories: &Repositories, node: &str) {
    repositories.each(|coordinator| coordinator.admission.gone(node));
    repositories.shared().runs.tell_all(|| RunEvent::AgentGone(node.to_owned()));
}

/// One agent's session.
struct Listening {
    shared: Shared,
    node: String,
    session: u64,
}

impl Listening {
    /// Waits until the inventory no longer has the agent's node.
    async fn unlisted(&self) -> Status {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            // An inventory that can't be read takes no node away.
            if matches!(self.shared.inventory.node(&self.node), Ok(None)) {
                return not_listed(&self.node);
            }
        }
    }

    /// Handles an agent's messages until it ends, or is silent for too long. Returns why the session is over.
    async fn listen(&self, mut incoming: Streaming<wire::FromAgent>, listens: bool) -> String {
        let mut rooms = Rooms::default();
        loop {
            let next = incoming.message();
            let received = if listens {
                let silence = HEARTBEAT * HEARTBEATS_MISSED;
                match tokio::time::timeout(silence, next).await {
                    Ok(received) => received,
                    Err(_) => return format!("nothing heard for {} s", silence.as_secs()),
                }
            } else {
                next.await
            };
            let message = match received {
                Ok(Some(wire::FromAgent { message: Some(message) })) => message,
                // A message of a kind that is newer than this release.
                Ok(Some(_)) => continue,
                Ok(None) => return "it ended the session".into(),
                Err(e) => return e.message().to_owned(),
            };
            self.shared.agents.heard(&self.node, self.session);
            self.take(message, &mut rooms).await;
        }
    }

    async fn take(&self, mut message: wire::from_agent::Message, rooms: &mut Rooms) {
        use wire::from_agent::Message as M;
        if let M::Failed(failed) = &mut message {
            failed.reason = one_line(&failed.reason, REASON_MAX);
        }
        let (shared, node) = (&self.shared, &self.node);
        let message = match message {
            M::Freeze(state) => return shared.freezes.answered(node, state),
            message => message,
        };
        if let M::Draining(_) = message {
            shared.agents.leaving(node);
            shared.runs.tell_all(|| RunEvent::Drained(node.to_owned()));
            return;
        }
        let Some(run) = run_of(&message) else { return };
        if !shared.runs.is_under_way(&run) {
            // A message about a run that ended is ignored.
            rooms.forget(&run);
            return;
        }
        // A progress message may be dropped, since the next one replaces it; all other messages wait for room.
        let room = match message {
            M::Progress(_) => rooms.now(run),
            _ => rooms.wait(run).await,
        };
        let Some(room) = room else { return };
        shared.runs.tell(&run, RunEvent::Agent(node.to_owned(), message, room));
    }
}

fn not_listed(node: &str) -> Status {
    Status::permission_denied(format!("the inventory has no node {node}"))
}

impl Service {
    /// Checks whether an agent may register: its certificate must be its node's, the node must be listed, and the protocol must be
    /// one that is served.
    fn admit(&self, peer: &Peer, register: &wire::Register) -> Result<(), Status> {
        if !PROTOCOLS.contains(&register.protocol) {
            return Err(Status::failed_precondition(format!(
                "the agent (release {}) speaks protocol {}; this coordinator (release {}) speaks {} to {}: \
                 update the older one",
                one_line(&register.version, VERSION_MAX),
                register.protocol,
                env!("CARGO_PKG_VERSION"),
                PROTOCOLS.start(),
                PROTOCOLS.end()
            )));
        }
        if *peer == Peer::Local {
            return Ok(());
        }
        let node: NodeName = register.node.parse().map_err(|e| Status::invalid_argument(format!("{e}")))?;
        match peer {
            Peer::Agent(own) if *own == node => {}
            other => {
                return Err(Status::permission_denied(format!(
                    "the certificate is that of {other}, not of node {node}'s agent"
                )));
            }
        }
        match self.0.shared().inventory.node(node.as_str()) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(not_listed(node.as_str())),
            Err(e) => Err(Status::unavailable(milkrun_repository::point::catalog::chain(&e))),
        }
    }
}
