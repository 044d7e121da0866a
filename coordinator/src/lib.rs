//! The control plane: it plans runs, gives assignments and grants, writes the maps, and commits once. Bytes of volumes
//! never pass here.
//!
//! ```text
//! rpc/control  ─ Backup, Restore ─>  backup::execute, restore::execute ─ assignments ─>  rpc/session ─>  agents
//!                                         ^                                                                |
//!                                         └── backup::Run, restore::Run  <── rpc/upload, rpc/download ─────┘
//! ```
//! The coordinator writes everything that is not a volume's bytes: maps, manifests, index segments, placement and root. So an agent
//! needs no metadata key, and can't write a map that names chunks that it was not told of.

mod admission;
pub mod agents;
pub mod assignment;
pub mod backup;
pub mod dispatch;
pub mod freezes;
pub mod inventory;
mod journal;
pub mod key_locks;
pub mod leader;
pub mod manifests;
mod one_line;
pub mod points;
pub mod repositories;
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
use freezes::Freezes;
use inventory::Inventory;
use leader::Leadership;
use milkrun_repository::store::Failure;
use runs::Runs;
use runs::working::Working;

/// What the coordinators of all repositories of a process share: nodes, runs, and the queue of volumes.
#[derive(Clone)]
pub struct Shared {
    /// The connected agents.
    pub agents: Agents,
    /// Freezes file systems on their nodes.
    pub freezes: Freezes,
    /// The runs that are under way.
    pub runs: Runs,
    /// Backups that agents work on.
    pub backups: Working<backup::Run>,
    /// Restores that agents work on.
    pub restores: Working<restore::Run>,
    /// The nodes and applications.
    pub inventory: Arc<dyn Inventory>,
    /// Decides which volume goes next.
    pub dispatcher: Dispatcher,
    /// The cluster whose applications the inventory lists.
    pub cluster: ClusterId,
}

impl Shared {
    /// With what the inventory lists ([`inventory::Embedded`]: what the order says).
    pub fn new(inventory: impl Inventory, cluster: ClusterId) -> Self {
        let (agents, runs) = (Agents::default(), Runs::default());
        let inventory: Arc<dyn Inventory> = Arc::new(inventory);
        let dispatcher = Dispatcher::new(agents.clone(), runs.clone(), inventory.clone());
        let (backups, restores) = (Working::default(), Working::default());
        let freezes = Freezes::new(agents.clone());
        Self { agents, freezes, runs, backups, restores, inventory, dispatcher, cluster }
    }
}

/// How many verifications of a repository go on at once.
const VERIFYING_MAX: usize = 2;

/// The coordinator of one repository.
#[derive(Clone)]
pub struct Coordinator {
    shared: Shared,
    /// How people name the repository; empty where there is one.
    pub name: String,
    /// Where restore points go.
    pub repository: Arc<Repository>,
    /// Opened index segments.
    pub cache: IndexCache,
    /// Limits what is on its way to the store.
    pub(crate) admission: Admission,
    /// Permits for verifications: each one reads much.
    pub(crate) verifying: Arc<tokio::sync::Semaphore>,
    /// The epoch under which it leads.
    pub epoch: u64,
    /// Set if this coordinator can be followed: it then keeps journals. Nobody can go on for an embedded one.
    leadership: Option<Arc<dyn Leadership>>,
}

impl std::ops::Deref for Coordinator {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Coordinator {
    /// The embedded coordinator: the only one of its process, and no other one follows it.
    pub fn new(shared: Shared, repository: Repository, cache: IndexCache) -> Self {
        let admission = Admission::new(shared.inventory.clone(), "");
        let (name, repository) = (String::new(), Arc::new(repository));
        let verifying = Arc::new(tokio::sync::Semaphore::new(VERIFYING_MAX));
        Self { shared, name, repository, cache, admission, verifying, epoch: EMBEDDED_EPOCH, leadership: None }
    }

    /// A coordinator that leads under `epoch` and that another one can follow.
    pub fn leading(
        shared: Shared,
        name: String,
        repository: Arc<Repository>,
        cache: IndexCache,
        (epoch, leadership): (u64, Arc<dyn Leadership>),
    ) -> Self {
        let admission = Admission::new(shared.inventory.clone(), &name);
        let verifying = Arc::new(tokio::sync::Semaphore::new(VERIFYING_MAX));
        Self { shared, name, repository, cache, admission, verifying, epoch, leadership: Some(leadership) }
    }

    /// Goes on with every run that an earlier leader left unfinished.
    ///
    /// # Errors
    /// When the store can't be asked for them.
    pub async fn take_over(&self) -> Result<(), Failure> {
        backup::take_over(self).await
    }
}

impl Shared {
    /// The name by which roles refer to an application; `None`: only roles for all applications cover it.
    pub(crate) fn role_name<'a>(&self, application: &'a AppId) -> Option<&'a str> {
        application.name_in(&self.cluster).map(AppName::as_str)
    }
}

/// The epoch of the embedded coordinator: there is no other coordinator beside it.
pub const EMBEDDED_EPOCH: u64 = 1;
