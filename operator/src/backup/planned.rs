//! What a backup is to do next.

use std::time::Duration;

use milkrun_resources::BackupStatus;

use super::observe::Observed;
use crate::actions::Action;
use crate::coordinator::Run;
use crate::run::{Call, Going};

/// How soon to look again where status or labels that were just written have to be seen.
pub(super) const PROMPTLY: Duration = Duration::from_millis(50);
/// How soon to look again at groups: nobody tells how they get on, since their members have no label of ours.
pub(super) const QUICKLY: Duration = Duration::from_millis(200);
/// How soon to look again where nothing changes quickly.
pub(super) const LATER: Duration = Duration::from_secs(2);

/// What to do next.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What to do in the cluster.
    pub actions: Vec<Action>,
    /// What to tidy up in the cluster while the run goes on. What is refused is tried again.
    pub tidying: Vec<Action>,
    /// What to ask of the coordinator.
    pub calls: Vec<Call>,
    /// The status from now on.
    pub status: BackupStatus,
    /// The run that is followed before the next look: what happens next happens at the coordinator.
    pub follow: Option<Vec<u8>>,
    /// When to look again; `None`: all is done.
    pub again: Option<Duration>,
}

impl Plan {
    /// The run, if it goes on and it is its turn. Otherwise status says why not.
    pub(super) fn going<'a>(&mut self, seen: &'a Observed) -> Option<&'a Run> {
        match seen.run.going() {
            // A run may learn only after it was opened that it has to wait.
            Going::On(run) if run.waiting => {
                self.status.message = "another backup of the application is under way".into();
                self.again = Some(LATER);
            }
            Going::On(run) => return Some(run),
            Going::NotOpened => {}
            Going::Unknown(why) => {
                why.clone_into(&mut self.status.message);
                self.again = Some(LATER);
            }
            Going::Failed(why) => self.status.failure = Some(why.to_owned()),
        }
        None
    }
}
