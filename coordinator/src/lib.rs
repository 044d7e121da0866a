//! The control plane: it plans runs, gives assignments and grants, writes the maps, and commits once. Bytes of volumes
//! never pass here.
//!
//! ```text
//! rpc/control  ─ Backup, Restore ─>  backup::execute, restore::execute ─ assignments ─>  rpc/session ─>  agents
//!                                         ^                                                                |
//!                                         └── backup::Run, restore::Run  <── rpc/upload, rpc/download ─────┘
//! ```
//! The coordinator writes everything that is not a volume's bytes: maps, manifests, index segments, placement and root. So an
//! agent can't write a map that names what it was not told of, and needs no metadata key.

pub mod agents;
pub mod backup;
pub mod manifests;
pub mod restore;
pub mod rpc;
pub mod runs;

use std::sync::Arc;

use milkrun_repository::Repository;
use milkrun_repository::index::IndexCache;

use agents::Agents;
use runs::Runs;

/// A coordinator of one repository.
#[derive(Clone)]
pub struct Coordinator {
    /// Where restore points go.
    pub repository: Arc<Repository>,
    /// Opened index segments.
    pub cache: IndexCache,
    /// Who is connected.
    pub agents: Agents,
    /// What is under way.
    pub runs: Runs,
}

impl Coordinator {
    /// For an open repository.
    pub fn new(repository: Repository, cache: IndexCache) -> Self {
        Self { repository: Arc::new(repository), cache, agents: Agents::default(), runs: Runs::default() }
    }
}

/// The epoch of this leader. One process leads for its whole life until leases of leaders exist.
pub const EPOCH: u64 = 1;
