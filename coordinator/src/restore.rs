//! Restore runs: what the download service works on ([`Run`]), and the run itself (`execute`).

mod execute;
mod opened;
mod order;
mod plan;
mod progress;
mod take_over;
mod targets;

pub(crate) use execute::execute;
pub(crate) use opened::execute_opened;
pub use order::{Order, TargetSpec};
pub use plan::{PageStream, PlanForm};
pub(crate) use take_over::LeftRestore;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use milkrun_identity::Peer;
use milkrun_proto::agent::v1 as wire;
use milkrun_repository::Repository;
use milkrun_repository::id::{PackId, RunId};
use milkrun_repository::keys::hybrid::HybridError;
use milkrun_repository::metadata::MetadataError;
use milkrun_repository::pack::PackKey;
use milkrun_repository::point::catalog::FindError;
use milkrun_repository::repository::{OpenPoint, PointError};
use milkrun_repository::store::{Failure, Key};

use crate::assignment::{Assigned, RefusedCall};
use crate::inventory::InventoryError;

/// Why a restore failed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The client that opened it never finished it.
    #[error("the restore was opened a day ago and never finished; nothing was written")]
    NeverFinished,
    /// The order makes no sense.
    #[error("{0}")]
    Order(String),
    /// There is no such point.
    #[error("{selector}: {source}")]
    Find {
        /// What was asked for.
        selector: String,
        /// Why.
        source: FindError,
    },
    /// The point can't be read.
    #[error(transparent)]
    Point(#[from] PointError),
    /// A map can't be read.
    #[error("can't read the map")]
    Map(#[from] MetadataError),
    /// A map needs a pack that is not in the placement.
    #[error("{0} is needed by a map and is not in the placement")]
    Unplaced(Key),
    /// A pack's key can't be opened.
    #[error("the key of {0}")]
    PackKey(Key, #[source] HybridError),
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
    /// Somebody stopped it.
    #[error("stopped; the targets are not complete")]
    Cancelled,
    /// Its agent is gone.
    #[error("the agent is gone; the targets are not complete")]
    AgentGone,
    /// No agent connected on a target's node.
    #[error("volume {volume}: no agent has been connected for 15 minutes on {node}; the targets are not complete")]
    NoNode {
        /// The volume.
        volume: String,
        /// The node.
        node: String,
    },
    /// The one who ordered may not restore this application.
    #[error("{who} has no role to restore the application of {selector}")]
    Role {
        /// The one who ordered.
        who: String,
        /// The selector that was given. They may not learn whose point it is.
        selector: String,
    },
    /// Another coordinator goes on with it.
    #[error("{0} was written by somebody else: another coordinator leads, and goes on with the restore")]
    Superseded(Key),
    /// Another coordinator leads, and may go on with the restore that ended here.
    #[error("another coordinator leads since, and may write the targets again: `milkrun runs` tells")]
    Followed,
    /// The restore is over, but its journal still says that it is not.
    #[error(
        "{how}; but the repository takes no writes, so that the end of the restore could not be written down. A coordinator that starts \
         before it is would go on with the restore: keep this one running until its log says that the end is written"
    )]
    Unended {
        /// How it ended.
        how: String,
    },
    /// Nobody went on with it for too long.
    #[error("nobody went on with it for more than an hour; the targets are not complete: order it again")]
    Old,
    /// Two restores to one place at the same time.
    #[error("{path} is the target of restore {run}, which is under way: wait for its end, or cancel it")]
    Taken {
        /// The place.
        path: String,
        /// The other restore.
        run: RunId,
    },
    /// The inventory can't be asked.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// The store.
    #[error(transparent)]
    Store(#[from] Failure),
}

/// A restore run, as the download service sees it.
pub struct Run {
    repository: Arc<Repository>,
    point: OpenPoint,
    /// For each volume name, its number in the point.
    volumes: HashMap<String, usize>,
    keys: tokio::sync::Mutex<HashMap<PackId, PackKey>>,
    /// Which node has which volume, under which attempt.
    assigned: Mutex<HashMap<String, Assigned>>,
}

impl Run {
    /// Checks that an assignment is one of this run's. Returns the number of its volume.
    ///
    /// # Errors
    /// [`RefusedCall`].
    pub fn check(&self, a: &wire::Assignment, peer: &Peer) -> Result<usize, RefusedCall> {
        let volume = self.volumes.get(&a.volume).copied();
        let volume = volume.ok_or_else(|| RefusedCall::NoVolume(a.volume.clone()))?;
        let assigned = self.assigned.lock().unwrap_or_else(PoisonError::into_inner);
        assigned.get(&a.volume).ok_or(RefusedCall::Stale)?.check(a, peer)?;
        Ok(volume)
    }

    /// Bytes of a volume.
    fn len_of(&self, volume: &str) -> u64 {
        self.volumes.get(volume).map_or(0, |&i| self.point.body.volumes[i].map.len)
    }

    /// A volume has a node, or none any more: only calls of that attempt count.
    fn assign(&self, volume: &str, to: Option<Assigned>) {
        let mut assigned = self.assigned.lock().unwrap_or_else(PoisonError::into_inner);
        match to {
            Some(to) => assigned.insert(volume.to_owned(), to),
            None => assigned.remove(volume),
        };
    }
}
