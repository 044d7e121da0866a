//! System tests: real processes, real devices, a real S3 server, a real PostgreSQL. They use public interfaces only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod bad_input;
mod changes;
mod crash_points;
mod damage;
mod devices;
mod free_space;
mod freeze;
mod identity;
mod in_use;
mod locked_bucket;
mod lost_keys;
mod output;
mod postgres_volume;
mod producers;
mod rolled_back;
mod round_trip;
mod second_store;
mod terminal;
mod vanished;
