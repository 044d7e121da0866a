//! What agents ask for while they back up.

use std::pin::Pin;

use milkrun_proto::agent::v1 as wire;
use milkrun_proto::agent::v1::upload_server::Upload;
use milkrun_repository::id::{PackId, RunId};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{convert, status};
use crate::Coordinator;
use crate::runs::RunEvent;

/// Parent ranges that wait in the channel: each is a leaf.
const PARENT_WAITING: usize = 16;

/// The service.
pub struct Service(pub Coordinator);

#[tonic::async_trait]
impl Upload for Service {
    type ParentStream = Pin<Box<dyn Stream<Item = Result<wire::ParentRange, Status>> + Send>>;

    async fn parent(&self, request: Request<wire::ParentRequest>) -> Result<Response<Self::ParentStream>, Status> {
        let assignment = request.into_inner().assignment;
        let (run, volume) = self.0.runs.backup(&assignment).map_err(|e| status::refused(&e))?;
        let (sender, receiver) = mpsc::channel(PARENT_WAITING);
        tokio::spawn(async move {
            let reader = run.parent_reader();
            loop {
                let next = match run.next_parent(&volume, &reader).await {
                    Ok(Some(range)) => Ok(range),
                    Ok(None) => return,
                    Err(e) => Err(status::backup(&e)),
                };
                let failed = next.is_err();
                if sender.send(next).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn lookup(&self, request: Request<wire::LookupRequest>) -> Result<Response<wire::LookupReply>, Status> {
        let request = request.into_inner();
        let (run, _) = self.0.runs.backup(&request.assignment).map_err(|e| status::refused(&e))?;
        let ids = convert::ids(&request.ids).ok_or_else(|| status::nonsense("ids of another length"))?;
        let known = run.lookup(&ids).await.map_err(|e| status::backup(&e))?;
        let known: Vec<u8> = known.into_iter().map(u8::from).collect();
        Ok(Response::new(wire::LookupReply { known: known.into() }))
    }

    async fn grant(&self, request: Request<wire::GrantRequest>) -> Result<Response<wire::GrantReply>, Status> {
        let request = request.into_inner();
        let (run, _) = self.0.runs.backup(&request.assignment).map_err(|e| status::refused(&e))?;
        let pack = PackId::try_from(&request.pack[..]).map_err(|_| status::nonsense("a pack id of another length"))?;
        let grant = run.grant(pack, request.length, request.crc32).await.map_err(|e| status::backup(&e))?;
        Ok(Response::new(wire::GrantReply { grant: Some(convert::put_grant(&grant)) }))
    }

    async fn seal(&self, request: Request<wire::SealRequest>) -> Result<Response<wire::SealReply>, Status> {
        let request = request.into_inner();
        let (run, _) = self.0.runs.backup(&request.assignment).map_err(|e| status::refused(&e))?;
        let (claim, entries) =
            convert::sealed(&request).ok_or_else(|| status::nonsense("a pack that contradicts itself"))?;
        run.seal(claim, entries).await.map_err(|e| status::backup(&e))?;
        Ok(Response::new(wire::SealReply {}))
    }

    async fn checkpoint(
        &self,
        request: Request<wire::CheckpointRequest>,
    ) -> Result<Response<wire::CheckpointReply>, Status> {
        let request = request.into_inner();
        let (run, volume) = self.0.runs.backup(&request.assignment).map_err(|e| status::refused(&e))?;
        run.checkpoint(&volume, request.regions).await.map_err(|e| status::backup(&e))?;
        Ok(Response::new(wire::CheckpointReply {}))
    }

    async fn finish(&self, request: Request<wire::FinishRequest>) -> Result<Response<wire::FinishReply>, Status> {
        let request = request.into_inner();
        let (run, volume) = self.0.runs.backup(&request.assignment).map_err(|e| status::refused(&e))?;
        let id = request.assignment.as_ref().and_then(|a| RunId::try_from(&a.run[..]).ok());
        run.finish(&volume, request).await.map_err(|e| status::backup(&e))?;
        if let Some(id) = id {
            self.0.runs.tell(&id, RunEvent::Finished(volume));
        }
        Ok(Response::new(wire::FinishReply {}))
    }
}
