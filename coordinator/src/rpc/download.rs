//! What agents ask for while they restore.

use std::pin::Pin;

use futures::{Stream, stream};
use milkrun_proto::agent::v1 as wire;
use milkrun_proto::agent::v1::download_server::Download;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::connection::peer_of;
use super::status;
use crate::Coordinator;
use crate::restore::Telling;

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
        let telling = Telling {
            in_order: request.in_order,
            packed: request.packed,
            grouped: request.in_order && request.grouped,
        };
        let (run, volume) = self.0.runs.restore(&request.assignment, &peer).map_err(|e| status::refused(&e))?;
        let (sender, receiver) = mpsc::channel(PAGES_WAITING);
        tokio::spawn(async move {
            let mut pages = run.pages(volume, request.from, telling);
            loop {
                let next = pages.next().await.map_err(|e| status::restore(&e));
                let over = !matches!(next, Ok(Some(_)));
                if sender.send(next).await.is_err() || over {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(to_its_end(receiver))))
    }
}

/// What comes, up to the `None` that says that it is all. Without that one the rest of a volume would look like a hole.
fn to_its_end<T: Send>(receiver: mpsc::Receiver<Result<Option<T>, Status>>) -> impl Stream<Item = Result<T, Status>> {
    stream::unfold(Some(receiver), |receiver| async move {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(Ok(Some(page))) => Some((Ok(page), Some(receiver))),
            Some(Ok(None)) => None,
            Some(Err(status)) => Some((Err(status), None)),
            None => Some((Err(Status::internal("whoever made the plan is gone before its end")), None)),
        }
    })
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn a_plan_that_breaks_off_is_told_from_one_that_ends() {
        let run = async |said: Vec<Result<Option<u8>, Status>>| {
            let (sender, receiver) = mpsc::channel(8);
            for next in said {
                sender.send(next).await.unwrap();
            }
            drop(sender);
            to_its_end(receiver).map(|page| page.map_err(|e| e.code())).collect::<Vec<_>>().await
        };
        assert_eq!(run(vec![Ok(Some(1)), Ok(Some(2)), Ok(None)]).await, [Ok(1), Ok(2)]);
        assert_eq!(run(vec![Ok(Some(1))]).await, [Ok(1), Err(tonic::Code::Internal)]);
        assert_eq!(run(vec![Ok(Some(1)), Err(Status::data_loss("x"))]).await, [Ok(1), Err(tonic::Code::DataLoss)]);
    }
}
