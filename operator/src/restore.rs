//! A restore: what is there, what to do next, and doing it.

mod admission;
mod check;
mod clean_up;
mod data;
mod hand_over;
mod observe;
mod plan;
mod quota;
mod reconcile;
mod swap;
mod waves;

pub use admission::Admission;
pub use observe::Observed;
pub use plan::{Plan, plan};
pub use reconcile::reconcile;
