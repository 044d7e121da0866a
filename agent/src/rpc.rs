//! The agent's side of the wire: calls for one assignment, and the only place of this crate that names proto types
//! besides [`crate::session`].

mod extents;
mod grants;
mod plan;

use milkrun_proto::MESSAGE_BYTES_MAX;
use milkrun_proto::agent::v1 as wire;
use milkrun_proto::agent::v1::download_client::DownloadClient;
use milkrun_proto::agent::v1::session_client::SessionClient;
use milkrun_proto::agent::v1::upload_client::UploadClient;
use milkrun_repository::id::{ChunkId, PackId};
use milkrun_repository::pack::{Place, SealedKey};
use milkrun_repository::store::Version;
use milkrun_repository::store::grant::PutGrant;
use tonic::transport::Channel;

use crate::extent::Region;
use crate::outcome::Outcome;
pub use extents::ParentRanges;
use extents::extent_to_wire;
use grants::put_grant;
pub use plan::{GrantedRange, GrantedSlot, Page, Pages};

/// A call that the coordinator refused, or that did not reach it.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It answered with a status.
    #[error("the coordinator refuses: {}", .0.message())]
    Refused(Box<tonic::Status>),
    /// The connection is broken, or was refused.
    #[error("no connection to the coordinator: {0}")]
    Lost(String),
    /// Its answer makes no sense.
    #[error("the coordinator's answer makes no sense: {0}")]
    Nonsense(&'static str),
}

impl From<tonic::Status> for CallError {
    fn from(status: tonic::Status) -> Self {
        // A status with a source was made on this side; one that the coordinator sent has none.
        match std::error::Error::source(&status).map(milkrun_repository::point::catalog::chain) {
            Some(why) => Self::Lost(why),
            None => Self::Refused(Box::new(status)),
        }
    }
}

/// What the coordinator says about a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is stored.
    Known,
    /// This agent stores it.
    Yours,
    /// Another node is storing it.
    Remote,
}

/// A pack as it is announced to the coordinator.
#[derive(Clone, Debug)]
pub struct SealedClaim {
    /// Its id.
    pub id: PackId,
    /// Bytes.
    pub length: u64,
    /// CRC-32.
    pub crc32: u32,
    /// BLAKE3.
    pub digest: [u8; 32],
    /// The sealed key.
    pub key: SealedKey,
    /// The version that the store gave it, once it is stored.
    pub version: Option<Version>,
}

/// Calls of one assignment.
#[derive(Clone)]
pub struct Coordinator {
    upload: UploadClient<Channel>,
    download: DownloadClient<Channel>,
    assignment: wire::Assignment,
}

/// A client of the session service.
pub fn session_client(channel: Channel) -> SessionClient<Channel> {
    SessionClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

impl Coordinator {
    /// For one assignment.
    pub fn new(channel: Channel, assignment: wire::Assignment) -> Self {
        let upload = UploadClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let download = DownloadClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Self { upload, download, assignment }
    }

    fn assignment(&self) -> Option<wire::Assignment> {
        Some(self.assignment.clone())
    }

    /// The parent's extents, with their page digests if `pages`. In `outline`, everything but holes is `kept`, and
    /// neighbours are joined.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn parent(&self, pages: bool, outline: bool) -> Result<ParentRanges, CallError> {
        let request = wire::ParentRequest { assignment: self.assignment(), pages, outline };
        Ok(ParentRanges(self.upload.clone().parent(request).await?.into_inner()))
    }

    /// So many random ranges of the parent, with their page digests.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn sample(&self, leaves: u32) -> Result<ParentRanges, CallError> {
        let request = wire::SampleRequest { assignment: self.assignment(), leaves };
        Ok(ParentRanges(self.upload.clone().sample(request).await?.into_inner()))
    }

    /// Which of these chunks are known. With `share`, a chunk that another node is storing is [`Answer::Remote`]; else
    /// it is [`Answer::Yours`] too.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn lookup(&self, ids: &[ChunkId], share: bool) -> Result<Vec<Answer>, CallError> {
        self.ask(ids, share, false).await
    }

    /// Like [`Self::lookup`], for chunks that another node was storing: waits for some seconds until an answer changes.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn lookup_later(&self, ids: &[ChunkId]) -> Result<Vec<Answer>, CallError> {
        self.ask(ids, true, true).await
    }

    async fn ask(&self, ids: &[ChunkId], share: bool, wait: bool) -> Result<Vec<Answer>, CallError> {
        let mut bytes = Vec::with_capacity(ids.len() * ChunkId::LEN);
        for id in ids {
            bytes.extend_from_slice(id.as_bytes());
        }
        let request = wire::LookupRequest { assignment: self.assignment(), ids: bytes.into(), share, wait };
        let known = self.upload.clone().lookup(request).await?.into_inner().known;
        if known.len() != ids.len() {
            return Err(CallError::Nonsense("as many answers as ids"));
        }
        let answer = |&known: &u8| match known {
            0 => Ok(Answer::Yours),
            1 => Ok(Answer::Known),
            2 if share => Ok(Answer::Remote),
            _ => Err(CallError::Nonsense("an answer to a lookup")),
        };
        known.iter().map(answer).collect()
    }

    /// A grant to store a pack.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn grant(&self, pack: &SealedClaim) -> Result<PutGrant, CallError> {
        let request = wire::GrantRequest {
            assignment: self.assignment(),
            pack: pack.id.as_bytes().to_vec().into(),
            length: pack.length,
            crc32: pack.crc32,
        };
        let reply = self.upload.clone().grant(request).await?.into_inner();
        put_grant(reply.grant).ok_or(CallError::Nonsense("a grant"))
    }

    /// Asks the coordinator to check a stored pack and to make its chunks known.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn seal(&self, pack: &SealedClaim, entries: &[(ChunkId, Place)]) -> Result<(), CallError> {
        let mut bytes = Vec::with_capacity(entries.len() * 45);
        for (id, place) in entries {
            bytes.extend_from_slice(id.as_bytes());
            bytes.extend_from_slice(&place.offset.to_le_bytes());
            bytes.extend_from_slice(&place.sealed_len.to_le_bytes());
            bytes.extend_from_slice(&place.plain_len.to_le_bytes());
            bytes.push(place.codec as u8);
        }
        let sealed_key = [pack.key.encapsulated.as_slice(), &pack.key.ciphertext].concat();
        let request = wire::SealRequest {
            assignment: self.assignment(),
            pack: pack.id.as_bytes().to_vec().into(),
            length: pack.length,
            crc32: pack.crc32,
            digest: pack.digest.to_vec().into(),
            sealed_key: sealed_key.into(),
            slots: pack.key.slots,
            directory_length: pack.key.directory_len,
            entries: bytes.into(),
            version: pack.version.as_ref().map(|v| v.0.clone()).unwrap_or_default(),
        };
        self.upload.clone().seal(request).await?;
        Ok(())
    }

    /// Hands over finished regions.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn checkpoint(&self, regions: Vec<Region>) -> Result<(), CallError> {
        let regions = regions
            .into_iter()
            .map(|r| wire::Region {
                offset: r.offset,
                length: r.len,
                unchanged: r.unchanged,
                extents: r.extents.iter().map(extent_to_wire).collect(),
            })
            .collect();
        self.upload.clone().checkpoint(wire::CheckpointRequest { assignment: self.assignment(), regions }).await?;
        Ok(())
    }

    /// The volume is done.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn finish(&self, outcome: &Outcome, read: u64, new: u64, stored: u64) -> Result<(), CallError> {
        let request = wire::FinishRequest {
            assignment: self.assignment(),
            length: outcome.len,
            sector_bytes: outcome.sector_bytes,
            read_bytes: read,
            new_bytes: new,
            stored_bytes: stored,
            notes: outcome.notes.clone(),
            by_list: outcome.by_list,
            sampled_bytes: outcome.sampled_bytes,
            file_system: outcome.file_system.kind.clone(),
            file_system_label: outcome.file_system.label.clone(),
        };
        self.upload.clone().finish(request).await?;
        Ok(())
    }

    /// The plan of a restore, without what ends before `from`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn plan(&self, in_order: bool, from: u64) -> Result<Pages, CallError> {
        let request =
            wire::PlanRequest { assignment: self.assignment(), in_order, from, packed: true, grouped: in_order };
        Ok(Pages(self.download.clone().plan(request).await?.into_inner()))
    }
}
