//! Who calls: the peer, its connection, and the calls that it has under way.

use std::sync::Arc;
use std::time::Duration;

use milkrun_identity::Peer;
use tokio::time::Instant;
use tonic::Status;

use super::charge::{Charge, Of};
use super::{Open, held};

/// The caller, with its connection.
#[derive(Clone)]
pub struct Caller(Inner);

#[derive(Clone)]
enum Inner {
    /// A caller from within this process: it has no limits and no end.
    Local,
    Remote(Arc<Open>),
}

/// A call under way.
pub(in crate::rpc::transport) struct Call(Option<Arc<Open>>);

impl Caller {
    /// A caller on this connection.
    pub(super) fn remote(open: Arc<Open>) -> Self {
        Self(Inner::Remote(open))
    }

    /// A caller from within this process.
    pub(in crate::rpc::transport) fn local() -> Self {
        Self(Inner::Local)
    }

    /// The peer.
    pub fn peer(&self) -> Peer {
        match &self.0 {
            Inner::Local => Peer::Local,
            Inner::Remote(open) => open.certificate.peer.clone(),
        }
    }

    /// Its address and certificate, for logs.
    pub fn whence(&self) -> String {
        match &self.0 {
            Inner::Local => "this process".into(),
            Inner::Remote(open) => format!("{} (certificate {})", open.from, open.certificate.serial),
        }
    }

    /// Waits until the connection is over. Returns why.
    pub(crate) async fn ended(&self) -> Status {
        match &self.0 {
            Inner::Local => std::future::pending().await,
            Inner::Remote(open) => {
                open.ending.cancelled().await;
                Status::unauthenticated(open.why.get().cloned().unwrap_or_default())
            }
        }
    }

    /// A call begins.
    pub(in crate::rpc::transport) fn call(&self) -> Call {
        let open = match &self.0 {
            Inner::Local => None,
            Inner::Remote(open) => {
                held(&open.calls).open += 1;
                Some(open.clone())
            }
        };
        Call(open)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let Some(open) = &self.0 else { return };
        let mut calls = held(&open.calls);
        calls.open -= 1;
        calls.idle_since = Instant::now();
    }
}

impl Call {
    /// A charge to count the call's bytes with; `None` for a call without limits.
    pub(in crate::rpc::transport) fn charge(&self, of: Of) -> Option<Charge> {
        self.0.clone().map(|open| Charge::new(open, of))
    }

    /// How long its request may take to arrive.
    pub(in crate::rpc::transport) fn time(&self, of: Of) -> Option<Duration> {
        let shared = self.0.as_ref()?.shared.upgrade()?;
        Some(match of {
            Of::Requests => shared.limits.request_time,
            Of::Orders => shared.limits.order_time,
        })
    }
}
