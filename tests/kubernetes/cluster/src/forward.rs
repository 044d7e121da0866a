//! Forwarding of TCP ports between this machine's loopback and the cluster.

use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};

use crate::layout::{API_PORT, MACHINE, Node};
use crate::network::within;

/// Connections to a port of this machine's loopback reach the API server. Returns the port.
pub(crate) fn to_api_server() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    serve(listener, || within(Node(1), || TcpStream::connect((Ipv4Addr::LOCALHOST, API_PORT))));
    Ok(port)
}

/// Connections to a port of [`MACHINE`] inside of the cluster reach the same port of this machine's loopback.
pub(crate) fn to_machine(port: u16) -> io::Result<()> {
    let listener = within(Node(1), || TcpListener::bind((MACHINE, port)))?;
    serve(listener, move || TcpStream::connect((Ipv4Addr::LOCALHOST, port)));
    Ok(())
}

fn serve(listener: TcpListener, connect: impl Fn() -> io::Result<TcpStream> + Send + Sync + Copy + 'static) {
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            std::thread::spawn(move || {
                // Whoever is not served sees that the connection ends.
                if let Ok(far) = connect() {
                    let _ = join(&near, &far);
                }
            });
        }
    });
}

/// Copies both ways until both are at their end.
fn join(near: &TcpStream, far: &TcpStream) -> io::Result<()> {
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    std::thread::scope(|scope| {
        scope.spawn(|| copy(near, far));
        copy(far, near);
    });
    Ok(())
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    if io::copy(&mut from, &mut to).is_err() {
        // A reset must reach the other side too.
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    } else {
        let _ = to.shutdown(Shutdown::Write);
    }
}
