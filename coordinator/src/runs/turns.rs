//! One backup of an application at a time: two would read the same devices, disturb the same databases, and each store what the
//! other is storing. Who comes later waits, and then has the earlier one's point as its parent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use milkrun_repository::id::{AppName, RunId};
use tokio::sync::{OwnedMutexGuard, mpsc};

use super::{RunEvent, Runs};
use crate::runs::view::Feed;

/// Whose turn it is, by application.
#[derive(Clone, Default)]
pub(super) struct Turns(Arc<Mutex<HashMap<AppName, Arc<tokio::sync::Mutex<()>>>>>);

/// A turn; it ends when dropped.
pub(crate) struct Turn(#[expect(dead_code, reason = "dropped, not read")] OwnedMutexGuard<()>);

impl Turns {
    fn of(&self, application: &AppName) -> Arc<tokio::sync::Mutex<()>> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those whose turn nobody has or waits for.
        table.retain(|_, turn| Arc::strong_count(turn) > 1);
        table.entry(application.clone()).or_default().clone()
    }
}

impl Runs {
    /// The turn, if nobody has it: for a run that was left, which goes on at once in any case.
    pub(crate) fn turn_if_free(&self, application: &AppName) -> Option<Turn> {
        self.turns.of(application).try_lock_owned().ok().map(Turn)
    }

    /// Waits until no other backup of the application is under way: first come, first served. `None`: it was cancelled meanwhile.
    pub(crate) async fn turn(&self, application: &AppName, id: RunId, feed: &Feed) -> Option<Turn> {
        if let Some(turn) = self.turn_if_free(application) {
            return Some(turn);
        }
        let turn = self.turns.of(application);
        tracing::info!("another backup of the application is under way: this one waits");
        let (inbox, events) = mpsc::unbounded_channel();
        self.table().waiting.insert(id, inbox);
        feed.update(|v| v.waiting = true);
        let turn = tokio::select! {
            turn = turn.lock_owned() => Some(Turn(turn)),
            () = cancelled(events) => None,
        };
        self.table().waiting.remove(&id);
        feed.update(|v| v.waiting = false);
        turn
    }
}

async fn cancelled(mut events: mpsc::UnboundedReceiver<RunEvent>) {
    while let Some(event) = events.recv().await {
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

    #[tokio::test]
    async fn one_at_a_time_of_each_application_in_order() {
        let runs = Runs::new(1);
        let (app, other): (AppName, AppName) = ("app".parse().unwrap(), "other".parse().unwrap());
        let id = |n| RunId::from_bytes([n; 8]);
        let feed = |n| Feed::new(id(n), Kind::Backup, String::new(), String::new());
        let first = runs.turn(&app, id(1), &feed(1)).await;
        assert!(runs.turn(&other, id(2), &feed(2)).await.is_some(), "another application does not wait");
        let mut waiting = std::collections::VecDeque::new();
        for n in 3..6 {
            let (runs, app, feed) = (runs.clone(), app.clone(), feed(n));
            let mut seen = feed.watch();
            waiting.push_back(tokio::spawn(async move { runs.turn(&app, id(n), &feed).await }));
            seen.wait_for(|v| v.waiting).await.unwrap();
        }
        let mut next = || waiting.pop_front().unwrap();
        let (second, third, fourth) = (next(), next(), next());
        assert!(runs.tell(&id(4), RunEvent::Cancel), "who waits can be cancelled");
        assert!(third.await.unwrap().is_none());
        assert!(!second.is_finished() && !fourth.is_finished());
        drop(first);
        let second = second.await.unwrap();
        assert!(second.is_some() && !fourth.is_finished());
        drop(second);
        assert!(fourth.await.unwrap().is_some());
        assert!(!runs.tell(&id(5), RunEvent::Cancel), "it waits no longer");
    }
}
