//! Runs of one kind that agents work on, as the services find them by an assignment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::id::RunId;

use crate::assignment::RefusedCall;

/// The table.
pub struct Working<R> {
    runs: Arc<Mutex<HashMap<RunId, Arc<R>>>>,
    epoch: u64,
}

impl<R> Clone for Working<R> {
    fn clone(&self) -> Self {
        Self { runs: self.runs.clone(), epoch: self.epoch }
    }
}

impl<R> Working<R> {
    /// Of a coordinator that leads under `epoch`.
    pub fn new(epoch: u64) -> Self {
        Self { runs: Arc::default(), epoch }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<RunId, Arc<R>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run begins.
    pub(crate) fn begin(&self, id: RunId, run: Arc<R>) {
        self.table().insert(id, run);
    }

    /// A run ended.
    pub(crate) fn end(&self, id: &RunId) {
        self.table().remove(id);
    }

    /// The run of an assignment of this leader's. Whether the assignment is in force, the run says.
    ///
    /// # Errors
    /// [`RefusedCall`].
    pub(crate) fn find(&self, a: Option<&wire::Assignment>) -> Result<Arc<R>, RefusedCall> {
        let a = a.ok_or(RefusedCall::NoRun)?;
        if a.epoch != self.epoch {
            return Err(RefusedCall::Stale);
        }
        let id = RunId::try_from(&a.run[..]).map_err(|_| RefusedCall::NoRun)?;
        self.table().get(&id).cloned().ok_or(RefusedCall::NoRun)
    }
}
