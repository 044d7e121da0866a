//! One volume, from its source to a finished map at the coordinator. In reading order:
//!
//! 1. [`image`] walks the regions of a device or image, several at once, in order at the end; [`stream`] walks a stream
//! 2. [`sample`] checks a list of changes, if there is one, before anything rests on it
//! 3. `compare` tells what is unchanged while it is read; [`cut`] decides what is hole, unchanged, known by prediction, or cut anew; identifies
//! 4. [`claims`] lets one run upload a chunk once; the coordinator says what is known ([`lookups`])
//! 5. [`remote_chunks`] waits for what other nodes are storing
//! 6. [`open_packs`] compresses and seals into open packs, uploads full ones by grant, and has them sealed
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

/// Of a region of which less is read only that is kept. No chunk is longer, unless a repository is configured so.
pub const SMALL_BYTES: u64 = 1 << 20;
/// Regions of a volume that were begun and are not handed over. Those of which much is read are far fewer (see [`image`]).
pub const IN_FLIGHT: usize = 128;
/// Mostly far less is read of such a region. A buffer that is made anew is cleared first.
pub const FEW_BYTES: u64 = 128 << 10;

/// What all volumes of an agent share.
pub struct Engine {
    /// CPU work.
    pub cpu: Workers,
    /// Device I/O.
    pub io: Arc<Workers>,
    /// Reads of few pages here and there.
    pub readers: sparse_read::Readers,
    /// Bytes in flight.
    pub budget: Budget,
    /// Buffers of one region each.
    pub regions: BufferPool,
    /// Buffers for little of a region: [`SMALL_BYTES`] each.
    pub small: BufferPool,
    /// Buffers for a few pages of a region: [`FEW_BYTES`] each.
    pub few: BufferPool,
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
    /// A chunk of which a page changed is stored whole, and no digests of pages are kept.
    pub whole_chunks: bool,
    /// The coordinator knows runs that are kept, and tells of the parent in outline where that will do.
    pub may_keep: bool,
    /// Where it goes on from: what lies before was handed over by an earlier attempt.
    pub resume_at: u64,
    /// What was done so far.
    pub counters: Arc<Counters>,
    /// Packs that were sent on their way in this assignment's name and have not arrived.
    pub uploads: tokio::sync::watch::Sender<Uploads>,
}

/// Packs on their way in an assignment's name: the coordinator takes them only as long as that is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uploads {
    /// How many.
    pub under_way: usize,
    /// No more may set out: the volume is about to be done.
    pub closed: bool,
}

impl VolumeJob {
    /// Waits until all packs that went in this assignment's name have arrived; no more set out after that.
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
    /// Bytes of the volume that are dealt with: what they need is in the store.
    pub done: AtomicU64,
    /// Bytes in all (0: not known).
    pub total: AtomicU64,
    /// Bytes that were really read, each counted once.
    pub read: AtomicU64,
    /// Plaintext that was not known before.
    pub new: AtomicU64,
    /// Bytes that were stored for it.
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
    /// A list of changes that an earlier attempt was read by is wrong.
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
        /// It may go well another time, or elsewhere.
        passing: bool,
    },
}

impl BackupError {
    /// Whether it may go well another time, or on another node: nothing is wrong with the volume.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Call(CallError::Refused(status)) => status.code() == tonic::Code::Unavailable,
            Self::Call(CallError::Lost(_)) => true,
            Self::Store { source: CreateError::Failed(f), .. } => f.transient(),
            Self::Stopped { passing, .. } => *passing,
            _ => false,
        }
    }

    /// What others hear who stop because of this.
    pub(crate) fn stops_others(&self) -> Self {
        let why = match self {
            Self::Stopped { why, .. } => why.clone(),
            e => milkrun_repository::point::catalog::chain(e),
        };
        Self::Stopped { why, passing: self.is_passing() }
    }
}
