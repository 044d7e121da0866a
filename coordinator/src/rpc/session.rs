//! Agents connect here and stay.

use std::pin::Pin;
use std::time::Duration;

use milkrun_identity::{NodeName, Peer};
use milkrun_proto::agent::v1 as wire;
use milkrun_proto::agent::v1::session_server::Session;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::connection::peer_of;
use super::status;
use crate::Coordinator;
use crate::agents::{Link, Registration};
use crate::runs::{RunEvent, run_of};

/// The oldest and the newest protocol that are served: this release's, and those of the minor releases before and after it.
/// Messages only ever gain fields within that span.
pub const PROTOCOLS: std::ops::RangeInclusive<u32> = 1..=3;
/// How often an agent says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// After so many heartbeats that did not come an agent is taken for dead: its volumes go on elsewhere.
const HEARTBEATS_MISSED: u32 = 4;

/// The service.
pub struct Service(pub Coordinator);

#[tonic::async_trait]
impl Session for Service {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<wire::ToAgent, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<wire::FromAgent>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let peer = peer_of(&request)?;
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(HEARTBEAT, incoming.message()).await;
        let first = first.map_err(|_| status::nonsense("an agent registers at once"))??.and_then(|m| m.message);
        let Some(wire::from_agent::Message::Register(register)) = first else {
            return Err(status::nonsense("an agent registers first"));
        };
        let node = register.node.clone();
        self.admit(&peer, &register).inspect_err(|e| {
            tracing::warn!(node, %peer, reason = e.message(), "an agent is refused");
        })?;
        let (down, outgoing) = mpsc::channel(64);
        let link = Link::new(down);
        // In the embedded mode both end together: nobody needs to listen whether the other is there.
        let listens = peer != Peer::Local;
        let heartbeat_seconds = if listens { u32::try_from(HEARTBEAT.as_secs()).unwrap_or(0) } else { 0 };
        link.send(wire::to_agent::Message::Welcome(wire::Welcome { epoch: self.0.epoch, heartbeat_seconds })).await;
        let coordinator = self.0.clone();
        if coordinator.agents.is_drained(&node) {
            link.send(wire::to_agent::Message::Drain(true)).await;
        }
        let again = coordinator.agents.link(&node).is_some();
        let registration = Registration {
            node: node.clone(),
            version: register.version.clone(),
            protocol: register.protocol,
            volumes_max: usize::try_from(register.volumes).ok().filter(|&n| n > 0),
        };
        let session = coordinator.agents.add(registration, link);
        if again {
            tracing::warn!(node, "an agent connects again while its last session goes on; that one is over");
            gone(&coordinator, &node);
        }
        tracing::info!(node, version = register.version, "an agent is connected");
        coordinator.dispatcher.replan();
        tokio::spawn(async move {
            let why = listen(&coordinator, &node, session, incoming, listens).await;
            if coordinator.agents.remove(&node, session) {
                tracing::info!(node, why, "an agent is gone");
                gone(&coordinator, &node);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

fn gone(coordinator: &Coordinator, node: &str) {
    coordinator.admission.gone(node);
    coordinator.runs.tell_all(|| RunEvent::AgentGone(node.to_owned()));
}

/// Takes what an agent says until it ends, or says nothing for too long. Returns why it is over.
async fn listen(
    coordinator: &Coordinator,
    node: &str,
    session: u64,
    mut incoming: Streaming<wire::FromAgent>,
    listens: bool,
) -> String {
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
            // A kind of message that is newer than this release.
            Ok(Some(_)) => continue,
            Ok(None) => return "it ended the session".into(),
            Err(e) => return e.message().to_owned(),
        };
        if !coordinator.agents.is_present(node, session) {
            return "it connected again".into();
        }
        match message {
            wire::from_agent::Message::Draining(_) => {
                coordinator.agents.leaving(node);
                coordinator.runs.tell_all(|| RunEvent::Drained(node.to_owned()));
            }
            message => {
                if let Some(run) = run_of(&message) {
                    // A report on a run that ended is of no interest.
                    coordinator.runs.tell(&run, RunEvent::Agent(node.to_owned(), message));
                }
            }
        }
    }
}

impl Service {
    /// Whether an agent may register: its certificate is its node's, the node is known, the protocol is one that we speak.
    fn admit(&self, peer: &Peer, register: &wire::Register) -> Result<(), Status> {
        if !PROTOCOLS.contains(&register.protocol) {
            return Err(Status::failed_precondition(format!(
                "the agent (release {}) speaks protocol {}; this coordinator (release {}) speaks {} to {}: \
                 update the older one",
                register.version,
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
        match self.0.inventory.node(node.as_str()) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(Status::permission_denied(format!("the inventory has no node {node}"))),
            Err(e) => Err(Status::unavailable(milkrun_repository::point::catalog::chain(&e))),
        }
    }
}
