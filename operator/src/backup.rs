//! A backup: what is there, what to do next, and doing it.

mod clean_up;
mod expose;
mod observe;
mod plan;
mod reconcile;
mod select;

pub use observe::{Observed, RunSeen};
pub use plan::{Call, Plan, plan};
pub use reconcile::reconcile;
