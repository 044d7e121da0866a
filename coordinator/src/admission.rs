//! How much may be on its way to the store, from all nodes together: so many bytes at once, and so many bytes per second. A pack
//! is admitted before its grant is signed, so that no grant grows old while it waits. First come, first served.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use milkrun_repository::clock::Moment;
use milkrun_repository::id::PackId;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::inventory::{Inventory, StoreLimits};

/// A pack that was admitted and not sealed since is not counted for longer: its grant is long over.
const FORGET_AFTER: Duration = Duration::from_secs(15 * 60);

/// Who is let through.
#[derive(Clone)]
pub(crate) struct Admission {
    inventory: Arc<dyn Inventory>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
    /// Who waits, one behind the other.
    queue: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    under_way: HashMap<PackId, UnderWay>,
    /// When the next byte may leave.
    next: Option<Instant>,
}

struct UnderWay {
    bytes: u64,
    since: Instant,
    /// Which node's agent sends it.
    node: String,
}

impl State {
    fn bytes(&mut self, now: Instant) -> u64 {
        self.under_way.retain(|_, u| now - u.since < FORGET_AFTER);
        self.under_way.values().map(|u| u.bytes).sum()
    }
}

/// A pack that was let through, until its grant was given: dropped before, it counts no more.
pub(crate) struct Admitted<'a> {
    admission: &'a Admission,
    pack: Option<PackId>,
}

impl Admitted<'_> {
    /// Its grant is given: it counts until [`Admission::done`].
    pub(crate) fn granted(mut self) {
        self.pack = None;
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if let Some(pack) = &self.pack {
            self.admission.done(pack);
        }
    }
}

impl Admission {
    pub(crate) fn new(inventory: Arc<dyn Inventory>) -> Self {
        Self { inventory, shared: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the inventory says now. One that can't be read stops no run that is under way.
    fn limits(&self) -> StoreLimits {
        self.inventory.loads().map(|l| l.store).unwrap_or_default()
    }

    /// Waits until a pack may leave.
    pub(crate) async fn admit(&self, node: &str, pack: PackId, bytes: u64) -> Admitted<'_> {
        // The lock is fair: whoever came first is let through first.
        let turn = self.shared.queue.lock().await;
        let limits = self.limits();
        loop {
            let changed = self.shared.changed.notified();
            let now = Instant::now();
            {
                let mut state = self.state();
                let others = state.bytes(now);
                // One larger than the limit goes alone.
                if others == 0 || limits.bytes_in_flight.is_none_or(|max| others + bytes <= max) {
                    state.under_way.insert(pack, UnderWay { bytes, since: now, node: node.to_owned() });
                    break;
                }
            }
            // What is never sealed is forgotten after a while, without a word.
            let _ = tokio::time::timeout(Duration::from_secs(5), changed).await;
        }
        let admitted = Admitted { admission: self, pack: Some(pack) };
        if let Some(rate) = limits.bandwidth.at(Moment::now()) {
            let starts = {
                let mut state = self.state();
                let now = Instant::now();
                let starts = state.next.unwrap_or(now).max(now);
                #[expect(clippy::cast_precision_loss, reason = "seconds")]
                let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
                state.next = Some(starts + takes);
                starts
            };
            tokio::time::sleep_until(starts).await;
        }
        drop(turn);
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!("milkrun_store_bytes_in_flight").set(self.state().bytes(Instant::now()) as f64);
        admitted
    }

    /// A pack arrived, or never will.
    pub(crate) fn done(&self, pack: &PackId) {
        self.state().under_way.remove(pack);
        self.shared.changed.notify_waiters();
    }

    /// A node's agent is gone, and all that it was sending.
    pub(crate) fn gone(&self, node: &str) {
        self.state().under_way.retain(|_, u| u.node != node);
        self.shared.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use milkrun_repository::id::AppName;

    use super::*;
    use crate::inventory::file::InventoryFile;

    fn admission(store: &str) -> (Admission, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("store: {{ {store} }}")).unwrap();
        let inventory = InventoryFile::open(file.path()).unwrap();
        assert!(inventory.application(&"shop".parse::<AppName>().unwrap()).is_err());
        (Admission::new(Arc::new(inventory)), file)
    }

    fn pack(n: u8) -> PackId {
        PackId::from_bytes([n; 16])
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_bytes_and_no_more_are_under_way() {
        let (admission, _file) = admission("bytes_in_flight: 100");
        admission.admit("a", pack(1), 60).await.granted();
        admission.admit("a", pack(2), 40).await.granted();
        let third = tokio::time::timeout(Duration::from_secs(60), admission.admit("a", pack(3), 10)).await;
        assert!(third.is_err(), "more than the limit is under way");
        // One that gives up waiting is none that counts.
        admission.done(&pack(1));
        admission.admit("a", pack(4), 60).await.granted();
        // A grant that was not given does not count either.
        admission.done(&pack(4));
        drop(admission.admit("a", pack(5), 60).await);
        admission.admit("a", pack(6), 60).await.granted();
        // Nor one whose agent is gone.
        admission.done(&pack(2));
        admission.admit("b", pack(8), 40).await.granted();
        admission.gone("b");
        admission.admit("a", pack(2), 40).await.granted();
        // What is larger than the limit goes alone; what was never sealed is forgotten.
        admission.done(&pack(2));
        let began = Instant::now();
        admission.admit("a", pack(7), 500).await.granted();
        assert!(began.elapsed() >= FORGET_AFTER - Duration::from_secs(61));
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_bytes_per_second_leave() {
        let (admission, file) = admission("bandwidth: [ { rate: 1000 } ]");
        let began = Instant::now();
        for n in 0..5 {
            admission.admit("a", pack(n), 2000).await.granted();
        }
        assert_eq!(began.elapsed().as_secs(), 8, "the first at once, each of the others two seconds later");
        // The file is edited: it goes as fast as it can.
        std::fs::write(file.path(), "store: {}").unwrap();
        for n in 0..100 {
            admission.admit("a", pack(n), 2000).await.granted();
        }
        assert!(began.elapsed().as_secs() <= 10);
    }
}
