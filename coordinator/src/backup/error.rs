//! Why backups fail.

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::id::{PackId, VolumeName};
use milkrun_repository::index::CacheError;
use milkrun_repository::keys::hybrid::HybridError;
use milkrun_repository::last_seen::Changed;
use milkrun_repository::metadata::MetadataError;
use milkrun_repository::point::commit::CommitError;
use milkrun_repository::repository::{NoDomain, PointError};
use milkrun_repository::store::{CreateError, Failure, Key};

use crate::assignment::RefusedCall;
use crate::inventory::InventoryError;
use crate::journal::JournalError;

/// Why a backup failed.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The repository is not what this machine remembers.
    #[error(transparent)]
    Changed(#[from] Changed),
    /// The application's keys are not available.
    #[error(transparent)]
    Keys(#[from] NoDomain),
    /// A source without a single byte is usually one that failed.
    #[error("{0} has no bytes at all: if that is meant, pass --allow-empty")]
    Empty(VolumeName),
    /// The order makes no sense.
    #[error("{0}")]
    Order(String),
    /// A volume failed at its agent.
    #[error("volume {volume}: {reason}")]
    Volume {
        /// Which one.
        volume: String,
        /// All that is known.
        reason: String,
        /// Kind.
        kind: wire::failed::Kind,
    },
    /// An agent named a chunk that it was not told of, or sent something out of order.
    #[error("volume {volume}: the agent's report makes no sense: {what}")]
    Nonsense {
        /// Which volume.
        volume: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The client that opened it never finished it.
    #[error("the run was opened a day ago and never finished; nothing was committed")]
    NeverFinished,
    /// Somebody stopped it.
    #[error("stopped; nothing was committed")]
    Cancelled,
    /// Too many backups wait for their turn.
    #[error(
        "{0} backups of this application wait for their turn already: `milkrun runs` lists them, `milkrun cancel RUN` stops one"
    )]
    TooManyWait(usize),
    /// The agent is gone.
    #[error("the agent is gone; nothing was committed")]
    AgentGone,
    /// No agent is connected on any node that reaches a volume.
    #[error(
        "volume {volume}: no agent has been connected for 15 minutes on a node that reaches it ({nodes}); nothing was committed"
    )]
    NoNode {
        /// Which volume.
        volume: String,
        /// The nodes that reach it.
        nodes: String,
    },
    /// The call belongs to an attempt that is over.
    #[error(transparent)]
    Refused(#[from] RefusedCall),
    /// An agent seals a pack that it was not granted.
    #[error("pack {0} was not granted to this node, or is sealed already")]
    Ungranted(PackId),
    /// An agent asks for a pack that somebody else stored, or is storing.
    #[error("pack {0} is not this run's to store")]
    Foreign(PackId),
    /// An agent wants to store more than its volumes can need.
    #[error("the agent of {node} wants to store more than {most} bytes, which its volumes can't need")]
    Quota {
        /// The node.
        node: String,
        /// Its quota.
        most: u64,
    },
    /// The inventory can't be asked.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// The run's journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The parent can't be read.
    #[error("can't use the parent restore point")]
    Parent(#[source] PointError),
    /// A map of the parent can't be read.
    #[error("can't read the parent's map")]
    Map(#[from] MetadataError),
    /// Committing failed.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// An object could not be stored.
    #[error("can't store {0}")]
    Create(Key, #[source] CreateError),
    /// The local cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A public key can't be used.
    #[error(transparent)]
    Key(#[from] HybridError),
    /// No memory for compression.
    #[error("can't set up compression")]
    Setup(#[source] std::io::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] Failure),
}
