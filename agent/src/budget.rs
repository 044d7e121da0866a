//! The budget of bytes in flight. Half of it is for regions of volumes (on restore, for ranges of packs), half for packs on
//! their way; each buffer holds a permit for as long as it lives. The halves are apart, so that neither can starve the
//! other: a region that waits for room in a pack never holds what the pack needs to leave.
//!
//! A region of which a list of changes names little takes 1 MiB of the budget, though mostly its buffer has 128 KiB.
//!
//! Not in the budget, in the agent:
//!
//! * per restored volume, up to 16 MiB of opened chunks that lie with whoever writes, and their spare buffers;
//! * idle buffers for ranges, an eighth of the budget; up to 48 MiB of idle small buffers;
//! * one buffer of up to 1 MiB for each of the 16 threads that read, in which regions are compared;
//! * zstd tables per thread;
//! * digests of regions that wait for their packs, at most 32 KiB each;
//! * 16 bytes for each range of a list of changes.
//!
//! In the coordinator:
//!
//! * index entries that are in no segment yet: 512 Ki of them, about 60 MB;
//! * the mapped index, of which the filter stays resident: about 9 bits per chunk, 4.7 MB per TiB at 256 KiB;
//! * leaves of the parent that agents were told of; per volume up to 32 leaves that are being made;
//! * 48 bytes for each run of an extent that stands in no object of the journal yet: those of one call of a volume, and of the
//!   calls before it whose object could not be written;
//! * the places of the chunks of three times 32 leaves, which are counted together;
//! * 68 bytes and a table's share for each leaf and each list of digests that a run writes or takes over from its parent;
//! * 12 MiB of windows per map reader, and eight of 512 KiB on their way;
//! * the window of a plan, up to 131,072 writes of 16 bytes, and a few pages of it on the wire, 24 bytes for each write there.
//!
//! In `verify`: four packs, 16 bytes for each chunk of each leaf and, with `--data`, 16 more for each that has digests of pages.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

const MIB: u64 = 1 << 20;

/// The smallest budget that works: two regions and two packs.
pub const LEAST: u64 = 64 * MIB;
/// The budget without `--memory`.
pub const DEFAULT: u64 = 256 * MIB;
/// The largest size of a pack, however large the budget is.
const PACK_BYTES_MAX: u64 = 32 * MIB;

/// The budget.
#[derive(Clone)]
pub struct Budget {
    transfers: Arc<Semaphore>,
    transfer_mib: u32,
    packs: Arc<Semaphore>,
    pack_bytes: usize,
    pack_count: usize,
}

/// Room for one buffer; dropping it gives the room back.
#[derive(Debug)]
pub struct Permit {
    _room: OwnedSemaphorePermit,
    bytes: f64,
}

/// Bytes of the budget that buffers hold now.
const IN_USE: &str = "milkrun_agent_budget_in_use_bytes";

impl Permit {
    fn of(room: OwnedSemaphorePermit, bytes: u64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        let bytes = bytes as f64;
        metrics::gauge!(IN_USE).increment(bytes);
        Self { _room: room, bytes }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        metrics::gauge!(IN_USE).decrement(self.bytes);
    }
}

impl Budget {
    /// Divides `bytes` (at least [`LEAST`]).
    pub fn new(bytes: u64) -> Self {
        let bytes = bytes.max(LEAST);
        let pack = (bytes / 8).min(PACK_BYTES_MAX);
        let transfer_mib = u32::try_from(bytes / 2 / MIB).unwrap_or(u32::MAX).min(1 << 20);
        let pack_count = usize::try_from(bytes / 2 / pack).unwrap_or(2).min(256);
        Self {
            transfers: Arc::new(Semaphore::new(transfer_mib as usize)),
            transfer_mib,
            packs: Arc::new(Semaphore::new(pack_count)),
            pack_bytes: usize::try_from(pack).unwrap_or(usize::MAX),
            pack_count,
        }
    }

    /// Waits for room for `bytes` of a volume or of ranges. A request for more than the whole half gets the whole half.
    pub async fn transfer(&self, bytes: u64) -> Permit {
        let n = self.mib(bytes);
        Permit::of(Self::acquire(&self.transfers, n).await, u64::from(n) * MIB)
    }

    /// Room for `bytes` if there is some now.
    pub fn try_transfer(&self, bytes: u64) -> Option<Permit> {
        let n = self.mib(bytes);
        let room = self.transfers.clone().try_acquire_many_owned(n).ok()?;
        Some(Permit::of(room, u64::from(n) * MIB))
    }

    fn mib(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(MIB)).unwrap_or(u32::MAX).clamp(1, self.transfer_mib)
    }

    /// Waits for room for a pack.
    pub async fn pack(&self) -> Permit {
        Permit::of(Self::acquire(&self.packs, 1).await, self.pack_bytes as u64)
    }

    /// Room for a pack if there is some now.
    pub fn try_pack(&self) -> Option<Permit> {
        let room = self.packs.clone().try_acquire_owned().ok()?;
        Some(Permit::of(room, self.pack_bytes as u64))
    }

    #[expect(clippy::expect_used, reason = "the semaphores are never closed")]
    async fn acquire(semaphore: &Arc<Semaphore>, n: u32) -> OwnedSemaphorePermit {
        semaphore.clone().acquire_many_owned(n).await.expect("never closed")
    }

    /// Bytes of a pack: an eighth of the budget, at most 32 MiB.
    pub fn pack_bytes(&self) -> usize {
        self.pack_bytes
    }

    /// How many packs may be open or uploading at once.
    pub fn pack_count(&self) -> usize {
        self.pack_count
    }
}
