//! One address in front of many: new connections go where it points, those that are open stay where they are. As a cluster's
//! service does it when another coordinator leads.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use crate::cluster::Network;

/// The address; it goes on until the process ends.
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
        // Threads inherit the host that they were started on.
        network.within(host, || {
            let listener = TcpListener::bind(at).expect("the service's address");
            std::thread::spawn(move || {
                for client in listener.incoming().flatten() {
                    let to = *pointer.lock().unwrap_or_else(PoisonError::into_inner);
                    // Nobody there: the client sees its connection closed.
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

    /// New connections go there from now on.
    pub fn point_to(&self, to: SocketAddr) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    // However one direction ends, the other has nothing to say any more.
    let _ = std::io::copy(&mut from, &mut to);
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
