//! Freezing and thawing, as the coordinator asks for it. Neither may hold up the session: both wait for devices.

use std::path::{Path, PathBuf};
use std::time::Duration;

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::point::catalog::chain;
use wire::freeze_state::State;
use wire::from_agent::Message as Up;

use super::{Session, message};
use crate::freeze::{Freezer, Thawed};

impl Session {
    /// Freezes, and answers.
    pub(super) fn freeze(&self, asked: wire::FreezeFileSystem) {
        let wire::FreezeFileSystem { question, run, path, limit_ms, only_sync } = asked;
        let limit = Duration::from_millis(limit_ms.into());
        self.answer(question, path.into(), move |freezer, mount| {
            let done = if only_sync {
                freezer.sync(mount).map(|()| State::Synced)
            } else {
                freezer.freeze(&run, mount, limit).map(|()| State::Frozen)
            };
            let (state, reason) = match done {
                Ok(state) => (state, String::new()),
                Err(e) => (State::NotFrozen, chain(&e)),
            };
            tracing::info!(mount = %mount.display(), limit_s = limit.as_secs_f64(), ?state, reason, "freezing");
            wire::FreezeState { state: state.into(), reason, ..Default::default() }
        });
    }

    /// Thaws, and answers.
    pub(super) fn thaw(&self, asked: wire::ThawFileSystem) {
        let wire::ThawFileSystem { question, run, path } = asked;
        self.answer(question, path.into(), move |freezer, mount| match freezer.thaw(&run, mount) {
            None => wire::FreezeState { state: State::NotFrozen.into(), ..Default::default() },
            Some(Thawed { held, early }) => {
                tracing::info!(mount = %mount.display(), held_s = held.as_secs_f64(), early, "thawed");
                let state = if early { State::Early } else { State::Thawed };
                let held_ms = u32::try_from(held.as_millis()).unwrap_or(u32::MAX);
                wire::FreezeState { state: state.into(), held_ms, ..Default::default() }
            }
        });
    }

    /// Does something on a thread that may wait, and sends what came of it.
    fn answer(
        &self,
        question: u64,
        mount: PathBuf,
        work: impl FnOnce(&Freezer, &Path) -> wire::FreezeState + Send + 'static,
    ) {
        let (freezer, up) = (self.agent.options.freezer.clone(), self.up.clone());
        tokio::task::spawn_blocking(move || {
            let state = wire::FreezeState { question, ..work(&freezer, &mount) };
            // If the session is over, the next one is asked.
            let _ = up.blocking_send(message(Up::Freeze(state)));
        });
    }
}
