//! The open connections: whose they are, what they use, and when they end.

mod caller;
mod charge;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use milkrun_identity::revocation::RevocationLists;
use milkrun_identity::tls::Credentials;
use milkrun_identity::{Certificate, Peer, Serial};
use milkrun_repository::clock::Moment;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::limits::Limits;
pub(super) use caller::Call;
pub use caller::Caller;
pub(super) use charge::Charge;
use charge::Load;
pub(crate) use charge::Of;

/// How often connections are checked for their end.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a connection stays open after its end was decided, so that its calls can be answered.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Counts a refusal, by its kind.
pub(super) fn count_refused(what: &'static str) {
    metrics::counter!("milkrun_refused_total", "what" => what).increment(1);
}

/// The table of open connections.
#[derive(Clone)]
pub struct Connections(Arc<Shared>);

struct Shared {
    limits: Limits,
    table: Mutex<Table>,
    all: Load,
    /// All certificates that were ever named as revoked: if the list is lost by accident, they stay revoked.
    revoked: Mutex<RevocationLists>,
}

#[derive(Default)]
struct Table {
    last: u64,
    open: BTreeMap<u64, Arc<Open>>,
    peers: HashMap<String, Arc<Load>>,
}

struct Open {
    number: u64,
    certificate: Certificate,
    from: SocketAddr,
    since: Moment,
    own: Load,
    peer: Arc<Load>,
    calls: Mutex<Calls>,
    why: OnceLock<String>,
    /// The end was decided: calls under way get the reason.
    ending: CancellationToken,
    /// Nothing more is read from it.
    closed: CancellationToken,
    shared: std::sync::Weak<Shared>,
}

struct Calls {
    open: usize,
    /// Since when there was no call.
    idle_since: Instant,
}

/// Why a connection is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedConnection {
    /// Too many connections are open in all.
    #[error("{0} connections are open: no more are taken")]
    Full(usize),
    /// Its certificate was revoked, even if the list does not say so any more.
    #[error("the certificate {0} was revoked")]
    Revoked(Serial),
    /// This peer has too many connections open.
    #[error("{peer} has {open} connections open, and gets no more")]
    PeerFull {
        /// The peer.
        peer: String,
        /// How many it has open.
        open: usize,
    },
}

/// The place of an open connection in the table, until this is dropped.
pub(super) struct Entry(Arc<Open>);

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connections {
    /// A table without connections.
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Shared { limits, table: Mutex::default(), all: Load::default(), revoked: Mutex::default() }))
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Adds a connection whose peer has shown its certificate.
    ///
    /// # Errors
    /// [`RefusedConnection`] when there are too many, or when the certificate was revoked.
    pub(super) fn admit(&self, certificate: Certificate, from: SocketAddr) -> Result<Entry, RefusedConnection> {
        let limits = &self.0.limits;
        if held(&self.0.revoked).contains(&certificate.serial) {
            count_refused("certificates");
            return Err(RefusedConnection::Revoked(certificate.serial));
        }
        let name = certificate.peer.to_string();
        let mut table = held(&self.0.table);
        if table.open.len() >= limits.connections {
            count_refused("connections");
            return Err(RefusedConnection::Full(table.open.len()));
        }
        let most = match certificate.peer {
            Peer::User { .. } => limits.connections_of_user,
            Peer::Agent(_) | Peer::Coordinator | Peer::Local => limits.connections_of_agent,
        };
        let peer = table.peers.entry(name.clone()).or_default().clone();
        let open = peer.connections.load(Ordering::Relaxed);
        if open >= most {
            count_refused("connections");
            return Err(RefusedConnection::PeerFull { peer: name, open });
        }
        peer.connections.fetch_add(1, Ordering::Relaxed);
        table.last += 1;
        let open = Arc::new(Open {
            number: table.last,
            certificate,
            from,
            since: Moment::now(),
            own: Load::default(),
            peer,
            calls: Mutex::new(Calls { open: 0, idle_since: Instant::now() }),
            why: OnceLock::new(),
            ending: CancellationToken::new(),
            closed: CancellationToken::new(),
            shared: Arc::downgrade(&self.0),
        });
        table.open.insert(open.number, open.clone());
        show(&table);
        Ok(Entry(open))
    }

    /// Ends connections that nobody uses, or whose certificate expired or was revoked. Goes on as long as there is a server.
    pub(super) async fn watch(self, credentials: Credentials) {
        let mut there = false;
        loop {
            match credentials.revoked() {
                Ok(lists) => {
                    if there && lists.is_empty() {
                        tracing::error!(
                            "the list of revoked certificates is gone; what it named stays revoked while this process lives"
                        );
                    }
                    there = !lists.is_empty();
                    held(&self.0.revoked).extend(&lists);
                }
                // New connections are refused with this error as the reason; for open ones, the last list still counts.
                Err(e) => {
                    tracing::error!(reason = milkrun_repository::point::catalog::chain(&e), "revoked certificates")
                }
            }
            self.end_where(|open, now| {
                let certificate = &open.certificate;
                if certificate.until.millis() < Moment::now().millis() {
                    return Some(format!("the certificate {} ended at {}", certificate.serial, certificate.until));
                }
                if held(&self.0.revoked).contains(&certificate.serial) {
                    return Some(format!("the certificate {} was revoked", certificate.serial));
                }
                let calls = held(&open.calls);
                let idle = calls.open == 0 && now.duration_since(calls.idle_since) >= self.0.limits.idle;
                idle.then(|| "nothing was called for too long".to_owned())
            });
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn end_where(&self, why: impl Fn(&Open, Instant) -> Option<String>) {
        let now = Instant::now();
        let open: Vec<Arc<Open>> = held(&self.0.table).open.values().cloned().collect();
        for open in open.into_iter().filter(|o| !o.ending.is_cancelled()) {
            if let Some(why) = why(&open, now) {
                open.end(why);
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge")]
fn show(table: &Table) {
    metrics::gauge!("milkrun_connections").set(table.open.len() as f64);
}

impl Open {
    /// Gives the reason to all calls under way, and closes the connection a moment later.
    fn end(self: &Arc<Self>, why: String) {
        tracing::warn!(peer = %self.certificate.peer, from = %self.from, since = %self.since, why, "a connection is ended");
        let _ = self.why.set(why);
        self.ending.cancel();
        let open = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(LAST_WORDS).await;
            open.closed.cancel();
        });
    }
}

impl Entry {
    pub(super) fn caller(&self) -> Caller {
        Caller::remote(self.0.clone())
    }

    /// Fires once nothing more is to be read from it.
    pub(super) fn closed(&self) -> CancellationToken {
        self.0.closed.clone()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let Some(shared) = self.0.shared.upgrade() else { return };
        let mut table = held(&shared.table);
        table.open.remove(&self.0.number);
        if self.0.peer.connections.fetch_sub(1, Ordering::Relaxed) == 1 && Arc::strong_count(&self.0.peer) == 2 {
            // Two references are left, this one and the table's: nothing of this peer counts any more.
            table.peers.remove(&self.0.certificate.peer.to_string());
        }
        show(&table);
    }
}

#[cfg(test)]
mod tests;
