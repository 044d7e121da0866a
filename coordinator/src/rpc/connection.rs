//! Connections that know who is at their other end, so that every call does.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use milkrun_identity::Peer;
use milkrun_identity::tls::Credentials;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

/// A connection and its peer.
pub struct Connection<IO> {
    io: IO,
    peer: Peer,
}

impl<IO> Connection<IO> {
    /// From within this process.
    pub fn local(io: IO) -> Self {
        Self { io, peer: Peer::Local }
    }
}

impl<IO> Connected for Connection<IO> {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Connection<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Connection<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Who calls.
///
/// # Errors
/// For a connection that nobody vouches for.
pub fn peer_of<T>(request: &Request<T>) -> Result<Peer, Status> {
    let nobody = || Status::unauthenticated("the connection does not say who you are");
    request.extensions().get::<Peer>().cloned().ok_or_else(nobody)
}

/// Connections that were accepted and have shown a certificate.
pub type Secured = Connection<tokio_rustls::server::TlsStream<TcpStream>>;

/// Handshakes that may go on at once; whoever comes then waits in the system's queue.
const HANDSHAKES: usize = 256;

/// Accepts connections of those who have a certificate, and logs those who have none.
pub fn accept(listener: TcpListener, credentials: Credentials) -> ReceiverStream<io::Result<Secured>> {
    let (sender, accepted) = mpsc::channel(16);
    let handshakes = std::sync::Arc::new(tokio::sync::Semaphore::new(HANDSHAKES));
    tokio::spawn(async move {
        loop {
            let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
            let (connection, from) = tokio::select! {
                connection = listener.accept() => match connection {
                    Ok(connection) => connection,
                    Err(e) => {
                        // Too many open files, mostly: it passes.
                        tracing::warn!(error = %e, "can't accept a connection");
                        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                        continue;
                    }
                },
                () = sender.closed() => return,
            };
            let (credentials, sender) = (credentials.clone(), sender.clone());
            tokio::spawn(async move {
                if let Some(connection) = handshake(connection, from, &credentials).await {
                    // The server has ended.
                    let _ = sender.send(Ok(connection)).await;
                }
                drop(permit);
            });
        }
    });
    ReceiverStream::new(accepted)
}

async fn handshake(connection: TcpStream, from: SocketAddr, credentials: &Credentials) -> Option<Secured> {
    match credentials.accept(connection, from).await {
        Ok(accepted) => Some(Connection { io: accepted.stream, peer: accepted.peer }),
        Err(e) => {
            let reason = milkrun_repository::point::catalog::chain(&e);
            tracing::warn!(%from, reason, "a connection is refused");
            None
        }
    }
}
