//! Assignments: a leader gives a volume of a run to the agent of a node, under an attempt. Calls under another assignment are refused.

use milkrun_identity::Peer;
use milkrun_proto::agent::v1 as wire;

/// Why a call is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedCall {
    /// It names no run that is under way.
    #[error("the run is not under way")]
    NoRun,
    /// It names no volume of the run.
    #[error("the run has no volume {0:?}")]
    NoVolume(String),
    /// It comes from an older leader's time or an older attempt.
    #[error("the assignment was given to somebody else since")]
    Stale,
    /// It comes from another node than the one that has the assignment.
    #[error("the assignment is another node's")]
    Foreign,
}

/// An assignment that is in force: who has it, under which attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// The attempt.
    pub attempt: u32,
    /// The node.
    pub node: String,
}

impl Assigned {
    /// Whether a call of `peer` under `a` is this assignment's.
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
