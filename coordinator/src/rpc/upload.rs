//! The service for backups: the parent, lookups, grants, seals, checkpoints.
//!
//! A call that changes a run is carried out to its end, even if its agent is gone.

use std::sync::Arc;

use futures::{TryStreamExt, stream};
use milkrun_identity::Peer;
use milkrun_proto::agent::v1 as wire;
use milkrun_proto::agent::v1::upload_server::Upload;
use milkrun_repository::id::{PackId, RunId};
use milkrun_repository::pack::{FOOTER_LEN, HEADER_LEN, TAG_LEN};
use tonic::{Request, Response, Status};

use wire::to_agent::Message as ToAgent;

use super::answers::{Answers, Streams, answers};
use super::transport::connection::peer_of;
use super::{convert, status};
use crate::Shared;
use crate::backup::{Answer, BackupError, Detail, Run};
use crate::runs::RunEvent;

/// The least bytes of a pack: header, footer and the tag of a directory.
const PACK_BYTES_MIN: u64 = (HEADER_LEN + FOOTER_LEN + TAG_LEN) as u64;
/// The most bytes of a pack. Agents fill packs to 32 MiB; a longer one would only block the line for others.
const PACK_BYTES_MAX: u64 = 64 << 20;
/// The most leaves of one sample.
const SAMPLES_MAX: u32 = 256;
/// How many leaves of a sample are read side by side.
const SAMPLES_AT_ONCE: usize = 8;
/// How many parent ranges may wait in the channel: each is a leaf.
const PARENT_WAITING: usize = 16;

/// Does work that must not stop half-way, even if its caller is gone. Otherwise a call whose connection ends is dropped where it
/// stands.
async fn whole(work: impl Future<Output = Result<(), Status>> + Send + 'static) -> Result<(), Status> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(_) => Err(Status::unavailable("the coordinator is stopping")),
    }
}

/// The service.
pub struct Service(Shared, Streams);

impl Service {
    /// The service for all repositories of the process.
    pub fn new(shared: Shared) -> Self {
        Self(shared, Streams::default())
    }

    /// The backup of an assignment that `peer` has.
    fn run(&self, a: Option<&wire::Assignment>, peer: &Peer) -> Result<(Arc<Run>, wire::Assignment), Status> {
        let found = self.0.backups.find(a).and_then(|run| {
            let a = a.cloned().unwrap_or_default();
            run.check(&a, peer)?;
            Ok((run, a))
        });
        found.map_err(|e| status::refused(&e))
    }
}

#[tonic::async_trait]
impl Upload for Service {
    type ParentStream = Answers<wire::ParentRange>;
    type SampleStream = Answers<wire::ParentRange>;

    async fn parent(&self, request: Request<wire::ParentRequest>) -> Result<Response<Self::ParentStream>, Status> {
        let peer = peer_of(&request)?;
        let request = request.into_inner();
        let (run, a) = self.run(request.assignment.as_ref(), &peer)?;
        let place = self.1.open(&a, "parent")?;
        let ranges = answers(PARENT_WAITING, move |sink| async move {
            let _place = place;
            let reader = run.parent_reader();
            let detail = match (request.pages, request.outline) {
                (true, _) => Detail::Pages,
                (false, true) => Detail::Outline,
                (false, false) => Detail::Chunks,
            };
            while let Some(range) =
                run.next_parent(&a.volume, a.attempt, &reader, detail).await.map_err(|e| status::backup(&e))?
            {
                sink.send(range).await?;
            }
            Ok(())
        });
        Ok(Response::new(ranges))
    }

    async fn sample(&self, request: Request<wire::SampleRequest>) -> Result<Response<Self::SampleStream>, Status> {
        let peer = peer_of(&request)?;
        let request = request.into_inner();
        let (run, a) = self.run(request.assignment.as_ref(), &peer)?;
        let place = self.1.open(&a, "sample")?;
        let ranges = answers(PARENT_WAITING, move |sink| async move {
            let _place = place;
            // Only one sample is taken at a time: each reads all over the parent.
            let _turn = run.sampling().await;
            let reader = run.parent_reader().without_read_ahead();
            // Each draw sends its own result. So a draw that waits for room in the channel blocks no other draw, whatever locks
            // they hold.
            let draw = |_| async {
                match run.sample_parent(&a.volume, a.attempt, &reader).await.map_err(|e| status::backup(&e))? {
                    Some(range) => sink.send(range).await,
                    None => Ok(()),
                }
            };
            let draws = stream::iter((0..request.leaves.min(SAMPLES_MAX)).map(Ok));
            draws.try_for_each_concurrent(SAMPLES_AT_ONCE, draw).await
        });
        Ok(Response::new(ranges))
    }

    async fn lookup(&self, request: Request<wire::LookupRequest>) -> Result<Response<wire::LookupReply>, Status> {
        let peer = peer_of(&request)?;
        let request = request.into_inner();
        let (run, a) = self.run(request.assignment.as_ref(), &peer)?;
        let ids = convert::ids(&request.ids).ok_or_else(|| status::nonsense("ids of another length"))?;
        let answers = if request.wait {
            let flush = |holder: &str| {
                if let Some(link) = self.0.agents.link(holder) {
                    link.hint(ToAgent::Flush(a.run.clone()));
                }
            };
            run.lookup_later(&a, &ids, flush).await
        } else {
            run.lookup(&a, &ids, request.share).await
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
        let (run, a) = self.run(request.assignment.as_ref(), &peer)?;
        let admission = run.admission.clone();
        drop(run);
        let pack = PackId::try_from(&request.pack[..]).map_err(|_| status::nonsense("a pack id of another length"))?;
        if request.length < PACK_BYTES_MIN {
            return Err(status::nonsense("fewer bytes than a pack has"));
        }
        if request.length > PACK_BYTES_MAX {
            return Err(Status::resource_exhausted("more bytes than a pack can have"));
        }
        let id = RunId::try_from(&a.run[..]).map_err(|_| status::nonsense("a run id of another length"))?;
        let of = (id, a.volume.clone());
        if admission.is_of_another(&pack, peer.node().unwrap_or_default(), &id) {
            return Err(status::backup(&BackupError::Foreign(pack)));
        }
        let admitted = admission.admit(peer.node().unwrap_or_default(), of, pack, request.length).await;
        // The call may have waited for long: the assignment is checked again.
        let (run, a) = self.run(request.assignment.as_ref(), &peer)?;
        let grant = run.grant(&a.volume, pack, request.length, request.crc32).await.map_err(|e| status::backup(&e))?;
        admitted.granted();
        Ok(Response::new(wire::GrantReply { grant: Some(convert::put_grant(&grant)) }))
    }

    async fn seal(&self, request: Request<wire::SealRequest>) -> Result<Response<wire::SealReply>, Status> {
        let peer = peer_of(&request)?;
        let request = request.into_inner();
        let (run, a) = self.run(request.assignment.as_ref(), &peer)?;
        let (claim, entries) =
            convert::sealed(&request).ok_or_else(|| status::nonsense("a pack that contradicts itself"))?;
        let admission = run.admission.clone();
        let pack = claim.id;
        let sealing = async move {
            let sealed = run.seal(&a.volume, claim, entries).await.map_err(|e| status::backup(&e));
            admission.done(&pack);
            sealed
        };
        whole(sealing).await?;
        Ok(Response::new(wire::SealReply {}))
    }

    async fn checkpoint(
        &self,
        request: Request<wire::CheckpointRequest>,
    ) -> Result<Response<wire::CheckpointReply>, Status> {
        let peer = peer_of(&request)?;
        let request = request.into_inner();
        let (run, a) = self.run(request.assignment.as_ref(), &peer)?;
        let work =
            async move { run.checkpoint(&a.volume, a.attempt, request.regions).await.map_err(|e| status::backup(&e)) };
        whole(work).await?;
        Ok(Response::new(wire::CheckpointReply {}))
    }

    async fn finish(&self, request: Request<wire::FinishRequest>) -> Result<Response<wire::FinishReply>, Status> {
        let peer = peer_of(&request)?;
        let request = request.into_inner();
        let (run, a) = self.run(request.assignment.as_ref(), &peer)?;
        let runs = self.0.runs.clone();
        let work = async move {
            let id = RunId::try_from(&a.run[..]).map_err(|_| status::nonsense("a run id of another length"))?;
            run.finish(&a.volume, request).await.map_err(|e| status::backup(&e))?;
            runs.tell(&id, RunEvent::Finished(a.volume));
            Ok(())
        };
        whole(work).await?;
        Ok(Response::new(wire::FinishReply {}))
    }
}
