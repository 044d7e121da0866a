//! The open connections: whose they are, what they use, and when they end.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use milkrun_identity::revocation::RevocationLists;
use milkrun_identity::tls::Credentials;
use milkrun_identity::{Certificate, Peer, Serial};
use milkrun_repository::clock::Moment;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::limits::{Account, Limits};

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

/// The use of a connection, a peer, or all peers.
#[derive(Default)]
struct Load {
    connections: AtomicUsize,
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

/// The caller, with its connection.
#[derive(Clone)]
pub struct Caller(Inner);

#[derive(Clone)]
enum Inner {
    /// A caller from within this process: it has no limits and no end.
    Local,
    Remote(Arc<Open>),
}

/// The place of an open connection in the table, until this is dropped.
pub(super) struct Entry(Arc<Open>);

/// A call under way.
pub(super) struct Call(Option<Arc<Open>>);

/// Bytes that count until this is dropped.
pub(super) struct Charge {
    open: Arc<Open>,
    of: Of,
    bytes: u64,
}

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
        Caller(Inner::Remote(self.0.clone()))
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

impl Caller {
    /// A caller from within this process.
    pub(super) fn local() -> Self {
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
    pub(super) fn call(&self) -> Call {
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
    pub(super) fn charge(&self, of: Of) -> Option<Charge> {
        self.0.clone().map(|open| Charge { open, of, bytes: 0 })
    }

    /// How long its request may take to arrive.
    pub(super) fn time(&self, of: Of) -> Option<Duration> {
        let shared = self.0.as_ref()?.shared.upgrade()?;
        Some(match of {
            Of::Requests => shared.limits.request_time,
            Of::Orders => shared.limits.order_time,
        })
    }
}

impl Charge {
    /// Counts more bytes.
    ///
    /// # Errors
    /// The limit that they would exceed.
    pub(super) fn add(&mut self, bytes: u64) -> Result<(), Status> {
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

#[cfg(test)]
mod tests {
    use milkrun_identity::authority::Authority;

    use super::*;

    fn certificate(folder: &std::path::Path, peer: &Peer, valid: Duration) -> Certificate {
        let authority =
            Authority::open(folder).or_else(|_| Authority::create(folder, Duration::from_secs(3600))).unwrap();
        Credentials::new(authority.issue(peer, &[], valid).unwrap()).own_certificate().unwrap()
    }

    fn limits() -> Limits {
        let account = Account { of_connection: 100, of_peer: 150, in_all: 200 };
        Limits { connections: 4, connections_of_agent: 2, requests: account, ..Limits::default() }
    }

    fn agent(name: &str) -> Peer {
        Peer::Agent(name.parse().unwrap())
    }

    const HERE: ([u8; 4], u16) = ([127, 0, 0, 1], 1);

    #[test]
    fn nobody_takes_what_others_need() {
        let folder = tempfile::tempdir().unwrap();
        let hour = Duration::from_secs(3600);
        let [a, b, c] = ["a", "b", "c"].map(|n| certificate(folder.path(), &agent(n), hour));
        let connections = Connections::new(limits());
        let admit = |c: &Certificate| connections.admit(c.clone(), HERE.into());
        let (a1, a2) = (admit(&a).unwrap(), admit(&a).unwrap());
        assert!(matches!(admit(&a), Err(RefusedConnection::PeerFull { .. })));
        let (b1, _c1) = (admit(&b).unwrap(), admit(&c).unwrap());
        assert!(matches!(admit(&b), Err(RefusedConnection::Full(4))));
        // The limits on bytes: of a connection, of a peer, in all.
        let charge = |e: &Entry| e.caller().call().charge(Of::Requests).unwrap();
        let (mut first, mut second, mut other) = (charge(&a1), charge(&a2), charge(&b1));
        first.add(90).unwrap();
        assert!(first.add(20).unwrap_err().message().contains("this connection"));
        second.add(50).unwrap();
        assert!(second.add(20).unwrap_err().message().contains("of you"));
        assert!(other.add(70).unwrap_err().message().contains("all together"));
        other.add(60).unwrap();
        // Finished calls don't count any more, even if their connection is gone.
        drop((a1, a2, first, second));
        other.add(40).unwrap();
        let again = admit(&a).unwrap();
        charge(&again).add(100).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_with_its_certificate_or_its_use() {
        let folder = tempfile::tempdir().unwrap();
        let hour = Duration::from_secs(3600);
        let server = Authority::create(folder.path(), hour).unwrap();
        let server = Credentials::new(server.issue(&Peer::Coordinator, &["c".into()], hour).unwrap());
        let connections = Connections::new(limits());
        let mut short = certificate(folder.path(), &agent("short"), hour);
        short.until = Moment::now();
        let long = certificate(folder.path(), &agent("long"), hour);
        let revoked = certificate(folder.path(), &agent("revoked"), hour);
        let admit = |c: &Certificate| connections.admit(c.clone(), HERE.into()).unwrap();
        let entries = [&short, &long, &revoked].map(admit);
        let used = entries.each_ref().map(|e| e.caller().call());
        let idle = connections.admit(long, HERE.into()).unwrap();
        let began = Instant::now();
        tokio::spawn(connections.clone().watch(server));
        let why = entries[0].caller().ended().await;
        assert!(why.message().contains("ended at"), "{why:?}");
        entries[0].closed().cancelled().await;
        Authority::open(folder.path()).unwrap().revoke("agent-revoked").unwrap();
        assert!(entries[2].caller().ended().await.message().contains("was revoked"));
        assert!(began.elapsed() < Duration::from_secs(5));
        // If the list is lost, the certificate stays revoked.
        std::fs::remove_file(folder.path().join("coordinator-c/ca.crl")).unwrap();
        tokio::time::sleep(LOOK_EVERY * 2).await;
        let again = connections.admit(revoked, HERE.into());
        assert!(matches!(again, Err(RefusedConnection::Revoked(_))));
        assert!(idle.caller().ended().await.message().contains("nothing was called"));
        assert!(began.elapsed() >= limits().idle);
        assert!(!entries[1].0.ending.is_cancelled(), "it has a call open");
        drop(used);
        assert!(entries[1].caller().ended().await.message().contains("nothing was called"));
    }
}
