//! milkrun's operator. It turns `Backup` and `Restore` objects into snapshots, claims, holder pods and runs of the
//! coordinator, and cleans up after each of them, whatever happened.
//!
//! ```text
//! observe    what is there: objects with the run's label, and the run at the coordinator
//! plan       what to do next, a function of what was observed (no I/O): backup/plan.rs, restore/plan.rs
//! apply      does it; status says what was planned
//! ```
//! A step's result is found again by label and not remembered, so an operator that is killed at any moment is followed by
//! one that goes on.

pub mod actions;
mod attachments;
pub mod backup;
pub mod claim_facts;
pub mod consumer;
pub mod controller;
pub mod coordinator;
mod exposed;
pub mod group_snapshots;
pub mod holder;
pub mod memory;
pub mod names;
pub mod points;
pub mod policy;
pub mod probe;
pub mod restore;
pub mod run;
pub mod settings;
mod several;
pub mod snapshots;
pub mod steps;
#[cfg(test)]
mod walk;
pub mod warnings;

pub use settings::Settings;
