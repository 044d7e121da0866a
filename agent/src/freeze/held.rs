//! One freeze: its thread freezes, holds, and thaws; callers wait for it.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::file_system::FileSystem;
use super::notes::Note;

/// For how long the end of a freeze is remembered.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// How soon a thaw that failed is tried again.
const THAW_AGAIN: Duration = Duration::from_secs(1);

/// How a freeze ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thawed {
    /// How long writers waited.
    pub held: Duration,
    /// Whether it ended before somebody asked for it: its time was over, or somebody else thawed it.
    pub early: bool,
}

/// Where a freeze is.
#[derive(Clone, Debug)]
enum State {
    Begins,
    Frozen,
    Over(Instant, Thawed),
    Failed(Instant, Arc<io::Error>),
}

/// What callers want of a freeze.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Hold,
    /// As somebody asked for.
    Thaw,
    /// A caller was told that it is not frozen, or the process is about to end.
    GiveUp,
}

/// Why a freeze does not hold.
pub(super) enum NotHeld {
    /// It is over.
    Over,
    /// The system refused.
    Refused(io::Error),
    /// It takes too long.
    Slow,
}

/// A freeze that its thread and its callers share.
#[derive(Debug)]
pub(super) struct Held {
    state: Mutex<(State, Wish)>,
    changed: Condvar,
}

impl Held {
    /// One that begins.
    pub(super) fn begins() -> Arc<Self> {
        Self::of(State::Begins)
    }

    /// One that never was.
    pub(super) fn never() -> Arc<Self> {
        Self::of(State::Over(Instant::now(), Thawed { held: Duration::ZERO, early: true }))
    }

    fn of(state: State) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new((state, Wish::Hold)), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, (State, Wish)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, next: State) {
        self.lock().0 = next;
        self.changed.notify_all();
    }

    /// Freezes, holds for so long at most, and thaws: the body of its thread.
    pub(super) fn run(&self, file_system: &FileSystem, note: Note, limit: Duration) {
        // What can be written before, nobody has to wait for.
        let frozen = file_system.sync().map(|()| Instant::now()).and_then(|began| {
            file_system.freeze()?;
            Ok(began)
        });
        let began = match frozen {
            Ok(began) => began,
            Err(e) => {
                note.remove();
                self.set(State::Failed(Instant::now(), Arc::new(e)));
                return;
            }
        };
        self.set(State::Frozen);
        let mut state = self.lock();
        while state.1 == Wish::Hold && began.elapsed() < limit {
            let rest = limit.saturating_sub(began.elapsed());
            state = self.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
        let asked = state.1 == Wish::Thaw;
        if state.1 == Wish::Hold {
            // A caller that asks now is told that it is over.
            state.1 = Wish::GiveUp;
        }
        drop(state);
        let was_frozen = loop {
            match file_system.thaw() {
                Ok(was_frozen) => break was_frozen,
                Err(why) => {
                    tracing::error!(%why, mount = %note.mount().display(), "can't thaw; trying again");
                    std::thread::sleep(THAW_AGAIN);
                }
            }
        };
        note.remove();
        self.set(State::Over(Instant::now(), Thawed { held: began.elapsed(), early: !asked || !was_frozen }));
    }

    /// Waits until it is frozen.
    pub(super) fn wait_until_frozen(&self, limit: Duration) -> Result<(), NotHeld> {
        let begins = |state: &mut (State, Wish)| matches!(state.0, State::Begins);
        let waited = self.changed.wait_timeout_while(self.lock(), limit, begins);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match &state.0 {
            State::Frozen if state.1 == Wish::Hold => Ok(()),
            State::Frozen | State::Over(..) => Err(NotHeld::Over),
            State::Failed(_, why) => Err(NotHeld::Refused(io::Error::new(why.kind(), why.clone()))),
            State::Begins => {
                // Its thread thaws it as soon as it is frozen.
                state.1 = Wish::GiveUp;
                Err(NotHeld::Slow)
            }
        }
    }

    /// Asks for the thaw. `give_up`: nobody may take it for a good end.
    pub(super) fn ask(&self, give_up: bool) {
        let mut state = self.lock();
        // Whoever gave up first has told somebody.
        if state.1 == Wish::Hold {
            state.1 = if give_up { Wish::GiveUp } else { Wish::Thaw };
        }
        self.changed.notify_all();
    }

    /// Waits until it is thawed. `None`: it was never frozen.
    pub(super) fn wait_until_over(&self) -> Option<Thawed> {
        let mut state = self.lock();
        loop {
            match &state.0 {
                State::Over(_, thawed) => return Some(*thawed),
                State::Failed(..) => return None,
                State::Begins | State::Frozen => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Whether it ended so long ago that nobody asks for it any more.
    pub(super) fn is_forgotten(&self) -> bool {
        match self.lock().0 {
            State::Over(at, _) | State::Failed(at, _) => at.elapsed() > REMEMBERED,
            State::Begins | State::Frozen => false,
        }
    }
}
