//! A restore: what is there, what to do next, and doing it.

mod check;
mod clean_up;
mod data;
mod hand_over;
mod observe;
mod plan;
mod reconcile;

pub use observe::Observed;
pub use plan::{Call, Plan, plan};
pub use reconcile::reconcile;
