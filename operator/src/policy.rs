//! Policies: when backups are made, by a schedule. A policy makes `Backup` objects and removes those that are over; what becomes of each
//! is the backup's own matter.

mod plan;
mod reconcile;
mod schedule;

pub use plan::{Plan, plan};
pub use reconcile::run;
pub use schedule::{Schedule, ScheduleError};
