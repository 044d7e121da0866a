//! Counts the bytes of calls against the limits of a connection, of a peer, and of all peers together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tonic::Status;

use super::{Open, count_refused};
use crate::rpc::transport::limits::{Account, Limits};

/// The use of a connection, a peer, or all peers.
#[derive(Default)]
pub(super) struct Load {
    pub(super) connections: AtomicUsize,
    requests: AtomicU64,
    orders: AtomicU64,
}

/// The kinds of calls whose bytes are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    /// A request.
    Requests,
    /// An order and its manifests.
    Orders,
}

impl Of {
    fn counter(self, load: &Load) -> &AtomicU64 {
        match self {
            Self::Requests => &load.requests,
            Self::Orders => &load.orders,
        }
    }

    fn account(self, limits: &Limits) -> Account {
        match self {
            Self::Requests => limits.requests,
            Self::Orders => limits.orders,
        }
    }
}

/// Bytes that count until this is dropped.
pub(in crate::rpc::transport) struct Charge {
    open: Arc<Open>,
    of: Of,
    bytes: u64,
}

impl Charge {
    /// No bytes are counted yet.
    pub(super) fn new(open: Arc<Open>, of: Of) -> Self {
        Self { open, of, bytes: 0 }
    }

    /// Counts more bytes.
    ///
    /// # Errors
    /// The limit that they would exceed.
    pub(in crate::rpc::transport) fn add(&mut self, bytes: u64) -> Result<(), Status> {
        let Some(shared) = self.open.shared.upgrade() else { return Ok(()) };
        let account = self.of.account(&shared.limits);
        let bounds = [
            (&self.open.own, account.of_connection, "this connection"),
            (&*self.open.peer, account.of_peer, "you"),
            (&shared.all, account.in_all, "all together"),
        ];
        for (at, (load, most, whose)) in bounds.iter().enumerate() {
            let counter = self.of.counter(load);
            if counter.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > *most {
                for (load, ..) in &bounds[..=at] {
                    self.of.counter(load).fetch_sub(bytes, Ordering::Relaxed);
                }
                count_refused("bytes");
                let why = format!("requests of {whose} that are under way have {most} bytes, and may not have more");
                return Err(Status::resource_exhausted(why));
            }
        }
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let Some(shared) = self.open.shared.upgrade() else { return };
        for load in [&self.open.own, &*self.open.peer, &shared.all] {
            self.of.counter(load).fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}
