//! Who drives: orders come in, progress and results go out.

use std::pin::Pin;
use std::time::Duration;

use milkrun_proto::control::v1 as control;
use milkrun_proto::control::v1::control_server::Control;
use milkrun_repository::chunk::codec::Level;
use milkrun_repository::id::RunId;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::status;
use crate::runs::RunEvent;
use crate::{Coordinator, backup, restore};

/// Events that wait in the channel.
const EVENTS_WAITING: usize = 64;

/// The service.
pub struct Service(pub Coordinator);

fn bad(e: &(dyn std::error::Error + 'static)) -> Status {
    Status::invalid_argument(e.to_string())
}

fn backup_order(o: control::BackupOrder) -> Result<backup::Order, Status> {
    let sources = o.sources.into_iter().map(|s| {
        let name = s.name.parse().map_err(|e| bad(&e))?;
        Ok(backup::SourceSpec { name, path: s.path, stream: s.stream })
    });
    Level::new(o.level).map_err(|e| bad(&e))?;
    Ok(backup::Order {
        application: o.application.parse().map_err(|e| bad(&e))?,
        sources: sources.collect::<Result<_, Status>>()?,
        manifests: Vec::new(),
        manifest_objects: o.manifest_objects,
        lock_for: (o.lock_seconds > 0).then(|| Duration::from_secs(o.lock_seconds)),
        parent: o.parent,
        level: o.level,
        host: o.host,
        allow_mounted: o.allow_mounted,
        allow_changing: o.allow_changing,
    })
}

fn restore_order(r: control::RestoreRequest) -> Result<restore::Order, Status> {
    let targets = r.targets.into_iter().map(|t| {
        let name = t.name.parse().map_err(|e| bad(&e))?;
        Ok(restore::TargetSpec { name, path: t.path, stream: t.stream })
    });
    Ok(restore::Order {
        selector: r.selector.parse().map_err(|e| bad(&e))?,
        targets: targets.collect::<Result<_, Status>>()?,
        selector_text: r.selector,
        manifests: r.manifests,
        force: r.force,
        discard_rest: r.discard_rest,
    })
}

#[tonic::async_trait]
impl Control for Service {
    type BackupStream = Pin<Box<dyn Stream<Item = Result<control::BackupEvent, Status>> + Send>>;
    type RestoreStream = Pin<Box<dyn Stream<Item = Result<control::RestoreEvent, Status>> + Send>>;

    async fn backup(
        &self,
        request: Request<Streaming<control::BackupRequest>>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.and_then(|m| m.message);
        let Some(control::backup_request::Message::Order(order)) = first else {
            return Err(status::nonsense("the order comes first"));
        };
        let mut order = backup_order(order)?;
        while let Some(message) = incoming.message().await? {
            match message.message {
                Some(control::backup_request::Message::Manifests(piece)) => order.manifests.extend_from_slice(&piece),
                _ => return Err(status::nonsense("only manifests follow the order")),
            }
        }
        let (events, outgoing) = mpsc::channel(EVENTS_WAITING);
        let coordinator = self.0.clone();
        tokio::spawn(async move {
            let last = match backup::execute(&coordinator, order, &events).await {
                Ok(done) => Ok(control::BackupEvent { event: Some(control::backup_event::Event::Done(done)) }),
                Err(e) => Err(status::backup(&e)),
            };
            // Who ordered may have stopped listening.
            let _ = events.send(last).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn restore(
        &self,
        request: Request<control::RestoreRequest>,
    ) -> Result<Response<Self::RestoreStream>, Status> {
        let order = restore_order(request.into_inner())?;
        let (events, outgoing) = mpsc::channel(EVENTS_WAITING);
        let coordinator = self.0.clone();
        tokio::spawn(async move {
            let last = match restore::execute(&coordinator, order, &events).await {
                Ok(done) => Ok(control::RestoreEvent { event: Some(control::restore_event::Event::Done(done)) }),
                Err(e) => Err(status::restore(&e)),
            };
            // Who ordered may have stopped listening.
            let _ = events.send(last).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn cancel(&self, request: Request<control::CancelRequest>) -> Result<Response<control::CancelReply>, Status> {
        let id = RunId::try_from(&request.into_inner().run[..]).map_err(|e| bad(&e))?;
        if self.0.runs.tell(&id, RunEvent::Cancel) {
            Ok(Response::new(control::CancelReply {}))
        } else {
            Err(Status::not_found("the run is not under way"))
        }
    }
}
