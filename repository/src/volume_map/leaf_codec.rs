//! The bytes of a leaf.

use super::leaf::{NONE, Part};
use super::{LEAF_BYTES_MAX, Leaf, MapRef, head};
use crate::chunk::codec::Codec;
use crate::id::{ChunkId, PackId};
use crate::pack::Place;
use crate::wire::{Decoder, Encoder, Malformed};

/// Versions 1 and 2 belonged to format 1.
const VERSION: u8 = 3;
/// Tag, version, and the lengths of four tables.
const HEAD_LEN: usize = 8 + 4 * 4;
/// The most bytes of an extent.
const PART_LEN_MAX: usize = 1 + 5 * 4;
/// Bytes of an entry of the table of chunks.
const CHUNK_LEN: usize = ChunkId::LEN + 1 + 5 * 4;

impl Leaf {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let packs = self.packs();
        let lists = self.lists.len() * (ChunkId::LEN + Place::ENCODED_LEN);
        let tables = packs.len() * PackId::LEN + lists + self.chunks.len() * CHUNK_LEN;
        let mut e = Encoder::with_capacity(HEAD_LEN + tables + self.parts.len() * PART_LEN_MAX);
        e.raw(b"leaf").u8(VERSION).raw(&[0; 3]).count(packs.len());
        for pack in &packs {
            e.raw(pack.as_bytes());
        }
        e.count(self.lists.len());
        for list in &self.lists {
            list.encode(&mut e);
        }
        e.count(self.chunks.len());
        for MapRef { id, place } in &self.chunks {
            let pack = packs.binary_search(&place.pack).ok().and_then(|n| u32::try_from(n).ok()).unwrap_or(NONE);
            e.raw(id.as_bytes()).u8(place.codec as u8).u32(pack);
            e.u32(place.plain_len).u32(place.sealed_len).u32(place.slot).u32(place.offset);
        }
        e.count(self.parts.len());
        for &Part { len, chunk, chunk_offset, list, first } in &self.parts {
            match (chunk, list) {
                (NONE, _) => e.u8(0).u32(len),
                (_, NONE) => e.u8(1).u32(len).u32(chunk).u32(chunk_offset),
                _ => e.u8(2).u32(len).u32(chunk).u32(chunk_offset).u32(list).u32(first),
            };
        }
        e.finish()
    }

    /// Parses a leaf.
    ///
    /// # Errors
    /// [`Malformed`] unless it is a leaf whose [`Leaf::encode`] gives these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut d = Decoder::new(bytes);
        head(&mut d, *b"leaf", VERSION)?;
        d.reserved(3, "reserved")?;
        let n = d.count(PackId::LEN, "pack count")?;
        let packs = (0..n).map(|_| Ok(PackId::from_bytes(d.array("pack id")?)));
        let packs: Vec<PackId> = packs.collect::<Result<_, Malformed>>()?;
        if !packs.is_sorted_by(|a, b| a < b) {
            return Err(d.bad("pack table"));
        }
        let n = d.count(ChunkId::LEN + Place::ENCODED_LEN, "page list count")?;
        let lists: Vec<MapRef> = (0..n).map(|_| MapRef::decode(&mut d)).collect::<Result<_, _>>()?;
        decode_extents(d, &packs, lists)
    }
}

/// Which entries of a table are used: all of them must be.
struct Used(Vec<bool>);

impl Used {
    fn none(table: usize) -> Self {
        Self(vec![false; table])
    }

    fn note(&mut self, number: u32) -> Option<()> {
        self.0.get_mut(number as usize).map(|used| *used = true)
    }

    fn all(&self) -> bool {
        self.0.iter().all(|used| *used)
    }
}

/// The chunks, and the extents, which refer to chunks by number.
fn decode_extents(mut d: Decoder<'_>, packs: &[PackId], lists: Vec<MapRef>) -> Result<Leaf, Malformed> {
    let n = d.count(CHUNK_LEN, "chunk count")?;
    let mut leaf = Leaf { chunks: Vec::with_capacity(n), lists, ..Leaf::default() };
    let mut packs_used = Used::none(packs.len());
    for _ in 0..n {
        let id = ChunkId::from_bytes(d.array("chunk id")?);
        let codec = Codec::from_u8(d.u8("codec")?).ok_or_else(|| d.bad("codec"))?;
        let pack = d.u32("pack number")?;
        packs_used.note(pack).ok_or_else(|| d.bad("pack number"))?;
        let (plain_len, sealed_len) = (d.u32("plain length")?, d.u32("sealed length")?);
        let (slot, offset) = (d.u32("slot")?, d.u32("offset")?);
        let place = Place { pack: packs[pack as usize], slot, offset, sealed_len, plain_len, codec };
        leaf.chunks.push(MapRef { id, place });
    }
    let (mut chunks_used, mut lists_used) = (Used::none(n), Used::none(leaf.lists.len()));
    let n = d.count(5, "extent count")?;
    leaf.parts.reserve(n);
    for _ in 0..n {
        let kind = d.u8("extent kind")?;
        let mut part = Part { len: d.u32("length")?, chunk: NONE, chunk_offset: 0, list: NONE, first: 0 };
        if kind > 2 {
            return Err(d.bad("extent kind"));
        }
        if kind > 0 {
            (part.chunk, part.chunk_offset) = (d.u32("chunk number")?, d.u32("chunk offset")?);
            chunks_used.note(part.chunk).ok_or_else(|| d.bad("chunk number"))?;
            let plain_len = leaf.chunks[part.chunk as usize].place.plain_len;
            if part.chunk_offset.checked_add(part.len).is_none_or(|end| end > plain_len) {
                return Err(d.bad("extent outside of its chunk"));
            }
        }
        if kind > 1 {
            (part.list, part.first) = (d.u32("page list")?, d.u32("first digest")?);
            lists_used.note(part.list).ok_or_else(|| d.bad("page list"))?;
        }
        leaf.len += u64::from(part.len);
        if part.len == 0 || leaf.len > LEAF_BYTES_MAX {
            return Err(d.bad("extent length"));
        }
        leaf.parts.push(part);
    }
    if !packs_used.all() || !chunks_used.all() || !lists_used.all() {
        return Err(d.bad("something that is listed and not used"));
    }
    d.finish("end of leaf")?;
    Ok(leaf)
}
