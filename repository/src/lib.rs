//! Stored bytes of milkrun: chunks, packs, index, volume maps, restore points, stores, locks, verification.
//!
//! This crate knows neither gRPC nor Kubernetes. `FORMAT.md` is normative for every stored byte; the module of each object has a
//! picture of it. The layers, from the bottom:
//!
//! ```text
//! wire, clock, id            bytes, time and entropy, names
//! store                      objects under keys: directory, S3; grants
//! keys, chunk, pack, index   bytes without I/O: seal, cut, compress, pack, look up
//! volume_map, metadata       a volume as a tree of extents; reading and writing it
//! point                      roots, placements, the catalog, the commit
//! repository                 make and open one
//! restore_plan, verify       from maps to ranged reads; proofs
//! damaged                    packs that nothing new refers to
//! ```
//!
//! What may run at the same time, and why it is safe:
//!
//! | | backup | restore | verify |
//! |---|---|---|---|
//! | **backup** | packs and segments have random names; each run has its own root key; commit is create-only | a point is read only after its root exists | as restore; leases and packs of running backups are no findings |
//! | **restore** | | only reads | only reads |
//! | **verify** | | | reads; what it sets aside, later runs heed |
pub mod chunk;
pub mod clock;
pub mod config;
pub mod crash;
pub mod damaged;
pub mod id;
pub mod index;
pub mod keys;
pub mod last_seen;
pub mod metadata;
pub mod pack;
pub mod point;
pub mod read_envelope;
pub mod repository;
pub mod restore_plan;
pub mod store;
pub mod units;
pub mod verify;
pub mod volume_map;
pub mod wire;

pub use repository::Repository;
