//! One backup of an application to a repository goes on at a time; one that hangs stops none to another repository. Two at once
//! would read the same devices, disturb the same databases, and store the same chunks. A second backup waits before it takes a
//! lease. Its parent is the newest point when its turn comes: the one that the first backup made.
//!
//! A waiting order is stored (`backup/waiting.rs`), so that it waits on under the next coordinator. Runs that another coordinator
//! left share their application's turn, and go before any new order.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use milkrun_repository::id::{AppId, RunId};
use tokio::sync::OwnedMutexGuard;

use super::{Inbox, RunEvent, Runs};
use crate::runs::view::Feed;

/// How many orders may wait for one application. Without this limit, scheduled orders would pile up behind a backup that hangs.
pub(crate) const WAITING_MAX: usize = 8;

/// The turns, by repository and application.
#[derive(Clone, Default)]
pub(super) struct Turns(Arc<Mutex<HashMap<(String, AppId), Queue>>>);

/// Those who wait for one application, first come, first served.
type Queue = Arc<tokio::sync::Mutex<()>>;

/// The turn of a backup; it ends when this is dropped.
pub(crate) struct Turn(#[expect(dead_code, reason = "dropped, not read")] OwnedMutexGuard<()>);

/// Why a backup did not get its turn.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoTurn {
    /// Somebody cancelled it.
    Cancelled,
    /// [`WAITING_MAX`] others wait already.
    Full,
}

/// A run that was ordered and has not begun. Events can be sent to it until this is dropped.
pub(crate) struct Announced {
    runs: Runs,
    id: RunId,
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.runs.table().announced.remove(&self.id);
    }
}

impl Turns {
    fn of(&self, repository: &str, application: &AppId) -> Arc<tokio::sync::Mutex<()>> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Drops the turns that nobody has or waits for.
        table.retain(|_, turn| Arc::strong_count(turn) > 1);
        table.entry((repository.to_owned(), application.clone())).or_default().clone()
    }
}

impl Runs {
    /// Events for a run go to this inbox from now on.
    pub(crate) fn announce(&self, id: RunId) -> (Inbox, Announced) {
        let inbox = Inbox::default();
        self.table().announced.insert(id, inbox.sender.clone());
        (inbox, Announced { runs: self.clone(), id })
    }

    /// The turn, if no other backup has it.
    pub(crate) fn turn_if_free(&self, repository: &str, application: &AppId) -> Option<Turn> {
        self.turns.of(repository, application).try_lock_owned().ok().map(Turn)
    }

    /// Waits until no other backup of the application is under way, in the order of arrival.
    pub(crate) async fn turn(
        &self,
        (repository, application): (&str, &AppId),
        bounded: bool,
        inbox: &mut Inbox,
        feed: &Feed,
    ) -> Result<Turn, NoTurn> {
        if let Some(turn) = self.turn_if_free(repository, application) {
            return Ok(turn);
        }
        let turn = self.turns.of(repository, application);
        // Three references don't wait: the table's, this call's, and that of the backup that has the turn.
        if bounded && Arc::strong_count(&turn) >= WAITING_MAX + 3 {
            return Err(NoTurn::Full);
        }
        tracing::info!("another backup of the application is under way: this one waits");
        feed.update(|v| v.waiting = true);
        let turn = tokio::select! {
            biased;
            () = cancelled(inbox) => Err(NoTurn::Cancelled),
            turn = turn.lock_owned() => Ok(Turn(turn)),
        };
        feed.update(|v| v.waiting = false);
        turn
    }
}

async fn cancelled(inbox: &mut Inbox) {
    while let Some(event) = inbox.receiver.recv().await {
        if matches!(event, RunEvent::Cancel) {
            return;
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::view::Kind;

    fn id(n: u8) -> RunId {
        RunId::from_bytes([n; 8])
    }

    fn app(name: &str) -> AppId {
        AppId::local(name.parse().unwrap())
    }

    /// Starts a task that waits for its turn, and returns once it waits.
    async fn comes(runs: &Runs, app: &AppId, n: u8) -> tokio::task::JoinHandle<Result<Turn, NoTurn>> {
        let feed = Feed::new(id(n), Kind::Backup, None, String::new());
        let (runs, app, mut seen) = (runs.clone(), app.clone(), feed.watch());
        let task = tokio::spawn(async move {
            let (mut inbox, _announced) = runs.announce(id(n));
            runs.turn(("", &app), true, &mut inbox, &feed).await
        });
        seen.wait_for(|v| v.waiting).await.unwrap();
        task
    }

    #[tokio::test]
    async fn one_at_a_time_of_each_application_in_order() {
        let runs = Runs::default();
        let (app, other) = (app("app"), app("other"));
        let first = runs.turn_if_free("", &app).unwrap();
        assert!(runs.turn_if_free("", &app).is_none());
        assert!(runs.turn_if_free("", &other).is_some(), "another application does not wait");
        let second = comes(&runs, &app, 2).await;
        let third = comes(&runs, &app, 3).await;
        let fourth = comes(&runs, &app, 4).await;
        assert!(runs.tell(&id(3), RunEvent::Cancel), "who waits can be cancelled");
        assert_eq!(third.await.unwrap().err(), Some(NoTurn::Cancelled));
        assert!(!second.is_finished() && !fourth.is_finished());
        drop(first);
        let second = second.await.unwrap();
        assert!(second.is_ok() && !fourth.is_finished());
        drop(second);
        assert!(fourth.await.unwrap().is_ok());
        assert!(!runs.tell(&id(4), RunEvent::Cancel), "it waits no longer");
    }

    #[tokio::test]
    async fn not_too_many_wait() {
        let runs = Runs::default();
        let app = app("app");
        let first = runs.turn_if_free("", &app).unwrap();
        let mut waiting = Vec::new();
        for n in 0..WAITING_MAX {
            waiting.push(comes(&runs, &app, u8::try_from(n).unwrap()).await);
        }
        let feed = Feed::new(id(99), Kind::Backup, None, String::new());
        let (mut inbox, _announced) = runs.announce(id(99));
        assert_eq!(runs.turn(("", &app), true, &mut inbox, &feed).await.err(), Some(NoTurn::Full));
        drop(first);
        for turn in waiting {
            assert!(turn.await.unwrap().is_ok());
        }
    }

    /// A cancellation that was accepted counts, even if the turn comes at that very moment.
    #[tokio::test]
    async fn a_cancellation_is_not_lost_to_the_turn() {
        let runs = Runs::default();
        let app = app("app");
        let first = runs.turn_if_free("", &app).unwrap();
        let second = comes(&runs, &app, 2).await;
        assert!(runs.tell(&id(2), RunEvent::Cancel));
        drop(first);
        assert_eq!(second.await.unwrap().err(), Some(NoTurn::Cancelled));
    }
}
