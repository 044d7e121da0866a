//! The per-node data mover. A backup reads volumes and stores packs; a restore reads packs and writes volumes. The
//! agent keeps no state that has to last, and no key that opens stored data: its work comes as an assignment, and each
//! grant lets it store or read exactly one object.
//!
//! ```text
//! backup   device ─ read ─ cut + identify ─ claim, look up ─ compress + seal ─ pack ─ upload ─ seal ─ checkpoint
//! restore  plan ─ fetch ─ open, check ids ─ write ─ sync
//! ```
//! Device I/O has threads of its own, CPU work runs on [`workers`], and tokio's threads only wait. [`budget`] bounds
//! the bytes in flight.

pub mod backup;
pub mod budget;
pub mod buffer;
pub mod device;
pub mod extent;
pub mod freeze;
pub mod outcome;
mod ranges;
pub mod restore;
pub mod rpc;
pub mod session;
pub mod workers;

pub use session::{Agent, AgentOptions};
