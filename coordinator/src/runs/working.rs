//! Runs of one kind that agents work on, as the services find them by an assignment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::id::RunId;

use crate::assignment::RefusedCall;

/// Runs, each with the epoch of its repository's leader.
type ByRun<R> = HashMap<RunId, (u64, Arc<R>)>;

/// The table.
pub struct Working<R> {
    runs: Arc<Mutex<ByRun<R>>>,
}

impl<R> Clone for Working<R> {
    fn clone(&self) -> Self {
        Self { runs: self.runs.clone() }
    }
}

impl<R> Default for Working<R> {
    fn default() -> Self {
        Self { runs: Arc::default() }
    }
}

impl<R> Working<R> {
    fn table(&self) -> MutexGuard<'_, ByRun<R>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run begins, under this epoch of its repository's leader.
    pub(crate) fn begin(&self, id: RunId, epoch: u64, run: Arc<R>) {
        self.table().insert(id, (epoch, run));
    }

    /// A run ended.
    pub(crate) fn end(&self, id: &RunId) {
        self.table().remove(id);
    }

    /// The run of an assignment of this leader. The run itself checks whether the assignment is in force.
    ///
    /// # Errors
    /// [`RefusedCall`].
    pub(crate) fn find(&self, a: Option<&wire::Assignment>) -> Result<Arc<R>, RefusedCall> {
        let a = a.ok_or(RefusedCall::NoRun)?;
        let id = RunId::try_from(&a.run[..]).map_err(|_| RefusedCall::NoRun)?;
        let (epoch, run) = self.table().get(&id).cloned().ok_or(RefusedCall::NoRun)?;
        if a.epoch == epoch { Ok(run) } else { Err(RefusedCall::Stale) }
    }
}
