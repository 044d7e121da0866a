//! Accepts connections of peers that have a certificate. A peer that connects and sends nothing takes nobody's place: when too many
//! handshakes are under way, the oldest one of the address that has the most is given up.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use milkrun_identity::tls::Credentials;
use milkrun_repository::point::catalog::chain;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::connection::Connection;
use super::connections::{Connections, count_refused};

/// Connections that were accepted and whose peer has shown a certificate.
pub type Secured = Connection<tokio_rustls::server::TlsStream<TcpStream>>;

/// At most one refused connection is logged in this time: thousands of them must not fill the log.
const LOG_EVERY: Duration = Duration::from_secs(1);
/// How long to wait when the system accepts no more connections.
const PAUSE: Duration = Duration::from_millis(200);

/// Accepts connections of peers that have a certificate, and logs those that have none. Open connections end when their certificate
/// does.
pub fn accept(
    listener: TcpListener,
    credentials: Credentials,
    connections: Connections,
) -> ReceiverStream<io::Result<Secured>> {
    let (sender, accepted) = mpsc::channel(16);
    tokio::spawn(async move {
        let mut watch = tokio::task::JoinSet::new();
        watch.spawn(connections.clone().watch(credentials.clone()));
        let handshakes = Arc::new(Handshakes::default());
        let log = Arc::new(Log::default());
        loop {
            let (connection, from) = tokio::select! {
                connection = listener.accept() => match connection {
                    Ok(connection) => connection,
                    Err(e) => {
                        // Usually there are too many open files, and that passes.
                        tracing::warn!(error = %e, "can't accept a connection");
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                },
                () = sender.closed() => return,
            };
            if let Some(given_up) = handshakes.make_room(connections.limits().handshakes) {
                count_refused("handshakes");
                log.refused(given_up, "it said nothing, and others wait");
            }
            let (number, begun) = handshakes.begin();
            let (credentials, sender, log) = (credentials.clone(), sender.clone(), log.clone());
            let (connections, over) = (connections.clone(), handshakes.clone());
            let task = tokio::spawn(async move {
                let secured = handshake(connection, from, &credentials, &connections).await;
                over.end(number);
                match secured {
                    // If the receiver is gone, the server has ended.
                    Ok(connection) => drop(sender.send(Ok(connection)).await),
                    Err(why) => log.refused(from, &why),
                }
            });
            // The handshake may have ended already.
            begun.known_as(from, task.abort_handle());
        }
    });
    ReceiverStream::new(accepted)
}

async fn handshake(
    connection: TcpStream,
    from: SocketAddr,
    credentials: &Credentials,
    connections: &Connections,
) -> Result<Secured, String> {
    let accepted = credentials.accept(connection, from).await.map_err(|e| {
        count_refused("certificates");
        chain(&e)
    })?;
    let entry = connections.admit(accepted.certificate, from).map_err(|e| e.to_string())?;
    Ok(Connection::remote(accepted.stream, entry))
}

/// The handshakes under way, oldest first.
#[derive(Default)]
struct Handshakes(Mutex<Pending>);

#[derive(Default)]
struct Pending {
    last: u64,
    /// `None`: the handshake has begun, and its task is not known yet.
    under_way: BTreeMap<u64, Option<(SocketAddr, AbortHandle)>>,
}

struct Begun<'a> {
    handshakes: &'a Handshakes,
    number: u64,
}

impl Handshakes {
    fn pending(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> (u64, Begun<'_>) {
        let mut pending = self.pending();
        pending.last += 1;
        let number = pending.last;
        pending.under_way.insert(number, None);
        (number, Begun { handshakes: self, number })
    }

    fn end(&self, number: u64) {
        self.pending().under_way.remove(&number);
    }

    /// If `most` handshakes are under way, gives one up. Returns its address.
    fn make_room(&self, most: usize) -> Option<SocketAddr> {
        let mut pending = self.pending();
        if pending.under_way.len() < most {
            return None;
        }
        let mut by_address: HashMap<IpAddr, (usize, u64)> = HashMap::new();
        for (number, (from, _)) in pending.under_way.iter().filter_map(|(n, p)| Some((n, p.as_ref()?))) {
            by_address.entry(from.ip()).or_insert((0, *number)).0 += 1;
        }
        // The first number that is seen of an address is its oldest.
        let (_, oldest) = *by_address.values().max_by_key(|(count, _)| *count)?;
        let (from, task) = pending.under_way.remove(&oldest)??;
        task.abort();
        Some(from)
    }
}

impl Begun<'_> {
    fn known_as(self, from: SocketAddr, task: AbortHandle) {
        if let Some(pending) = self.handshakes.pending().under_way.get_mut(&self.number) {
            *pending = Some((from, task));
        }
    }
}

/// Counts refused connections, so that not each of them needs a line in the log.
#[derive(Default)]
struct Log(Mutex<Option<(Instant, u64)>>);

impl Log {
    fn refused(&self, from: SocketAddr, reason: &str) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match &mut *last {
            Some((logged, unsaid)) if now.duration_since(*logged) < LOG_EVERY => *unsaid += 1,
            before => {
                let unsaid = before.map_or(0, |(_, unsaid)| unsaid);
                *before = Some((now, 0));
                tracing::warn!(%from, reason, before = unsaid, "a connection is refused");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_holds_most_gives_way() {
        let handshakes = Handshakes::default();
        let hold = |from: [u8; 4], port: u16| {
            let (number, begun) = handshakes.begin();
            let task = tokio::spawn(std::future::pending::<()>());
            begun.known_as((from, port).into(), task.abort_handle());
            (number, task)
        };
        let (_, honest) = hold([10, 0, 0, 1], 1);
        let (_, first) = hold([10, 0, 0, 2], 1);
        let (second, _) = hold([10, 0, 0, 2], 2);
        assert_eq!(handshakes.make_room(4), None, "there is room");
        assert_eq!(handshakes.make_room(3), Some(([10, 0, 0, 2], 1).into()));
        assert!(first.await.unwrap_err().is_cancelled());
        handshakes.end(second);
        assert_eq!(handshakes.make_room(2), None);
        assert!(!honest.is_finished());
        // A handshake that ended before its task was known is no longer in the table.
        let (number, begun) = handshakes.begin();
        handshakes.end(number);
        begun.known_as(([10, 0, 0, 3], 1).into(), honest.abort_handle());
        assert_eq!(handshakes.pending().under_way.len(), 1);
    }
}
