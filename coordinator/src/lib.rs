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

mod admission;
pub mod agents;
pub mod assignment;
pub mod backup;
pub mod dispatch;
pub mod inventory;
mod journal;
pub mod leader;
pub mod manifests;
mod one_line;
pub mod restore;
pub mod rpc;
pub mod runs;
pub mod scheduler;
pub mod secret;
mod skipped;
mod volume_assignments;

use std::sync::Arc;

use milkrun_repository::Repository;
use milkrun_repository::id::{AppId, AppName, ClusterId};
use milkrun_repository::index::IndexCache;

use admission::Admission;
use agents::Agents;
use dispatch::Dispatcher;
use inventory::Inventory;
use leader::Leadership;
use milkrun_repository::store::Failure;
use runs::Runs;
use runs::working::Working;

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
    /// Backups that agents work on.
    pub backups: Working<backup::Run>,
    /// Restores that agents work on.
    pub restores: Working<restore::Run>,
    /// What there is.
    pub inventory: Arc<dyn Inventory>,
    /// Who goes next.
    pub dispatcher: Dispatcher,
    /// What may be on its way to the store.
    pub(crate) admission: Admission,
    /// The cluster whose applications the inventory lists.
    pub cluster: ClusterId,
    /// The epoch under which it leads.
    pub epoch: u64,
    /// Whether it leads, and keeps journals so that another can go on; nobody goes on from an embedded one.
    leadership: Option<Arc<dyn Leadership>>,
}

impl Coordinator {
    /// For an open repository and what the inventory lists ([`inventory::Embedded`]: what the order says).
    pub fn new(repository: Repository, cache: IndexCache, inventory: impl Inventory) -> Self {
        Self::over(Arc::new(repository), cache, inventory, EMBEDDED_EPOCH, None)
    }

    /// One that leads under `epoch` and can be followed by another.
    pub fn leading(
        repository: Arc<Repository>,
        cache: IndexCache,
        inventory: impl Inventory,
        epoch: u64,
        leadership: Arc<dyn Leadership>,
    ) -> Self {
        Self::over(repository, cache, inventory, epoch, Some(leadership))
    }

    fn over(
        repository: Arc<Repository>,
        cache: IndexCache,
        inventory: impl Inventory,
        epoch: u64,
        leadership: Option<Arc<dyn Leadership>>,
    ) -> Self {
        let (agents, runs) = (Agents::default(), Runs::default());
        let (backups, restores) = (Working::new(epoch), Working::new(epoch));
        let inventory: Arc<dyn Inventory> = Arc::new(inventory);
        let dispatcher = Dispatcher::new(agents.clone(), runs.clone(), inventory.clone());
        let admission = Admission::new(inventory.clone());
        let cluster = ClusterId::default();
        Self {
            repository,
            cache,
            agents,
            runs,
            backups,
            restores,
            inventory,
            dispatcher,
            admission,
            cluster,
            epoch,
            leadership,
        }
    }

    /// Of this cluster.
    #[must_use]
    pub fn of_cluster(self, cluster: ClusterId) -> Self {
        Self { cluster, ..self }
    }

    /// How roles name an application; `None`: only roles for all applications cover it.
    pub(crate) fn role_name<'a>(&self, application: &'a AppId) -> Option<&'a str> {
        application.name_in(&self.cluster).map(AppName::as_str)
    }

    /// Goes on with every run that an earlier leader left unfinished.
    ///
    /// # Errors
    /// When the store can't be asked which those are.
    pub async fn take_over(&self) -> Result<(), Failure> {
        backup::take_over(self).await
    }
}

/// The epoch of a coordinator that nobody else can be besides: the embedded one.
pub const EMBEDDED_EPOCH: u64 = 1;
