//! The backup of one volume, from its source to a finished map at the coordinator. In reading order:
//!
//! 1. [`image`] walks the regions of a device or image, several at once; they come out in order. [`stream`] walks a
//!    stream
//! 2. [`sample`] checks the changed-block list, if there is one, before it is used
//! 3. `compare` finds unchanged regions while they are read; `sparse_read` reads dirty ranges; [`cut`] decides what is
//!    a hole, what is as predicted and what is cut anew, and identifies new chunks
//! 4. [`claims`] makes sure that this agent uploads a chunk once per run; the coordinator says which chunks are known
//!    ([`lookups`])
//! 5. [`remote_chunks`] waits for chunks that other nodes are storing
//! 6. [`open_packs`] compresses and seals chunks into open packs, uploads full packs by grant, and has them sealed
//! 7. [`checkpoint`] hands over regions in order once all their packs are sealed

pub mod adaptive_level;
pub mod checkpoint;
pub mod claims;
mod compare;
pub mod cut;
pub mod image;
pub mod lookups;
pub mod open_packs;
mod parent;
mod read;
pub mod region_bytes;
pub mod remote_chunks;
pub mod sample;
pub mod sparse_read;
pub mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use milkrun_repository::chunk::page_cutter::PageCutter;
use milkrun_repository::chunk::stream_cutter::StreamCutter;
use milkrun_repository::keys::DomainKey;
use milkrun_repository::store::CreateError;

use crate::budget::Budget;
use crate::buffer::{BufferPool, RangeBuffers};
use crate::device::SourceError;
use crate::device::changes::ChangesError;
pub(crate) use crate::extent::{Extent, ParentExtent, Run};
pub(crate) use crate::outcome::Outcome;
use crate::rpc::{CallError, Coordinator};
use crate::workers::Workers;

/// A region of which no more than this is read takes a small buffer, which holds only what is read. No chunk is longer,
/// unless a repository is configured so.
pub const SMALL_BYTES: u64 = 1 << 20;
/// Regions of a volume that may be in flight: begun, and not handed over. [`image`] allows far fewer of those of which
/// more than [`SMALL_BYTES`] is read.
pub const IN_FLIGHT: usize = 128;
/// Most sparse reads are far smaller than [`SMALL_BYTES`], and take a buffer of this size: a new buffer is cleared
/// first.
pub const SPARSE_BYTES: u64 = 128 << 10;

/// What all volumes of an agent share.
pub struct Engine {
    /// CPU work.
    pub cpu: Workers,
    /// Device I/O.
    pub io: Arc<Workers>,
    /// Sparse reads.
    pub readers: sparse_read::Readers,
    /// Bytes in flight.
    pub budget: Budget,
    /// Buffers of one region each.
    pub regions: BufferPool,
    /// Buffers for a small part of a region: [`SMALL_BYTES`] each.
    pub small: BufferPool,
    /// Buffers for a few pages of a region: [`SPARSE_BYTES`] each.
    pub sparse: BufferPool,
    /// Buffers of one range of a pack each.
    pub ranges: RangeBuffers,
    /// Bytes of a region.
    pub region_bytes: u64,
}

/// One volume's backup.
pub struct VolumeJob {
    /// What all share.
    pub engine: Arc<Engine>,
    /// The coordinator, for this assignment.
    pub coordinator: Coordinator,
    /// Open packs and claims of the run on this agent.
    pub run: Arc<open_packs::RunPacks>,
    /// Identifies chunks.
    pub domain: DomainKey,
    /// For images.
    pub pages: PageCutter,
    /// For streams.
    pub streams: StreamCutter,
    /// Whether the coordinator has a parent to predict from.
    pub has_parent: bool,
    /// The parent's id; empty: none.
    pub parent: String,
    /// A chunk is stored whole if one of its pages changed, and no page digests are kept.
    pub whole_chunks: bool,
    /// The coordinator understands `kept` runs, and sends the parent in outline where that is enough.
    pub may_keep: bool,
    /// Where the backup resumes: everything before it was handed over by an earlier attempt.
    pub resume_at: u64,
    /// What was done so far.
    pub counters: Arc<Counters>,
    /// Uploads under this assignment that are in flight.
    pub uploads: tokio::sync::watch::Sender<Uploads>,
}

/// The uploads under an assignment. The coordinator accepts their packs only as long as the assignment is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uploads {
    /// How many are in flight.
    pub under_way: usize,
    /// No more may begin: the volume is about to be finished.
    pub closed: bool,
}

impl VolumeJob {
    /// Waits until all uploads under this assignment are done. No more begin after that.
    pub async fn close_uploads(&self) {
        let mut uploads = self.uploads.subscribe();
        loop {
            let closed = self.uploads.send_if_modified(|u| {
                u.closed |= u.under_way == 0;
                u.closed
            });
            if closed || uploads.wait_for(|u| u.under_way == 0).await.is_err() {
                return;
            }
        }
    }
}

/// Counters of one volume, for progress and the result.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes of the volume that were checkpointed: their chunks are in the store.
    pub done: AtomicU64,
    /// Bytes of the volume (0: not known).
    pub total: AtomicU64,
    /// Bytes that were really read, each counted once.
    pub read: AtomicU64,
    /// Plaintext bytes of new chunks.
    pub new: AtomicU64,
    /// Bytes that these chunks take in the store.
    pub stored: AtomicU64,
}

impl Counters {
    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// Reads a counter.
    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// Why a volume's backup failed.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The source can't be used, or changed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The list of changes can't be used.
    #[error(transparent)]
    Changes(#[from] ChangesError),
    /// The changed-block list is wrong, and an earlier attempt already used it.
    #[error(
        "the list of changes is wrong: the page at byte {at} changed since {since} and is not named, and a part of the volume was read by it; back it up without that list"
    )]
    WrongList {
        /// The page.
        at: u64,
        /// The point that the list begins at.
        since: milkrun_repository::id::PointId,
    },
    /// A read failed.
    #[error("read error at byte {offset} of {length}")]
    Read {
        /// Where the part that failed begins.
        offset: u64,
        /// The volume's length.
        length: u64,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The coordinator refused, or is gone.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A pack could not be stored.
    #[error("can't store pack {pack}")]
    Store {
        /// Which one.
        pack: milkrun_repository::id::PackId,
        /// Why.
        #[source]
        source: milkrun_repository::store::CreateError,
    },
    /// A pack could not be made.
    #[error("can't make a pack: {0}")]
    Pack(String),
    /// Another part of the run failed first.
    #[error("stopped, because {why}")]
    Stopped {
        /// Why that one failed.
        why: String,
        /// Another attempt, or another node, may succeed.
        passing: bool,
    },
}

impl BackupError {
    /// Whether another attempt, or another node, may succeed: nothing is wrong with the volume.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Call(CallError::Refused(status)) => status.code() == tonic::Code::Unavailable,
            Self::Call(CallError::Lost(_)) => true,
            Self::Store { source: CreateError::Failed(f), .. } => f.transient(),
            Self::Stopped { passing, .. } => *passing,
            _ => false,
        }
    }

    /// The error for the other tasks that stop because of this one.
    pub(crate) fn stops_others(&self) -> Self {
        let why = match self {
            Self::Stopped { why, .. } => why.clone(),
            e => milkrun_repository::point::catalog::chain(e),
        };
        Self::Stopped { why, passing: self.is_passing() }
    }
}
