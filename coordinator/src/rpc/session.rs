//! Agents connect here and stay.

use std::pin::Pin;

use milkrun_proto::agent::v1 as wire;
use milkrun_proto::agent::v1::session_server::Session;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::status;
use crate::agents::Link;
use crate::runs::{RunEvent, run_of};
use crate::{Coordinator, EPOCH};

/// The oldest and the newest protocol that are served.
const PROTOCOLS: std::ops::RangeInclusive<u32> = 1..=1;

/// The service.
pub struct Service(pub Coordinator);

#[tonic::async_trait]
impl Session for Service {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<wire::ToAgent, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<wire::FromAgent>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.and_then(|m| m.message);
        let Some(wire::from_agent::Message::Register(register)) = first else {
            return Err(status::nonsense("an agent registers first"));
        };
        if !PROTOCOLS.contains(&register.protocol) {
            let why = format!(
                "protocol {} is not served here (only {} to {})",
                register.protocol,
                PROTOCOLS.start(),
                PROTOCOLS.end()
            );
            tracing::warn!(node = register.node, why, "an agent is refused");
            return Err(Status::failed_precondition(why));
        }
        let (down, outgoing) = mpsc::channel(64);
        let link = Link::new(down);
        link.send(wire::to_agent::Message::Welcome(wire::Welcome { epoch: EPOCH })).await;
        let coordinator = self.0.clone();
        coordinator.agents.add(register.node.clone(), link);
        tracing::debug!(node = register.node, version = register.version, "an agent is connected");
        tokio::spawn(async move {
            while let Ok(Some(wire::FromAgent { message: Some(message) })) = incoming.message().await {
                if let Some(run) = run_of(&message) {
                    // A report on a run that ended is of no interest.
                    coordinator.runs.tell(&run, RunEvent::Agent(message));
                }
            }
            coordinator.agents.remove(&register.node);
            coordinator.runs.agent_gone();
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}
