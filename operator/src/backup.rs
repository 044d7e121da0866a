//! A backup: what is there, what to do next, and doing it.

mod clean_up;
mod expose;
mod freeze;
mod moving;
mod observe;
mod plan;
mod planned;
mod reconcile;
mod select;

pub use freeze::Answer;
pub use observe::Observed;
pub use plan::plan;
pub use planned::Plan;
pub use reconcile::reconcile;
