//! A volume as a tree of extents. Leaves and inner nodes are chunks in metadata packs, shared between restore points.
//!
//! ```text
//! leaf   "leaf", version u8 = 3, 3 reserved
//!        u32 n, n × pack id 16, sorted
//!        u32 n, n × page list: chunk id 32, place 36
//!        u32 n, n × chunk: chunk id 32, codec u8, pack number u32, plain length u32, sealed length u32, slot u32, offset in pack u32
//!        u32 n, n × extent:  hole  kind u8 = 0, length u32
//!                            data  kind u8 = 1, length u32, chunk number u32, offset in chunk u32
//!                            data  kind u8 = 2: as 1, then list number u32, first digest u32
//!        before, and still read:
//! leaf   version u8 = 1: no page lists, no table of chunks; each extent says what its chunk is:
//!                            data  kind u8 = 1, codec u8, pack number u16, length u32, offset in chunk u32,
//!                                  plain length u32, sealed length u32, slot u32, offset in pack u32, chunk id 32
//! leaf   version u8 = 2: as version 1, with page lists, and
//!                            data  kind u8 = 2: as 1, then list number u16, first digest u32
//! pages  "page", version u8 = 1, 3 reserved; u32 n, n × digest 8
//! node   "node", version u8 = 1, level u8 (1: children are leaves), 2 reserved
//!        u32 n, n × child:   hole  kind u8 = 0, length u64
//!                            child kind u8 = 1, length u64, chunk id 32, place 36
//! ```
//! A leaf says what a range of the volume is (ids of plaintext). Beside each id it says where that chunk was stored when the leaf
//! was written. So a restore needs the root, its placement and its maps, but no index. If a pack is rewritten later, the
//! placement's list of forwards says where its slots went; the root and its maps stay.

mod build;
mod leaf;
mod leaf_codec;
mod pages;
mod walk;

pub use build::MapBuilder;
pub use leaf::{Extent, Leaf, LeafBuilder, PagesAt, Renumbered};
pub use pages::{PageList, digests_of};
pub use walk::{MapCursor, MapSource, Step};

use crate::id::ChunkId;
use crate::pack::Place;
use crate::wire::{Decoder, Encoder, Malformed};

/// A leaf covers at most this many bytes of a volume.
pub const LEAF_BYTES_MAX: u64 = 64 << 20;
/// How many children an inner node has at most.
pub const FAN_OUT: usize = 256;
/// More levels than any length in a u64 needs.
const LEVEL_MAX: u8 = 8;

/// A stored chunk: a part of a map, or one that a leaf uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MapRef {
    /// Its id.
    pub id: ChunkId,
    /// Where it is.
    pub place: Place,
}

impl MapRef {
    fn encode(&self, e: &mut Encoder) {
        e.raw(self.id.as_bytes());
        self.place.encode(e);
    }

    fn decode(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Ok(Self { id: ChunkId::from_bytes(d.array("chunk id")?), place: Place::decode(d)? })
    }
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
    /// In order; neighbouring holes are merged into one.
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
                    e.u8(1).u64(child.len);
                    r.encode(&mut e);
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
        head(&mut d, *b"node", 1)?;
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
                1 => Some(MapRef::decode(&mut d)?),
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

/// The root of a map. The map of a volume that is one hole has no chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRoot {
    /// Bytes of the volume.
    pub len: u64,
    /// 0: the chunk is a leaf.
    pub level: u8,
    /// The topmost chunk.
    pub chunk: Option<MapRef>,
}

/// Reads the tag and the version at the start of an object.
fn head(d: &mut Decoder<'_>, tag: [u8; 4], version: u8) -> Result<(), Malformed> {
    if d.array::<4>("tag")? != tag {
        return Err(d.bad("tag"));
    }
    if d.u8("version")? == version { Ok(()) } else { Err(d.bad("version")) }
}

#[cfg(test)]
mod tests;
