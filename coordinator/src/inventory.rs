//! Nodes, applications, their volumes, and where each volume can be read. A file lists them today ([`mod@file`]); a cluster will
//! answer behind the same trait. In the embedded mode ([`Embedded`]) the order lists them.

mod bandwidth;
pub mod file;

pub use bandwidth::Bandwidth;

use std::time::Duration;

use milkrun_repository::clock::Moment;
use milkrun_repository::id::{AppName, VolumeName};

/// A place where a volume can be read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The node; `None`: any agent that is connected.
    pub node: Option<String>,
    /// The device, file or pipe there.
    pub path: String,
}

/// A volume or stream to back up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSpec {
    /// Its name.
    pub name: VolumeName,
    /// Whether it is a stream.
    pub stream: bool,
    /// Its size in bytes, where that is known beforehand; it limits what its agent may store.
    pub size: Option<u64>,
    /// Where it can be read.
    pub reach: Vec<Reach>,
    /// A file on the node that lists what may have changed since the parent.
    pub changed_from: Option<String>,
    /// What a clean file system marks as free is left out.
    pub skip_free: bool,
    /// When its snapshot was taken; `None`: when the run began.
    pub moment: Option<Moment>,
    /// Facts of its claim and its persistent volume: a JSON object in one line; empty outside of Kubernetes.
    pub claim: String,
}

/// The limits of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeLimits {
    /// Volumes at once.
    pub volumes: usize,
}

/// The limits of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// Volumes at once, on all nodes together.
    pub volumes: usize,
    /// Bytes of packs on their way at once, from all nodes together.
    pub bytes_in_flight: Option<u64>,
    /// Bytes of packs per second, from all nodes together.
    pub bandwidth: Bandwidth,
}

/// The limits of nodes and stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loads {
    /// The limits of each repository that has none of its own, for all nodes together.
    pub store: StoreLimits,
    /// The limits of single repositories, for all nodes together. Volumes are counted over all repositories: `store` limits them.
    pub repositories: std::collections::BTreeMap<String, StoreLimits>,
    /// The limits of each listed node; `None`: any node may connect, without limits.
    pub nodes: Option<std::collections::BTreeMap<String, NodeLimits>>,
}

impl Loads {
    /// The limits of a repository's store.
    pub fn of(&self, repository: &str) -> &StoreLimits {
        self.repositories.get(repository).unwrap_or(&self.store)
    }
}

impl Default for NodeLimits {
    fn default() -> Self {
        Self { volumes: 4 }
    }
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self { volumes: 256, bytes_in_flight: None, bandwidth: Bandwidth::default() }
    }
}

/// An application as the inventory knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Application {
    /// What is backed up.
    pub sources: Vec<SourceSpec>,
    /// Where restores may write, besides the places of the sources.
    pub targets: Vec<Reach>,
    /// How old its newest restore point may become. This is the promise by which work is ordered.
    pub rpo: Option<Duration>,
}

/// Why the inventory gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// It has no such application.
    #[error("the inventory has no application {0}")]
    NoApplication(AppName),
    /// It can't be read.
    #[error("can't read the inventory {path:?}")]
    Read {
        /// Its file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It makes no sense.
    #[error("the inventory {path:?}: {what}")]
    Nonsense {
        /// Its file.
        path: std::path::PathBuf,
        /// What is wrong, and where.
        what: String,
    },
}

/// What the coordinator asks the inventory. Each answer is used once: the next run asks again.
pub trait Inventory: Send + Sync + 'static {
    /// Whether an order may say what is read and written, and where. Only in the embedded mode, where the person at the command
    /// line and the agent are one.
    fn trusts_orders(&self) -> bool;

    /// The limits of a node; `None` for a node that is not listed: its agent is refused.
    ///
    /// # Errors
    /// [`InventoryError`].
    fn node(&self, node: &str) -> Result<Option<NodeLimits>, InventoryError>;

    /// All nodes.
    ///
    /// # Errors
    /// [`InventoryError`].
    fn nodes(&self) -> Result<Vec<String>, InventoryError>;

    /// The limits of nodes and stores.
    ///
    /// # Errors
    /// [`InventoryError`].
    fn loads(&self) -> Result<Loads, InventoryError>;

    /// An application.
    ///
    /// # Errors
    /// [`InventoryError`].
    fn application(&self, name: &AppName) -> Result<Application, InventoryError>;
}

/// The inventory of the embedded mode: everything is on this machine, and the order names it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Embedded;

impl Inventory for Embedded {
    fn trusts_orders(&self) -> bool {
        true
    }

    fn node(&self, _: &str) -> Result<Option<NodeLimits>, InventoryError> {
        Ok(Some(NodeLimits { volumes: usize::MAX }))
    }

    fn nodes(&self) -> Result<Vec<String>, InventoryError> {
        Ok(Vec::new())
    }

    fn loads(&self) -> Result<Loads, InventoryError> {
        let store = StoreLimits { volumes: usize::MAX, ..StoreLimits::default() };
        Ok(Loads { store, repositories: std::collections::BTreeMap::new(), nodes: None })
    }

    fn application(&self, name: &AppName) -> Result<Application, InventoryError> {
        Err(InventoryError::NoApplication(name.clone()))
    }
}
