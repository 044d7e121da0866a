//! What agents ask for while they back up.

use std::pin::Pin;

use milkrun_proto::agent::v1 as wire;
use milkrun_proto::agent::v1::upload_server::Upload;
use milkrun_repository::id::{PackId, RunId};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use milkrun_identity::Peer;
use wire::to_agent::Message as ToAgent;

use super::connection::peer_of;
use super::{convert, status};
use crate::Coordinator;
use crate::backup::Answer;
use crate::runs::RunEvent;

/// Parent ranges that wait in the channel: each is a leaf.
const PARENT_WAITING: usize = 16;

/// The service.
pub struct Service(pub Coordinator);

#[tonic::async_trait]
impl Upload for Service {
    type ParentStream = Pin<Box<dyn Stream<Item = Result<wire::ParentRange, Status>> + Send>>;

    async fn parent(&self, request: Request<wire::ParentRequest>) -> Result<Response<Self::ParentStream>, Status> {
        let peer = peer_of(&request)?;
        let assignment = request.into_inner().assignment;
        let (run, a) = self.0.runs.backup(&assignment, &peer).map_err(|e| status::refused(&e))?;
        let (sender, receiver) = mpsc::channel(PARENT_WAITING);
        tokio::spawn(async move {
            let reader = run.parent_reader();
            loop {
                let next = match run.next_parent(&a.volume, a.attempt, &reader).await {
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
        let peer = peer_of(&request)?;
        let request = request.into_inner();
        let (run, a) = self.0.runs.backup(&request.assignment, &peer).map_err(|e| status::refused(&e))?;
        let ids = convert::ids(&request.ids).ok_or_else(|| status::nonsense("ids of another length"))?;
        let node = match &peer {
            Peer::Agent(node) => node.as_str(),
            _ => "",
        };
        let answers = if request.wait {
            let flush = |holder: &str| {
                if let Some(link) = self.0.agents.link(holder) {
                    link.hint(ToAgent::Flush(a.run.clone()));
                }
            };
            run.lookup_later(&ids, node, flush).await
        } else {
            run.lookup(&ids, node, request.share).await
        };
        let known = answers.map_err(|e| status::backup(&e))?.into_iter().map(|a| match a {
            Answer::Yours => 0,
            Answer::Known => 1,
            Answer::Elsewhere => 2,
        });
        let known: Vec<u8> = known.collect();
        Ok(Response::new(wire::LookupReply { known: known.into() }))
    }

    async fn grant(&self, request: Request<wire::GrantRequest>) -> Result<Response<wire::GrantReply>, Status> {
        let peer = peer_of(&request)?;
        let request = request.into_inner();
        let (run, a) = self.0.runs.backup(&request.assignment, &peer).map_err(|e| status::refused(&e))?;
        let pack = PackId::try_from(&request.pack[..]).map_err(|_| status::nonsense("a pack id of another length"))?;
        let grant = run.grant(&a.volume, pack, request.length, request.crc32).await.map_err(|e| status::backup(&e))?;
        Ok(Response::new(wire::GrantReply { grant: Some(convert::put_grant(&grant)) }))
    }

    async fn seal(&self, request: Request<wire::SealRequest>) -> Result<Response<wire::SealReply>, Status> {
        let peer = peer_of(&request)?;
        let request = request.into_inner();
        let (run, _) = self.0.runs.backup(&request.assignment, &peer).map_err(|e| status::refused(&e))?;
        let (claim, entries) =
            convert::sealed(&request).ok_or_else(|| status::nonsense("a pack that contradicts itself"))?;
        run.seal(claim, entries).await.map_err(|e| status::backup(&e))?;
        Ok(Response::new(wire::SealReply {}))
    }

    async fn checkpoint(
        &self,
        request: Request<wire::CheckpointRequest>,
    ) -> Result<Response<wire::CheckpointReply>, Status> {
        let peer = peer_of(&request)?;
        let request = request.into_inner();
        let (run, a) = self.0.runs.backup(&request.assignment, &peer).map_err(|e| status::refused(&e))?;
        run.checkpoint(&a.volume, a.attempt, request.regions).await.map_err(|e| status::backup(&e))?;
        Ok(Response::new(wire::CheckpointReply {}))
    }

    async fn finish(&self, request: Request<wire::FinishRequest>) -> Result<Response<wire::FinishReply>, Status> {
        let peer = peer_of(&request)?;
        let request = request.into_inner();
        let (run, a) = self.0.runs.backup(&request.assignment, &peer).map_err(|e| status::refused(&e))?;
        let volume = a.volume;
        let id = request.assignment.as_ref().and_then(|a| RunId::try_from(&a.run[..]).ok());
        run.finish(&volume, request).await.map_err(|e| status::backup(&e))?;
        if let Some(id) = id {
            self.0.runs.tell(&id, RunEvent::Finished(volume));
        }
        Ok(Response::new(wire::FinishReply {}))
    }
}
