//! Connections that know their peer, so that every call knows its caller.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use milkrun_identity::Peer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

use super::connections::{Caller, Entry};

/// A connection and its peer.
pub struct Connection<IO> {
    io: IO,
    caller: Caller,
    /// For a connection that can be ended: its place in the table, and the signal of its end.
    open: Option<(Entry, Pin<Box<WaitForCancellationFutureOwned>>)>,
}

impl<IO> Connection<IO> {
    /// A connection from within this process.
    pub fn local(io: IO) -> Self {
        Self { io, caller: Caller::local(), open: None }
    }

    pub(super) fn remote(io: IO, entry: Entry) -> Self {
        let closed = Box::pin(entry.closed().cancelled_owned());
        Self { io, caller: entry.caller(), open: Some((entry, closed)) }
    }
}

impl<IO> Connected for Connection<IO> {
    type ConnectInfo = Caller;
    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Connection<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some((_, closed)) = &mut self.open
            && closed.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        Poll::Ready(Ok(()))
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

/// The caller, with its connection.
///
/// # Errors
/// If nothing proves who is at the other end of the connection.
pub fn caller_of<T>(request: &Request<T>) -> Result<Caller, Status> {
    let nobody = || Status::unauthenticated("the connection does not say who you are");
    request.extensions().get::<Caller>().cloned().ok_or_else(nobody)
}

/// The peer that calls.
///
/// # Errors
/// As [`caller_of`].
pub fn peer_of<T>(request: &Request<T>) -> Result<Peer, Status> {
    Ok(caller_of(request)?.peer())
}
