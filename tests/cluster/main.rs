//! A coordinator and agents as real processes: connected, disconnected, and when some of them die.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod adaptive_level;
mod agent_failover;
mod changed_block_lists;
mod chaos;
mod compromised_agent;
mod crash_points;
mod crash_points_locked;
mod exhausted;
mod leaders;
mod many_nodes;
mod network_partitions;
mod opened_runs;
mod queued_backups;
mod refused;
mod releases;
mod remote_points;
mod restores;
mod revoked;
mod scripted_agent;
mod several_repositories;
mod store_faults;
