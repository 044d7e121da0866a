//! One address in front of several servers: new connections go to the server that it points to, and open ones stay
//! where they are. A cluster's service does the same when another coordinator leads.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use crate::network::Network;

/// The address. It serves until the process ends.
pub struct Service(Arc<Mutex<SocketAddr>>);

impl Service {
    /// Listens on a host, and points to `to`.
    ///
    /// # Panics
    /// If it can't listen.
    #[expect(clippy::expect_used, reason = "a test helper")]
    pub fn start(network: &Network, host: &str, at: SocketAddr, to: SocketAddr) -> Self {
        let points_to = Arc::new(Mutex::new(to));
        let pointer = points_to.clone();
        // A thread inherits the namespace of the thread that starts it.
        network.within(host, || {
            let listener = TcpListener::bind(at).expect("the service's address");
            std::thread::spawn(move || {
                for client in listener.incoming().flatten() {
                    let to = *pointer.lock().unwrap_or_else(PoisonError::into_inner);
                    // If nobody listens there, the client sees its connection closed.
                    let Ok(server) = TcpStream::connect(to) else { continue };
                    for (from, to) in [(client.try_clone(), server.try_clone()), (Ok(server), Ok(client))] {
                        if let (Ok(from), Ok(to)) = (from, to) {
                            std::thread::spawn(move || pass_on(from, to));
                        }
                    }
                }
            });
        });
        Self(points_to)
    }

    /// Sends new connections to `to` from now on.
    pub fn point_to(&self, to: SocketAddr) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    // When one direction ends, for whatever reason, the other one is closed, too.
    let _ = std::io::copy(&mut from, &mut to);
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
