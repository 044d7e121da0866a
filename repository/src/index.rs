//! Index segments: where each chunk of a dedup domain is. They only save uploads. Restores and verification read maps and pack
//! directories, so a lost index costs nothing but time.
//!
//! Body of the [envelope](crate::keys::envelope):
//! ```text
//! u32 n, n × segment id 16         segments that this one replaces
//! u32 n, n × pack info             sorted by pack id
//! u32 n, n × 56: chunk id 32, pack number u32, slot u32, offset u32, sealed length u32, plain length u32,
//!                codec u8, 3 reserved                                     strictly sorted by chunk id
//! ```
//! Entries come last and all have one width, so that a memory-mapped segment can be searched in place.

mod cache;
mod known;
mod mapped;

pub use cache::{CacheError, IndexCache};
pub use known::ChunkIndex;
pub use mapped::MappedSegment;

use crate::chunk::codec::Codec;
use crate::clock::Moment;
use crate::id::{ChunkId, PackId, SegmentId};
use crate::pack::{PackKind, Place, SealedKey};
use crate::store::Version;
use crate::wire::{Decoder, Encoder, Malformed};

/// Bytes of an entry.
pub const ENTRY_LEN: usize = 56;

/// What is known of a stored pack: enough to place, lock, check and open it without reading its footer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackInfo {
    /// Its id.
    pub id: PackId,
    /// What it holds.
    pub kind: PackKind,
    /// Bytes of the object.
    pub length: u64,
    /// BLAKE3 of the object.
    pub digest: [u8; 32],
    /// The object's version.
    pub version: Version,
    /// Its sealed key.
    pub key: SealedKey,
    /// The lock's end when this was written; it may be later now.
    pub locked_until: Option<Moment>,
}

impl PackInfo {
    const LEAST: usize = 16 + 8 + 8 + 32 + 4 + SealedKey::ENCODED_LEN + 8;

    pub(crate) fn encode(&self, e: &mut Encoder) {
        e.raw(self.id.as_bytes()).u8(self.kind as u8).raw(&[0; 7]).u64(self.length).raw(&self.digest);
        e.text(&self.version.0);
        self.key.encode(e);
        e.i64(self.locked_until.map_or(0, Moment::millis));
    }

    pub(crate) fn decode(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let id = PackId::from_bytes(d.array("pack id")?);
        let kind = PackKind::from_u8(d.u8("pack kind")?).ok_or_else(|| d.bad("pack kind"))?;
        d.reserved(7, "reserved")?;
        Ok(Self {
            id,
            kind,
            length: d.u64("pack length")?,
            digest: d.array("pack digest")?,
            version: Version(d.text("pack version")?),
            key: SealedKey::decode(d)?,
            locked_until: Some(d.i64("pack lock")?).filter(|&ms| ms != 0).map(Moment::from_millis),
        })
    }

    pub(crate) fn encode_all(packs: &[Self], e: &mut Encoder) {
        e.count(packs.len());
        for p in packs {
            p.encode(e);
        }
    }

    /// They must be strictly sorted; else they are refused.
    pub(crate) fn decode_all(d: &mut Decoder<'_>) -> Result<Vec<Self>, Malformed> {
        let n = d.count(Self::LEAST, "pack count")?;
        let mut out: Vec<Self> = Vec::with_capacity(n);
        for _ in 0..n {
            let pack = Self::decode(d)?;
            if out.last().is_some_and(|last| last.id >= pack.id) {
                return Err(d.bad("pack order"));
            }
            out.push(pack);
        }
        Ok(out)
    }
}

/// A segment in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Segments that this one replaces.
    pub replaces: Vec<SegmentId>,
    /// Packs, sorted by id.
    pub packs: Vec<PackInfo>,
    /// Chunks, sorted by id, each once.
    pub entries: Vec<(ChunkId, Place)>,
}

impl Segment {
    /// Sorts the entries and removes duplicates. Entries of packs that are not listed are dropped.
    pub fn new(mut packs: Vec<PackInfo>, mut entries: Vec<(ChunkId, Place)>) -> Self {
        packs.sort_by_key(|p| p.id);
        packs.dedup_by_key(|p| p.id);
        entries.retain(|(_, place)| packs.binary_search_by_key(&place.pack, |p| p.id).is_ok());
        entries.sort_by_key(|&(id, place)| (id, place.pack, place.slot));
        entries.dedup_by_key(|(id, _)| *id);
        Self { replaces: Vec::new(), packs, entries }
    }

    /// The body's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new();
        e.count(self.replaces.len());
        for id in &self.replaces {
            e.raw(id.as_bytes());
        }
        PackInfo::encode_all(&self.packs, &mut e);
        e.count(self.entries.len());
        for (id, place) in &self.entries {
            let pack = self.packs.binary_search_by_key(&place.pack, |p| p.id).unwrap_or(usize::MAX);
            e.raw(id.as_bytes()).count(pack).u32(place.slot).u32(place.offset).u32(place.sealed_len);
            e.u32(place.plain_len).u8(place.codec as u8).raw(&[0; 3]);
        }
        e.finish()
    }

    /// Parses a body.
    ///
    /// # Errors
    /// [`Malformed`] unless it is exactly what [`Segment::encode`] writes.
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let (head, entries) = Self::decode_head(body)?;
        let mut segment = head;
        let mut last: Option<ChunkId> = None;
        for raw in entries.chunks_exact(ENTRY_LEN) {
            let (id, place) = decode_entry(raw, &segment.packs)?;
            if last.is_some_and(|l| l >= id) {
                return Err(Malformed { what: "entry order", at: 0 });
            }
            last = Some(id);
            segment.entries.push((id, place));
        }
        Ok(segment)
    }

    /// Everything but the entries, and the entries' bytes.
    pub(crate) fn decode_head(body: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let mut d = Decoder::new(body);
        let n = d.count(SegmentId::LEN, "replaced count")?;
        let mut replaces = Vec::with_capacity(n);
        for _ in 0..n {
            replaces.push(SegmentId::from_bytes(d.array("replaced segment")?));
        }
        let packs = PackInfo::decode_all(&mut d)?;
        let n = d.count(ENTRY_LEN, "entry count")?;
        let entries = d.raw(n * ENTRY_LEN, "entries")?;
        d.finish("end of segment")?;
        Ok((Self { replaces, packs, entries: Vec::new() }, entries))
    }
}

pub(crate) fn decode_entry(raw: &[u8], packs: &[PackInfo]) -> Result<(ChunkId, Place), Malformed> {
    let mut d = Decoder::new(raw);
    let id = ChunkId::from_bytes(d.array("chunk id")?);
    let pack = packs.get(d.u32("pack number")? as usize).ok_or_else(|| d.bad("pack number"))?.id;
    let place = Place {
        pack,
        slot: d.u32("slot")?,
        offset: d.u32("offset")?,
        sealed_len: d.u32("sealed length")?,
        plain_len: d.u32("plain length")?,
        codec: Codec::from_u8(d.u8("codec")?).ok_or_else(|| d.bad("codec"))?,
    };
    d.reserved(3, "reserved")?;
    d.finish("end of entry")?;
    Ok((id, place))
}

#[cfg(test)]
mod tests;
