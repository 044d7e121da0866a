//! What agents ask for while they restore.

use std::pin::Pin;

use milkrun_proto::agent::v1 as wire;
use milkrun_proto::agent::v1::download_server::Download;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::connection::peer_of;
use super::status;
use crate::Coordinator;

/// Pages that wait in the channel.
const PAGES_WAITING: usize = 4;

/// The service.
pub struct Service(pub Coordinator);

#[tonic::async_trait]
impl Download for Service {
    type PlanStream = Pin<Box<dyn Stream<Item = Result<wire::PlanPage, Status>> + Send>>;

    async fn plan(&self, request: Request<wire::PlanRequest>) -> Result<Response<Self::PlanStream>, Status> {
        let peer = peer_of(&request)?;
        let request = request.into_inner();
        let (run, volume) = self.0.runs.restore(&request.assignment, &peer).map_err(|e| status::refused(&e))?;
        let (sender, receiver) = mpsc::channel(PAGES_WAITING);
        tokio::spawn(async move {
            let mut pages = run.pages(volume, request.in_order, request.from, request.packed);
            loop {
                let next = match pages.next().await {
                    Ok(Some(page)) => Ok(page),
                    Ok(None) => return,
                    Err(e) => Err(status::restore(&e)),
                };
                let failed = next.is_err();
                if sender.send(next).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
