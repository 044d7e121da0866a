//! A run of the coordinator, as backups and restores see it, and what they ask for.

use std::time::Duration;

use kube::runtime::controller::Action as Next;
use milkrun_proto::control::v1 as control;
use milkrun_repository::point::catalog::chain;

use crate::actions::{Action, ActionError};
use crate::controller::Context;
use crate::coordinator::{AskError, Coordinator, Run};

/// How soon to look after a run was followed.
const FOLLOWED: Duration = Duration::from_millis(20);

/// The run at the coordinator.
#[derive(Clone, Debug, Default)]
pub enum RunSeen {
    /// Nobody has asked for it.
    #[default]
    NotOpened,
    /// It is like this.
    Opened(Box<Run>),
    /// The coordinator can't be asked now.
    Away(String),
    /// The coordinator refuses it.
    Refused(String),
}

/// Whether a run goes on.
#[derive(Clone, Copy, Debug)]
pub enum Going<'a> {
    /// It does.
    On(&'a Run),
    /// Nobody has asked for it.
    NotOpened,
    /// Nobody knows now, for this reason.
    Unknown(&'a str),
    /// It failed, for this reason.
    Failed(&'a str),
}

impl RunSeen {
    /// Of the coordinator's answer.
    #[must_use]
    pub fn of(answer: Result<Run, AskError>) -> Self {
        match answer {
            Ok(run) => Self::Opened(Box::new(run)),
            Err(AskError::Away(why)) => Self::Away(why),
            Err(AskError::Refused(why)) => Self::Refused(why),
        }
    }

    /// Whether it goes on.
    #[must_use]
    pub fn going(&self) -> Going<'_> {
        match self {
            Self::NotOpened => Going::NotOpened,
            Self::Away(why) => Going::Unknown(why),
            Self::Refused(why) => Going::Failed(why),
            Self::Opened(run) if run.state() == control::run::State::Failed => Going::Failed(&run.reason),
            Self::Opened(run) => Going::On(run),
        }
    }
}

/// A call to the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// Adds a volume to a backup.
    AddSource(Box<control::AddSourceRequest>),
    /// Adds a target to a restore.
    AddTarget(Box<control::AddTargetRequest>),
    /// Says that all are added.
    Finish(control::FinishOrder),
    /// Stops the run.
    Cancel(Vec<u8>),
}

impl Call {
    async fn ask(self, coordinator: &Coordinator) -> Result<(), AskError> {
        match self {
            Self::AddSource(request) => coordinator.add_source(*request).await,
            Self::AddTarget(request) => coordinator.add_target(*request).await,
            Self::Finish(order) => coordinator.finish(order).await,
            // A run that ended is no longer known.
            Self::Cancel(run) => coordinator.cancel(run).await.or(Ok(())),
        }
    }
}

/// When a run's object is looked at again. `follow`: the run at the coordinator, which is waited for.
pub(crate) async fn next(coordinator: &Coordinator, follow: Option<Vec<u8>>, again: Option<Duration>) -> Next {
    if let Some(run) = follow
        && coordinator.follow(run).await
    {
        return Next::requeue(FOLLOWED);
    }
    again.map_or_else(Next::await_change, Next::requeue)
}

/// What became of a plan.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// What never works as it is.
    pub(crate) refused: Option<String>,
    /// What may work later.
    pub(crate) later: Option<String>,
}

/// Does what was planned. What may work later is tried again at the next look. `cleans`: what is refused is tried again, too.
pub(crate) async fn apply(actions: &[Action], calls: &[Call], cleans: bool, context: &Context) -> Applied {
    let mut applied = Applied::default();
    for action in actions {
        match action.apply(&context.client).await {
            Ok(()) => {}
            Err(e @ ActionError::Refused { .. }) if !cleans => {
                return Applied { refused: Some(e.to_string()), ..applied };
            }
            Err(e) => {
                let why = chain(&e);
                tracing::warn!(why, "tried again");
                applied.later = Some(why);
            }
        }
    }
    for call in calls {
        match call.clone().ask(&context.coordinator).await {
            Ok(()) => {}
            Err(AskError::Refused(why)) if !cleans => return Applied { refused: Some(why), ..applied },
            // The calls after it count on it.
            Err(e) => return Applied { later: Some(e.to_string()), ..applied },
        }
    }
    applied
}
