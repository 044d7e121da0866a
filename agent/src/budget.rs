//! The budget of bytes in flight. Half of it is for regions of volumes (in a restore: for ranges of packs), half for
//! open packs and uploads. Each buffer holds a permit for as long as it lives. The halves are separate, so that neither
//! can starve the other: a region that waits for room in a pack never holds the room that the pack needs for its
//! upload.

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
