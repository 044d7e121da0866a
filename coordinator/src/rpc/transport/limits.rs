//! Limits on what connections may use. Each limit is far above what agents and people need, and far below what would do harm.

use std::time::Duration;

/// The limits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Handshakes at once.
    pub handshakes: usize,
    /// Connections in all.
    pub connections: usize,
    /// Connections of one agent: it uses one, and a lost one lingers for a while.
    pub connections_of_agent: usize,
    /// Connections of one user: pipelines share a certificate.
    pub connections_of_user: usize,
    /// Bytes of requests that are under way.
    pub requests: Account,
    /// Bytes of orders that are under way, with their manifests.
    pub orders: Account,
    /// How long a request may take to arrive.
    pub request_time: Duration,
    /// How long an order may take to arrive.
    pub order_time: Duration,
    /// How long a connection may be without a call.
    pub idle: Duration,
}

/// A limit on bytes: for each connection, for all connections of a peer, for all peers.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    /// Of one connection.
    pub of_connection: u64,
    /// Of one peer.
    pub of_peer: u64,
    /// In all.
    pub in_all: u64,
}

/// Calls that one connection may have open at once (HTTP/2's `MAX_CONCURRENT_STREAMS`). An agent has a few for each of its volumes.
/// Grants that wait for seals must never keep those seals from getting through.
pub const STREAMS_MAX: u32 = 1024;
/// Bytes of one call that may be in flight to this process before they are read.
pub const STREAM_WINDOW: u32 = 1 << 20;
/// The same for all calls of one connection together.
pub const CONNECTION_WINDOW: u32 = 16 << 20;
/// The most bytes of one request. The longest one reports on a pack that is full of highly compressible chunks: 335,000 slots of 45
/// bytes in 32 MiB. An agent has eight packs on their way.
pub const REQUEST_BYTES_MAX: usize = 20 << 20;
/// Bytes of one message of an agent's session.
pub const SESSION_MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Open files that are reserved for the store, the inventory and the like.
const FILES_SPARED: u64 = 256;

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshakes: 512,
            connections: 4096,
            connections_of_agent: 8,
            connections_of_user: 64,
            requests: Account { of_connection: 160 << 20, of_peer: 160 << 20, in_all: 768 << 20 },
            orders: Account { of_connection: 257 << 20, of_peer: 257 << 20, in_all: 512 << 20 },
            request_time: Duration::from_secs(60),
            order_time: Duration::from_secs(10 * 60),
            idle: Duration::from_secs(5 * 60),
        }
    }
}

impl Limits {
    /// Limits with as many connections as the system lets this process open. The process first asks for the highest number that it
    /// may have.
    pub fn of_process() -> Self {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let limits = Self::default();
        let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return limits };
        let files = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
        let spare = usize::try_from(files.saturating_sub(FILES_SPARED)).unwrap_or(usize::MAX).max(16);
        Self { handshakes: limits.handshakes.min(spare / 4), connections: limits.connections.min(spare / 2), ..limits }
    }
}
