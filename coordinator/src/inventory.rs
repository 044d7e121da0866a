//! Nodes, applications, their volumes, and where each can be read. A file lists them today ([`mod@file`]); a cluster will answer behind the same
//! trait. In the embedded mode ([`Embedded`]) the order lists them.

mod bandwidth;
pub mod file;

pub use bandwidth::Bandwidth;

use std::time::Duration;

use milkrun_repository::clock::Moment;
use milkrun_repository::id::{AppName, VolumeName};

/// A place where a volume can be read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The node; `None`: whichever agent there is.
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
    /// Its bytes, where they are known beforehand: bounds what its agent may store.
    pub size: Option<u64>,
    /// Where it can be read.
    pub reach: Vec<Reach>,
    /// A file on the node that lists what may have changed since the parent.
    pub changed_from: Option<String>,
    /// What a clean file system says is free is left out.
    pub skip_free: bool,
    /// When its snapshot was taken; `None`: when the run began.
    pub moment: Option<Moment>,
    /// Facts of its claim and its persistent volume: a JSON object in one line; empty outside of Kubernetes.
    pub claim: String,
}

/// What a node takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeLimits {
    /// Volumes at once.
    pub volumes: usize,
}

/// What the store takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// Volumes at once, on all nodes together.
    pub volumes: usize,
    /// Bytes of packs on their way at once, from all nodes together.
    pub bytes_in_flight: Option<u64>,
    /// Bytes of packs per second, from all nodes together.
    pub bandwidth: Bandwidth,
}

/// What nodes and store take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loads {
    /// All nodes together, to each repository that has no limits of its own.
    pub store: StoreLimits,
    /// All nodes together, by repository. Volumes are counted over all repositories: `store` bounds them.
    pub repositories: std::collections::BTreeMap<String, StoreLimits>,
    /// Each node that is listed; `None`: any node, without bounds.
    pub nodes: Option<std::collections::BTreeMap<String, NodeLimits>>,
}

impl Loads {
    /// What the store of a repository takes.
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
    /// Where restores may write, besides the sources' own places.
    pub targets: Vec<Reach>,
    /// How old its newest restore point may become: the promise by which work is ordered.
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

/// What the coordinator asks. Answers are used once: the next run asks again.
pub trait Inventory: Send + Sync + 'static {
    /// Whether whoever orders says what is read and written, and where. Only in the embedded mode, where the person at the
    /// command line and the agent are one.
    fn trusts_orders(&self) -> bool;

    /// What a node takes; `None` for a node that is not listed: its agent is refused.
    ///
    /// # Errors
    /// [`InventoryError`].
    fn node(&self, node: &str) -> Result<Option<NodeLimits>, InventoryError>;

    /// All nodes.
    ///
    /// # Errors
    /// [`InventoryError`].
    fn nodes(&self) -> Result<Vec<String>, InventoryError>;

    /// What nodes and store take.
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

/// Everything is here, and who orders names it.
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
