//! This module limits how much is on its way to the store from all nodes together: the bytes at once, and the bytes per second by
//! time of day. A pack is admitted before its grant is signed, so that no grant grows old while it waits. The packs of one node are
//! admitted in the order in which they came. Where there are several nodes, one node has at most half of the bytes. A pack counts
//! until it is sealed, until its volume's attempt, its run or its agent is over, or until 15 minutes have passed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use milkrun_repository::clock::Moment;
use milkrun_repository::id::{PackId, RunId};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::inventory::{Inventory, StoreLimits};

/// A pack that was admitted and never sealed stops counting after this time: its grant has expired long before.
const FORGET_AFTER: Duration = Duration::from_secs(15 * 60);

/// How often waiting packs are looked at again.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Admits packs to the store of one repository.
#[derive(Clone)]
pub(crate) struct Admission {
    inventory: Arc<dyn Inventory>,
    repository: Arc<str>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
    /// For each node, the queue of its packs that wait.
    queues: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Default)]
struct State {
    under_way: HashMap<PackId, UnderWay>,
    /// When the next byte may leave.
    next: Option<Instant>,
    /// What the inventory said when it was last read.
    limits: StoreLimits,
    /// Whether the inventory has more than one node.
    several: bool,
}

struct UnderWay {
    bytes: u64,
    since: Instant,
    /// The volume that it belongs to, and the node whose agent sends it.
    of: Of,
    node: String,
}

/// A volume of a run.
type Of = (RunId, String);

impl State {
    fn bytes(&mut self, now: Instant) -> u64 {
        self.under_way.retain(|_, u| now - u.since < FORGET_AFTER);
        self.under_way.values().fold(0, |sum, u| sum.saturating_add(u.bytes))
    }

    fn bytes_of(&self, node: &str) -> u64 {
        self.under_way.values().filter(|u| u.node == node).fold(0, |sum, u| sum.saturating_add(u.bytes))
    }
}

/// A pack that was admitted and has no grant yet. If this is dropped before the grant is given, the pack stops counting.
pub(crate) struct Admitted<'a> {
    admission: &'a Admission,
    pack: Option<PackId>,
}

impl Admitted<'_> {
    /// The grant was given: the pack counts until [`Admission::done`].
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
    /// For the store of the repository of this name.
    pub(crate) fn new(inventory: Arc<dyn Inventory>, repository: &str) -> Self {
        Self { inventory, repository: repository.into(), shared: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present limits of the inventory, and whether it has only one node. While the inventory can't be read, its last answer
    /// counts.
    fn limits(&self) -> (StoreLimits, bool) {
        let loads = self.inventory.loads();
        let mut state = self.state();
        match loads {
            Ok(loads) => {
                state.limits = loads.of(&self.repository).clone();
                state.several = loads.nodes.is_some_and(|nodes| nodes.len() > 1);
            }
            Err(e) => tracing::warn!(error = %e, "uploads are bounded as before"),
        }
        (state.limits.clone(), !state.several)
    }

    fn queue(&self, node: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut queues = self.shared.queues.lock().unwrap_or_else(PoisonError::into_inner);
        // Drops the queues in which nothing waits.
        queues.retain(|_, queue| Arc::strong_count(queue) > 1);
        queues.entry(node.to_owned()).or_default().clone()
    }

    /// Whether a pack is on its way that belongs to another run or comes from another node.
    pub(crate) fn is_of_another(&self, pack: &PackId, node: &str, run: &RunId) -> bool {
        self.state().under_way.get(pack).is_some_and(|u| u.node != node || u.of.0 != *run)
    }

    /// Waits until a pack may leave.
    pub(crate) async fn admit(&self, node: &str, of: Of, pack: PackId, bytes: u64) -> Admitted<'_> {
        // The lock is fair: the packs of one node are admitted in the order in which they came. Nodes don't wait for each other.
        let queue = self.queue(node);
        let _turn = queue.lock().await;
        loop {
            let changed = self.shared.changed.notified();
            // The limits are read each time, so that an edited inventory also counts for packs that already wait.
            let (limits, alone) = self.limits();
            let wait = {
                let (mut state, now) = (self.state(), Instant::now());
                let (others, own) = (state.bytes(now), state.bytes_of(node));
                // A pack that is larger than the limit goes alone.
                let fits = limits.bytes_in_flight.is_none_or(|max| {
                    let all = others == 0 || others.saturating_add(bytes) <= max;
                    // A node may get grants and never use them: it must leave room for the others.
                    all && (alone || own == 0 || own.saturating_add(bytes) <= max / 2)
                });
                let rate = limits.bandwidth.at(Moment::now());
                let starts = rate.and(state.next).unwrap_or(now);
                if fits && starts <= now {
                    state.next = rate.map(|rate| now + takes(bytes, rate));
                    state.under_way.insert(pack, UnderWay { bytes, since: now, of, node: node.to_owned() });
                    break;
                }
                // A pack that is never sealed is forgotten after a while, and nothing announces that.
                if fits { (starts - now).min(LOOK_EVERY) } else { LOOK_EVERY }
            };
            let _ = tokio::time::timeout(wait, changed).await;
        }
        self.show();
        Admitted { admission: self, pack: Some(pack) }
    }

    /// A pack arrived, or never will.
    pub(crate) fn done(&self, pack: &PackId) {
        self.forget(|p, _| p == pack);
    }

    /// A node's agent is gone: nothing that it was sending counts any more.
    pub(crate) fn gone(&self, node: &str) {
        self.forget(|_, u| u.node == node);
    }

    /// A volume's attempt is over: nothing that it was sending counts any more.
    pub(crate) fn over(&self, run: &RunId, volume: &str) {
        self.forget(|_, u| (&u.of.0, u.of.1.as_str()) == (run, volume));
    }

    /// A run ended: nothing that was sent for it counts any more.
    pub(crate) fn ended(&self, run: &RunId) {
        self.forget(|_, u| &u.of.0 == run);
    }

    fn forget(&self, which: impl Fn(&PackId, &UnderWay) -> bool) {
        self.state().under_way.retain(|pack, u| !which(pack, u));
        self.shared.changed.notify_waiters();
        self.show();
    }

    fn show(&self) {
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!("milkrun_store_bytes_in_flight").set(self.state().bytes(Instant::now()) as f64);
    }
}

/// How long so many bytes take.
fn takes(bytes: u64, rate: u64) -> Duration {
    let millis = u128::from(bytes) * 1000 / u128::from(rate.max(1));
    // No pack takes a day: a larger result can't be right.
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)).min(Duration::from_secs(86_400))
}

#[cfg(test)]
mod tests {
    use milkrun_repository::id::AppName;

    use super::*;
    use crate::inventory::file::InventoryFile;

    fn admission(store: &str) -> (Admission, tempfile::NamedTempFile) {
        admission_of(store, "")
    }

    fn admission_of(store: &str, nodes: &str) -> (Admission, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("store: {{ {store} }}\n{nodes}")).unwrap();
        let inventory = InventoryFile::open(file.path()).unwrap();
        assert!(inventory.application(&"shop".parse::<AppName>().unwrap()).is_err());
        (Admission::new(Arc::new(inventory), ""), file)
    }

    fn of(run: u8) -> Of {
        (RunId::from_bytes([run; 8]), "data".into())
    }

    fn pack(n: u8) -> PackId {
        PackId::from_bytes([n; 16])
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_bytes_and_no_more_are_under_way() {
        let (admission, _file) = admission("bytes_in_flight: 100");
        admission.admit("a", of(1), pack(1), 60).await.granted();
        admission.admit("a", of(1), pack(2), 40).await.granted();
        let third = tokio::time::timeout(Duration::from_secs(60), admission.admit("a", of(1), pack(3), 10)).await;
        assert!(third.is_err(), "more than the limit is under way");
        // A pack that gave up waiting does not count.
        admission.done(&pack(1));
        admission.admit("a", of(1), pack(4), 60).await.granted();
        // A pack whose grant was not given does not count either.
        admission.done(&pack(4));
        drop(admission.admit("a", of(1), pack(5), 60).await);
        admission.admit("a", of(1), pack(6), 60).await.granted();
        // A pack whose agent is gone does not count either.
        admission.done(&pack(2));
        admission.admit("b", of(1), pack(8), 40).await.granted();
        admission.gone("b");
        admission.admit("a", of(1), pack(2), 40).await.granted();
        // A pack of a volume that was assigned again, or of a run that ended, does not count either.
        for end in [|a: &Admission| a.over(&of(2).0, "data"), |a: &Admission| a.ended(&of(2).0)] {
            admission.done(&pack(2));
            admission.admit("b", of(2), pack(9), 40).await.granted();
            end(&admission);
            admission.admit("a", of(1), pack(2), 40).await.granted();
        }
        // A pack that is larger than the limit goes alone; one that was never sealed is forgotten.
        admission.done(&pack(2));
        let began = Instant::now();
        admission.admit("a", of(1), pack(7), 500).await.granted();
        assert!(began.elapsed() >= FORGET_AFTER - Duration::from_secs(61));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_stores_nothing_of_what_it_may_keeps_no_other_from_storing() {
        let (admission, _file) = admission_of("bytes_in_flight: 100", "nodes: { a: , b: }");
        admission.admit("b", of(1), pack(1), 40).await.granted();
        admission.admit("b", of(1), pack(2), 10).await.granted();
        let (greedy, waits) = (admission.clone(), Duration::from_secs(60));
        let third = tokio::spawn(async move { greedy.admit("b", of(1), pack(3), 10).await.granted() });
        tokio::time::sleep(waits).await;
        assert!(!third.is_finished(), "more than half, and it waits");
        // No other pack has to wait for it.
        admission.admit("a", of(2), pack(4), 50).await.granted();
        assert!(admission.is_of_another(&pack(4), "b", &of(2).0) && admission.is_of_another(&pack(4), "a", &of(1).0));
        assert!(!admission.is_of_another(&pack(4), "a", &of(2).0));
        admission.done(&pack(1));
        third.await.unwrap();
    }

    #[test]
    fn no_number_of_bytes_is_too_many_to_count() {
        assert_eq!(takes(3000, 1000), Duration::from_secs(3));
        assert_eq!(takes(u64::MAX, 1), Duration::from_secs(86_400));
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_bytes_per_second_leave() {
        let (admission, file) = admission("bandwidth: [ { rate: 1000 } ]");
        let began = Instant::now();
        for n in 0..5 {
            admission.admit("a", of(1), pack(n), 2000).await.granted();
        }
        assert_eq!(began.elapsed().as_secs(), 8, "the first at once, each of the others two seconds later");
        // While the file makes no sense for a moment, the last limits still hold.
        std::fs::write(file.path(), "store: {").unwrap();
        admission.admit("a", of(1), pack(199), 2000).await.granted();
        assert_eq!(began.elapsed().as_secs(), 10);
        // The file is edited: waiting packs see that, and go as fast as they can.
        admission.admit("a", of(1), pack(200), 1_000_000).await.granted();
        std::fs::write(file.path(), "store: {}").unwrap();
        for n in 0..100 {
            admission.admit("a", of(1), pack(n), 2000).await.granted();
        }
        assert!(began.elapsed().as_secs() <= 20);
    }
}
