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
pub mod dispatch;
pub mod inventory;
pub mod manifests;
mod moves;
pub mod placement;
pub mod restore;
pub mod rpc;
pub mod runs;
pub mod secret;

use std::sync::Arc;

use milkrun_repository::Repository;
use milkrun_repository::index::IndexCache;

use agents::Agents;
use dispatch::Dispatcher;
use inventory::Inventory;
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
    /// What there is.
    pub inventory: Arc<dyn Inventory>,
    /// Who goes next.
    pub dispatcher: Dispatcher,
}

impl Coordinator {
    /// For an open repository and what the inventory lists ([`inventory::Embedded`]: what the order says).
    pub fn new(repository: Repository, cache: IndexCache, inventory: impl Inventory) -> Self {
        let (agents, runs) = (Agents::default(), Runs::default());
        let inventory: Arc<dyn Inventory> = Arc::new(inventory);
        let dispatcher = Dispatcher::new(agents.clone(), runs.clone(), inventory.clone());
        Self { repository: Arc::new(repository), cache, agents, runs, inventory, dispatcher }
    }
}

/// The epoch of this leader. One process leads for its whole life until leases of leaders exist.
pub const EPOCH: u64 = 1;
