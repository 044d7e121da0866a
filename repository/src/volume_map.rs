//! A volume as a tree of extents. Leaves and inner nodes are chunks in metadata packs, shared between restore points.
//!
//! ```text
//! leaf   "leaf", version u8 = 1, 3 reserved
//!        u32 n, n × pack id 16
//!        u32 n, n × extent:  hole  kind u8 = 0, length u32
//!                            data  kind u8 = 1, codec u8, pack number u16, length u32, offset in chunk u32,
//!                                  plain length u32, sealed length u32, slot u32, offset in pack u32, chunk id 32
//! node   "node", version u8 = 1, level u8 (1: children are leaves), 2 reserved
//!        u32 n, n × child:   hole  kind u8 = 0, length u64
//!                            child kind u8 = 1, length u64, chunk id 32, place 36
//! ```
//! A leaf says what a range of the volume is (ids of plaintext) and, beside each id, where that chunk was placed when the
//! leaf was written: so a restore needs the root, its placement and its maps, and no index. Should a pack be rewritten
//! later, the placement's list of forwards tells where its slots went; the root and its maps stay.

mod build;
mod walk;

pub use build::MapBuilder;
pub use walk::{MapCursor, MapSource, Step};

use crate::chunk::codec::Codec;
use crate::id::{ChunkId, PackId};
use crate::pack::Place;
use crate::wire::{Decoder, Encoder, Malformed};

/// A leaf covers no more.
pub const LEAF_BYTES_MAX: u64 = 64 << 20;
/// Children of an inner node.
pub const FAN_OUT: usize = 256;
/// More levels than any u64 of bytes needs.
const LEVEL_MAX: u8 = 8;

/// A run of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Zeros that are stored nowhere.
    Hole {
        /// Bytes.
        len: u32,
    },
    /// A part of a chunk, or all of it.
    Data {
        /// Bytes.
        len: u32,
        /// Where they begin in the chunk's plaintext.
        chunk_offset: u32,
        /// The chunk.
        id: ChunkId,
        /// Where it is stored.
        place: Place,
    },
}

impl Extent {
    /// Bytes covered.
    pub fn len(&self) -> u32 {
        match *self {
            Self::Hole { len } | Self::Data { len, .. } => len,
        }
    }

    /// Never true of a decoded extent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A leaf: the extents of up to 64 MiB of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// In order, without gaps.
    pub extents: Vec<Extent>,
}

impl Leaf {
    /// Bytes covered.
    pub fn len(&self) -> u64 {
        self.extents.iter().map(|e| u64::from(e.len())).sum()
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Whether it is one hole.
    pub fn is_hole(&self) -> bool {
        self.extents.iter().all(|e| matches!(e, Extent::Hole { .. }))
    }

    /// The packs that it needs, each once, sorted.
    pub fn packs(&self) -> Vec<PackId> {
        let mut packs: Vec<PackId> = self
            .extents
            .iter()
            .filter_map(|e| match e {
                Extent::Data { place, .. } => Some(place.pack),
                Extent::Hole { .. } => None,
            })
            .collect();
        packs.sort_unstable();
        packs.dedup();
        packs
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let packs = self.packs();
        let mut e = Encoder::new();
        e.raw(b"leaf").u8(1).raw(&[0; 3]).count(packs.len());
        for pack in &packs {
            e.raw(pack.as_bytes());
        }
        e.count(self.extents.len());
        for extent in &self.extents {
            match *extent {
                Extent::Hole { len } => {
                    e.u8(0).u32(len);
                }
                Extent::Data { len, chunk_offset, id, place } => {
                    let number = packs.binary_search(&place.pack).ok().and_then(|n| u16::try_from(n).ok());
                    e.u8(1).u8(place.codec as u8).u16(number.unwrap_or(u16::MAX)).u32(len).u32(chunk_offset);
                    e.u32(place.plain_len).u32(place.sealed_len).u32(place.slot).u32(place.offset).raw(id.as_bytes());
                }
            }
        }
        e.finish()
    }

    /// Parses a leaf.
    ///
    /// # Errors
    /// [`Malformed`] unless it is exactly what [`Leaf::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut d = Decoder::new(bytes);
        head(&mut d, *b"leaf")?;
        d.reserved(3, "reserved")?;
        let n = d.count(PackId::LEN, "pack count")?;
        let mut packs = Vec::with_capacity(n);
        for _ in 0..n {
            packs.push(PackId::from_bytes(d.array("pack id")?));
        }
        let n = d.count(5, "extent count")?;
        let mut leaf = Self { extents: Vec::with_capacity(n) };
        let mut total = 0_u64;
        for _ in 0..n {
            let extent = match d.u8("extent kind")? {
                0 => Extent::Hole { len: d.u32("hole length")? },
                1 => {
                    let codec = Codec::from_u8(d.u8("codec")?).ok_or_else(|| d.bad("codec"))?;
                    let pack = *packs.get(usize::from(d.u16("pack number")?)).ok_or_else(|| d.bad("pack number"))?;
                    let (len, chunk_offset) = (d.u32("length")?, d.u32("chunk offset")?);
                    let plain_len = d.u32("plain length")?;
                    let place = Place {
                        pack,
                        codec,
                        plain_len,
                        sealed_len: d.u32("sealed length")?,
                        slot: d.u32("slot")?,
                        offset: d.u32("offset")?,
                    };
                    if chunk_offset.checked_add(len).is_none_or(|end| end > plain_len) {
                        return Err(d.bad("extent outside of its chunk"));
                    }
                    Extent::Data { len, chunk_offset, id: ChunkId::from_bytes(d.array("chunk id")?), place }
                }
                _ => return Err(d.bad("extent kind")),
            };
            total += u64::from(extent.len());
            if extent.is_empty() || total > LEAF_BYTES_MAX {
                return Err(d.bad("extent length"));
            }
            leaf.extents.push(extent);
        }
        d.finish("end of leaf")?;
        // Each pack listed is used, in order: one leaf has one encoding.
        if leaf.packs() != packs || packs.len() > usize::from(u16::MAX) {
            return Err(Malformed { what: "pack table", at: 8 });
        }
        Ok(leaf)
    }
}

/// A stored map chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRef {
    /// Its id.
    pub id: ChunkId,
    /// Where it is.
    pub place: Place,
}

/// A child of an inner node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// Bytes of the volume below it.
    pub len: u64,
    /// Its chunk, or a hole.
    pub chunk: Option<MapRef>,
}

/// An inner node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// 1: its children are leaves.
    pub level: u8,
    /// In order; neighbouring holes are one.
    pub children: Vec<Child>,
}

impl Node {
    /// Bytes covered.
    pub fn len(&self) -> u64 {
        self.children.iter().map(|c| c.len).sum()
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.children.is_empty()
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new();
        e.raw(b"node").u8(1).u8(self.level).raw(&[0; 2]).count(self.children.len());
        for child in &self.children {
            match &child.chunk {
                None => {
                    e.u8(0).u64(child.len);
                }
                Some(r) => {
                    e.u8(1).u64(child.len).raw(r.id.as_bytes());
                    r.place.encode(&mut e);
                }
            }
        }
        e.finish()
    }

    /// Parses a node.
    ///
    /// # Errors
    /// [`Malformed`] unless it is exactly what [`Node::encode`] writes for a sound node.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut d = Decoder::new(bytes);
        head(&mut d, *b"node")?;
        let level = d.u8("level")?;
        if !(1..=LEVEL_MAX).contains(&level) {
            return Err(d.bad("level"));
        }
        d.reserved(2, "reserved")?;
        let n = d.count(9, "child count")?;
        if n > FAN_OUT {
            return Err(d.bad("child count"));
        }
        let mut node = Self { level, children: Vec::with_capacity(n) };
        let mut total = 0_u64;
        for _ in 0..n {
            let kind = d.u8("child kind")?;
            let len = d.u64("child length")?;
            let chunk = match kind {
                0 => None,
                1 => Some(MapRef { id: ChunkId::from_bytes(d.array("chunk id")?), place: Place::decode(&mut d)? }),
                _ => return Err(d.bad("child kind")),
            };
            let two_holes = chunk.is_none() && node.children.last().is_some_and(|c| c.chunk.is_none());
            total = total.checked_add(len).filter(|_| len > 0 && !two_holes).ok_or_else(|| d.bad("child length"))?;
            node.children.push(Child { len, chunk });
        }
        d.finish("end of node")?;
        Ok(node)
    }
}

/// The root of a map. A volume of holes alone has no chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRoot {
    /// Bytes of the volume.
    pub len: u64,
    /// 0: the chunk is a leaf.
    pub level: u8,
    /// The topmost chunk.
    pub chunk: Option<MapRef>,
}

fn head(d: &mut Decoder<'_>, tag: [u8; 4]) -> Result<(), Malformed> {
    if d.array::<4>("tag")? != tag {
        return Err(d.bad("tag"));
    }
    if d.u8("version")? != 1 {
        return Err(d.bad("version"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
