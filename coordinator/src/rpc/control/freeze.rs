//! Freezing the file systems of an application for an operator.

use std::time::Duration;

use milkrun_identity::{Action, Peer};
use milkrun_proto::control::v1 as control;
use tonic::Status;

use super::{Service, may};
use crate::freezes::{FreezeError, Mount};
use crate::rpc::status;

/// The most file systems of one request.
const MOUNTS_MAX: usize = 10_000;

fn mounts(places: Vec<control::Place>) -> Result<Vec<Mount>, Status> {
    if places.len() > MOUNTS_MAX {
        return Err(status::nonsense("too many file systems in one request"));
    }
    Ok(places.into_iter().map(|place| Mount { node: place.node, path: place.path }).collect())
}

fn refused(e: &FreezeError) -> Status {
    match e {
        // An agent that is not there now may be there soon, and nobody waits for it.
        FreezeError::NotBegun(why) if matches!(**why, FreezeError::NoAgent(_)) => Status::unavailable(e.to_string()),
        e => Status::failed_precondition(e.to_string()),
    }
}

impl Service {
    /// Freezes all of them for a run that is under way, or none.
    pub(super) async fn freeze_mounts(&self, peer: &Peer, asked: control::FreezeRequest) -> Result<(), Status> {
        may(peer, Action::Orchestrate, None)?;
        // A coordinator that has just taken over learns of its runs one after the other.
        let feed = self.0.shared().runs.feed(&Self::run_id(&asked.run)?);
        let run = feed.ok_or_else(|| Status::unavailable("there is no such run yet"))?.now();
        if run.ended.is_some() {
            return Err(Status::failed_precondition("the run is over"));
        }
        if run.waiting {
            return Err(Status::unavailable("it is not the run's turn"));
        }
        let limit = Duration::from_millis(asked.limit_ms.into());
        let (freezes, mounts) = (self.0.shared().freezes.clone(), mounts(asked.mounts)?);
        // Whoever asks may go away in the middle: what was frozen by then is thawed all the same if the rest is refused.
        let frozen = tokio::spawn(async move { freezes.freeze(&asked.run, &mounts, limit).await });
        frozen.await.map_err(|e| Status::internal(e.to_string()))?.map_err(|e| refused(&e))
    }

    /// Thaws them, also for a run that is over or was forgotten.
    pub(super) async fn thaw_mounts(
        &self,
        peer: &Peer,
        asked: control::ThawRequest,
    ) -> Result<control::ThawReply, Status> {
        may(peer, Action::Orchestrate, None)?;
        let (freezes, mounts) = (self.0.shared().freezes.clone(), mounts(asked.mounts)?);
        let thawed = tokio::spawn(async move { freezes.thaw(&asked.run, &mounts).await });
        let thawed = thawed.await.map_err(|e| Status::internal(e.to_string()))?;
        // Asked again, the agent may be there.
        let thawed = thawed.map_err(|e| Status::unavailable(e.to_string()))?;
        let mounts = thawed.into_iter().map(|thawed| control::Thawed {
            early: thawed.early.is_some(),
            held_ms: u32::try_from(thawed.held.as_millis()).unwrap_or(u32::MAX),
            reason: thawed.early.unwrap_or_default(),
        });
        Ok(control::ThawReply { mounts: mounts.collect() })
    }
}
