//! Extents, and the regions and ranges that they fill: the agent reports a volume's content in them, and receives the
//! parent's.

use milkrun_repository::chunk::pages::PageDigest;
use milkrun_repository::id::ChunkId;

/// A run of a region, or of the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// Zeros.
    Hole {
        /// Bytes.
        len: u32,
    },
    /// What the parent has at the same place, whatever that is.
    Kept {
        /// Bytes.
        len: u32,
    },
    /// A part of a chunk, or all of it.
    Chunk {
        /// Bytes.
        len: u32,
        /// The chunk.
        id: ChunkId,
        /// Where these bytes begin in the chunk.
        chunk_offset: u32,
        /// Bytes of the chunk.
        chunk_len: u32,
    },
}

impl Run {
    /// Bytes covered.
    pub fn len(&self) -> u32 {
        match *self {
            Self::Hole { len } | Self::Kept { len } | Self::Chunk { len, .. } => len,
        }
    }

    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A run, and what is known of its pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The run.
    pub run: Run,
    /// A digest for each page. Empty if the digests are unknown, or if the coordinator has them already.
    pub pages: Vec<PageDigest>,
}

/// An extent of the parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentExtent {
    /// The extent.
    pub extent: Extent,
    /// Its chunk is fragmented: the extent is stored anew if anything near it changes.
    pub retire: bool,
}

/// A finished region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it begins.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
    /// It equals the parent's region byte for byte.
    pub unchanged: bool,
    /// Its extents. None: a hole, or an unchanged region.
    pub extents: Vec<Extent>,
}

/// A run of the parent's volume.
#[derive(Clone, Debug)]
pub struct ParentRange {
    /// Where it begins.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
    /// Its extents. None: a hole.
    pub extents: Vec<ParentExtent>,
}
