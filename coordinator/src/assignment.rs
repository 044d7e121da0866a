//! An assignment gives a volume of a run to the agent of a node, under an attempt. The leader makes it. Calls under any other
//! assignment are refused.

use milkrun_identity::Peer;
use milkrun_proto::agent::v1 as wire;

/// Why a call is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedCall {
    /// The call names no run that is under way.
    #[error("the run is not under way")]
    NoRun,
    /// The call names no volume of the run.
    #[error("the run has no volume {0:?}")]
    NoVolume(String),
    /// The call belongs to an older leader's epoch or to an older attempt.
    #[error("the assignment was given to somebody else since")]
    Stale,
    /// The call comes from another node than the one that has the assignment.
    #[error("the assignment is another node's")]
    Foreign,
}

/// An assignment that is in force: which node has the volume, under which attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// The attempt.
    pub attempt: u32,
    /// The node.
    pub node: String,
}

impl Assigned {
    /// Checks that a call of `peer` under `a` belongs to this assignment.
    ///
    /// # Errors
    /// [`RefusedCall`].
    pub fn check(&self, a: &wire::Assignment, peer: &Peer) -> Result<(), RefusedCall> {
        match peer {
            Peer::Local => {}
            Peer::Agent(node) if node.as_str() == self.node => {}
            _ => return Err(RefusedCall::Foreign),
        }
        if a.attempt == self.attempt { Ok(()) } else { Err(RefusedCall::Stale) }
    }
}
