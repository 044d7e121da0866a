//! A backup: what is there, what to do next, and doing it.

mod clean_up;
mod cut;
mod expose;
mod freeze;
mod group;
mod groups_seen;
mod moving;
mod observe;
mod plan;
mod planned;
mod reconcile;
mod removal;
mod select;

pub use freeze::Answer;
pub use observe::Observed;
pub use plan::plan;
pub use planned::Plan;
pub use reconcile::reconcile;
