//! The agent's side of the wire: calls for one assignment, and the only place of this crate that names proto types
//! besides [`crate::session`].

use milkrun_proto::MESSAGE_BYTES_MAX;
use milkrun_proto::agent::v1 as wire;
use milkrun_proto::agent::v1::download_client::DownloadClient;
use milkrun_proto::agent::v1::session_client::SessionClient;
use milkrun_proto::agent::v1::upload_client::UploadClient;
use milkrun_repository::chunk::PAGE;
use milkrun_repository::chunk::codec::Codec;
use milkrun_repository::chunk::pages::DIGEST_LEN;
use milkrun_repository::clock::Moment;
use milkrun_repository::id::{ChunkId, PackId};
use milkrun_repository::pack::{Place, SealedKey, SlotKey};
use milkrun_repository::restore_plan::Write;
use milkrun_repository::store::grant::{GetGrant, PutGrant};
use milkrun_repository::store::{Firmness, Key, Lock, Version};
use tonic::transport::Channel;

use crate::extent::{Extent, ParentExtent, ParentRange, Region, Run};
use crate::outcome::Outcome;

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

/// A stream of the parent's ranges.
pub struct ParentRanges(tonic::Streaming<wire::ParentRange>);

impl ParentRanges {
    /// The next range.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn next(&mut self) -> Result<Option<ParentRange>, CallError> {
        let Some(range) = self.0.message().await? else { return Ok(None) };
        let sum: u64 = range.extents.iter().map(|e| u64::from(e.length)).sum();
        let sound = range.extents.is_empty() || sum == range.length;
        if range.offset.checked_add(range.length).is_none() || !sound {
            return Err(CallError::Nonsense("a range of the parent"));
        }
        let extents = range.extents.iter().map(extent_from_wire).collect::<Result<_, _>>()?;
        Ok(Some(ParentRange { offset: range.offset, len: range.length, extents }))
    }
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

fn extent_to_wire(e: &Extent) -> wire::Extent {
    match e.run {
        Run::Kept { len } => wire::Extent { length: len, kept: true, ..Default::default() },
        Run::Hole { len } => wire::Extent { length: len, ..Default::default() },
        Run::Chunk { len, id, chunk_offset, chunk_len } => wire::Extent {
            length: len,
            chunk: id.as_bytes().to_vec().into(),
            chunk_offset,
            chunk_length: chunk_len,
            pages: e.pages.as_flattened().to_vec().into(),
            ..Default::default()
        },
    }
}

fn extent_from_wire(e: &wire::Extent) -> Result<ParentExtent, CallError> {
    let run = match e.chunk.is_empty() {
        true if e.kept => Run::Kept { len: e.length },
        true => Run::Hole { len: e.length },
        false if e.chunk_offset.checked_add(e.length).is_none_or(|end| end > e.chunk_length) => {
            return Err(CallError::Nonsense("an extent outside of its chunk"));
        }
        false => Run::Chunk {
            len: e.length,
            id: ChunkId::try_from(&e.chunk[..]).map_err(|_| CallError::Nonsense("a chunk id"))?,
            chunk_offset: e.chunk_offset,
            chunk_len: e.chunk_length,
        },
    };
    let (pages, rest) = e.pages.as_chunks::<DIGEST_LEN>();
    if !rest.is_empty() || (!pages.is_empty() && pages.len() != (e.length as usize).div_ceil(PAGE)) {
        return Err(CallError::Nonsense("digests of pages"));
    }
    // Digests are of the chunk's pages: a part that begins within a page has none.
    let pages = if e.chunk_offset.is_multiple_of(PAGE as u32) { pages } else { &[] };
    Ok(ParentExtent { extent: Extent { run, pages: pages.to_vec() }, retire: e.retire })
}

fn lock(l: Option<wire::Lock>) -> Option<Lock> {
    l.map(|l| Lock {
        firmness: if l.compliance { Firmness::Compliance } else { Firmness::Governance },
        until: Moment::from_millis(l.until_ms),
    })
}

fn put_grant(grant: Option<wire::Grant>) -> Option<PutGrant> {
    Some(match grant?.kind? {
        wire::grant::Kind::Presigned(p) => {
            PutGrant::Presigned { url: p.url, headers: p.headers.into_iter().map(|h| (h.name, h.value)).collect() }
        }
        wire::grant::Kind::File(f) => PutGrant::File { root: f.root.into(), key: Key::new(f.key), lock: lock(f.lock) },
    })
}

fn get_grant(grant: Option<wire::Grant>) -> Option<GetGrant> {
    Some(match grant?.kind? {
        wire::grant::Kind::Presigned(p) => {
            GetGrant::Presigned { url: p.url, headers: p.headers.into_iter().map(|h| (h.name, h.value)).collect() }
        }
        wire::grant::Kind::File(f) => GetGrant::File { root: f.root.into(), key: Key::new(f.key) },
    })
}

/// A page of a restore plan.
#[derive(Debug)]
pub struct Page {
    /// Holes: (offset, bytes).
    pub holes: Vec<(u64, u64)>,
    /// Ranges to read.
    pub ranges: Vec<GrantedRange>,
    /// The pages up to this one cover all of the volume before this offset. `None`: this page does not say.
    pub until: Option<u64>,
    /// Its ranges belong to a group that ends with the page that has `until`. Their writes are in no order.
    pub grouped: bool,
}

/// One ranged read with its grant.
#[derive(Debug)]
pub struct GrantedRange {
    /// The pack.
    pub pack: PackId,
    /// The grant to read it.
    pub grant: GetGrant,
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// What to open in it.
    pub slots: Vec<GrantedSlot>,
}

/// A chunk to open, with the key of this slot only.
#[derive(Debug)]
pub struct GrantedSlot {
    /// Its id.
    pub id: ChunkId,
    /// Where it is.
    pub place: Place,
    /// Its key.
    pub key: SlotKey,
    /// Where its parts go.
    pub writes: Vec<Write>,
}

/// The stream of pages.
pub struct Pages(tonic::Streaming<wire::PlanPage>);

impl Pages {
    /// The next page.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn next(&mut self) -> Result<Option<Page>, CallError> {
        let Some(page) = self.0.message().await? else { return Ok(None) };
        let holes = page.holes.iter().map(|h| (h.offset, h.length)).collect();
        let ranges = page.ranges.into_iter().map(range).collect::<Option<_>>();
        let until = (page.until > 0).then_some(page.until);
        let (ranges, grouped) = (ranges.ok_or(CallError::Nonsense("a planned range"))?, page.grouped);
        Ok(Some(Page { holes, ranges, until, grouped }))
    }
}

/// Where the parts of a slot go. Coordinators of the release before send them one by one.
fn writes(slot: &wire::plan_page::Slot) -> Option<Vec<Write>> {
    if slot.packed_writes.is_empty() {
        let write = |w: &wire::plan_page::Write| Write {
            volume_offset: w.volume_offset,
            chunk_offset: w.chunk_offset,
            len: w.length,
        };
        return Some(slot.writes.iter().map(write).collect());
    }
    let (triples, rest) = slot.packed_writes.as_chunks::<3>();
    let write = |&[volume_offset, chunk_offset, len]: &[u64; 3]| {
        Some(Write { volume_offset, chunk_offset: chunk_offset.try_into().ok()?, len: len.try_into().ok()? })
    };
    rest.is_empty().then(|| triples.iter().map(write).collect())?
}

fn range(r: wire::plan_page::Range) -> Option<GrantedRange> {
    let pack = PackId::try_from(&r.pack[..]).ok()?;
    let slots = r.slots.into_iter().map(|s| {
        let place = Place {
            pack,
            slot: s.slot,
            offset: s.offset,
            sealed_len: s.sealed_length,
            plain_len: s.plain_length,
            codec: Codec::from_u8(u8::try_from(s.codec).ok()?)?,
        };
        // The chunk lies inside the range, and each write inside its chunk: no other code has to check this again.
        let inside = u64::from(place.offset) >= r.start && place.end() <= r.end && place.is_of_a_chunk();
        let writes = writes(&s)?;
        let inside_chunk = |w: &Write| w.chunk_offset.checked_add(w.len).is_some_and(|end| end <= s.plain_length);
        let sound = !writes.is_empty() && writes.iter().all(|w| w.len > 0 && inside_chunk(w));
        (inside && sound).then_some(())?;
        let key: [u8; 32] = s.key[..].try_into().ok()?;
        Some(GrantedSlot { id: ChunkId::try_from(&s.chunk[..]).ok()?, place, key: key.into(), writes })
    });
    let slots = slots.collect::<Option<Vec<_>>>()?;
    // Offsets within a pack have 32 bits: no pack has a longer range, and no buffer is allocated for one.
    (r.start < r.end && r.end <= u64::from(u32::MAX)).then_some(())?;
    Some(GrantedRange { pack, grant: get_grant(r.grant)?, start: r.start, end: r.end, slots })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No buffer is allocated for a range that no pack can have.
    #[test]
    fn ranges_that_no_pack_has_are_refused() {
        let file = wire::grant::File { root: "/r".into(), key: "packs/00/x".into(), ..Default::default() };
        let grant = wire::Grant { kind: Some(wire::grant::Kind::File(file)) };
        let of = |start, end| wire::plan_page::Range {
            pack: vec![7; 16].into(),
            grant: Some(grant.clone()),
            start,
            end,
            ..Default::default()
        };
        assert!(range(of(0, 8 << 20)).is_some());
        for (start, end) in [(5, 5), (6, 5), (0, 1 << 32), (0, u64::MAX)] {
            assert!(range(of(start, end)).is_none(), "{start}..{end}");
        }
        // So is a chunk that no pack can have.
        let with = |plain_length, sealed_length, len| {
            let (chunk, key) = (vec![1; 32].into(), vec![1; 32].into());
            let packed_writes = vec![0, 0, len];
            let slot =
                wire::plan_page::Slot { chunk, key, plain_length, sealed_length, packed_writes, ..Default::default() };
            range(wire::plan_page::Range { slots: vec![slot], ..of(0, 8 << 20) })
        };
        assert!(with(4 << 20, (4 << 20) + 16, 4 << 20).is_some());
        assert!(with((4 << 20) + 1, 100, 1).is_none());
        assert!(with(4096, 4096 + 17, 1).is_none());
        // So is a slot that writes nothing, or more than its chunk has.
        assert!(with(4096, 100, 0).is_none() && with(4096, 100, 4097).is_none());
    }

    /// Both encodings of the writes are read alike, and nonsense in the packed one is refused.
    #[test]
    fn writes_are_read_one_by_one_and_packed() {
        let slot = |numbers: &[u64]| wire::plan_page::Slot { packed_writes: numbers.to_vec(), ..Default::default() };
        let write =
            |volume_offset, chunk_offset, length| wire::plan_page::Write { volume_offset, chunk_offset, length };
        let one_by_one = vec![write(1 << 40, 4096, 8192), write(0, 0, 4096)];
        let one_by_one = wire::plan_page::Slot { writes: one_by_one, ..Default::default() };
        let expected = writes(&one_by_one).unwrap();
        assert_eq!(expected[0], Write { volume_offset: 1 << 40, chunk_offset: 4096, len: 8192 });
        assert_eq!(writes(&slot(&[1 << 40, 4096, 8192, 0, 0, 4096])).unwrap(), expected);
        assert_eq!(writes(&slot(&[])), Some(Vec::new()));
        for nonsense in [&[1][..], &[1, 2, 3, 4], &[0, 1 << 32, 1], &[0, 1, 1 << 32]] {
            assert_eq!(writes(&slot(nonsense)), None, "{nonsense:?}");
        }
    }
}
