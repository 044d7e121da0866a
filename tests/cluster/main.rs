//! A coordinator and agents, as real processes: together, apart, and when some of them die.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod chaos;
mod crash_points;
mod crash_points_locked;
mod exhausted;
mod hosts;
mod leaders;
mod level;
mod lists;
mod lost;
mod played;
mod refused;
mod releases;
mod restores;
mod revoked;
mod stolen;
mod stores;
mod together;
mod turns;
