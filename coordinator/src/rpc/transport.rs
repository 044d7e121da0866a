//! Connections, and limits on what each may use. Anybody with a certificate can connect, and must not be able to keep others from
//! working.
//!
//! ```text
//! accept ─ handshakes, bounded ─> connections ─ a limit for each peer, end of certificate ─> connection ─> gate ─ bytes, time ─> services
//! ```

pub mod accept;
pub mod connection;
pub mod connections;
pub(super) mod gate;
pub mod limits;
