//! The per-node data mover: reads volumes and stores packs, reads packs and writes volumes. It holds no truth and no key
//! that reads: what it does comes as an assignment, what it may store as a grant.
//!
//! ```text
//! backup   device ─ read ─ cut + identify ─ claim, look up ─ compress + seal ─ pack ─ upload ─ seal ─ checkpoint
//! restore  plan ─ fetch ─ open, check ids ─ write ─ sync
//! ```
//! I/O waits on threads of its own, CPU work runs on [`workers`], tokio only waits. [`budget`] bounds the bytes in flight.

pub mod backup;
pub mod budget;
pub mod buffer;
pub mod device;
pub mod extent;
pub mod outcome;
pub mod restore;
pub mod rpc;
pub mod session;
pub mod workers;

pub use session::{Agent, AgentOptions};
