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
use inventory::Inventory;
use leader::Leadership;
use milkrun_repository::store::Failure;
use runs::Runs;
use runs::working::Working;

/// What the coordinators of all repositories of a process share: nodes, runs, and who goes next.
#[derive(Clone)]
pub struct Shared {
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
    /// The cluster whose applications the inventory lists.
    pub cluster: ClusterId,
}

impl Shared {
    /// Over what the inventory lists ([`inventory::Embedded`]: what the order says).
    pub fn new(inventory: impl Inventory, cluster: ClusterId) -> Self {
        let (agents, runs) = (Agents::default(), Runs::default());
        let inventory: Arc<dyn Inventory> = Arc::new(inventory);
        let dispatcher = Dispatcher::new(agents.clone(), runs.clone(), inventory.clone());
        let (backups, restores) = (Working::default(), Working::default());
        Self { agents, runs, backups, restores, inventory, dispatcher, cluster }
    }
}

/// Verifications of a repository at once.
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
    /// What may be on its way to the store.
    pub(crate) admission: Admission,
    /// Who may verify through it now: each reads much.
    pub(crate) verifying: Arc<tokio::sync::Semaphore>,
    /// The epoch under which it leads.
    pub epoch: u64,
    /// Whether it leads, and keeps journals so that another can go on; nobody goes on from an embedded one.
    leadership: Option<Arc<dyn Leadership>>,
}

impl std::ops::Deref for Coordinator {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Coordinator {
    /// The only one of its process, which nobody follows: the embedded one.
    pub fn new(shared: Shared, repository: Repository, cache: IndexCache) -> Self {
        let admission = Admission::new(shared.inventory.clone(), "");
        let (name, repository) = (String::new(), Arc::new(repository));
        let verifying = Arc::new(tokio::sync::Semaphore::new(VERIFYING_MAX));
        Self { shared, name, repository, cache, admission, verifying, epoch: EMBEDDED_EPOCH, leadership: None }
    }

    /// One that leads under `epoch` and can be followed by another.
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
    /// When the store can't be asked which those are.
    pub async fn take_over(&self) -> Result<(), Failure> {
        backup::take_over(self).await
    }
}

impl Shared {
    /// How roles name an application; `None`: only roles for all applications cover it.
    pub(crate) fn role_name<'a>(&self, application: &'a AppId) -> Option<&'a str> {
        application.name_in(&self.cluster).map(AppName::as_str)
    }
}

/// The epoch of a coordinator that nobody else can be besides: the embedded one.
pub const EMBEDDED_EPOCH: u64 = 1;
