//! The compression level. It is fixed, or, with `--level auto`, as high as idle cores allow while the backup waits for
//! uploads. A higher level is then faster, too, since fewer bytes are uploaded.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use milkrun_repository::chunk::codec::Level;
use tokio::time::Instant;

/// The levels that are worth their time (docs/performance.md): 1 stores more than -1 does, and 4 hardly less than 3, or
/// more.
const LADDER: [i32; 7] = [-1, 2, 3, 5, 6, 7, 9];
/// How long the cores are observed before the level changes.
const WINDOW: Duration = Duration::from_secs(1);
/// The next higher level is taken if the cores were busy for at most this many percent of the time: no level takes more
/// than twice the time of the one before.
const HARDER_UP_TO: u128 = 45;
/// A lower level is taken if the cores were busy for at least this many percent of the time.
const EASIER_FROM: u128 = 90;

/// The level of a run's chunks.
#[derive(Debug)]
pub struct LevelControl {
    ordered: Level,
    adapts: bool,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    level: Level,
    /// When the observation began, and how long the cores had worked until then.
    since: Option<(Instant, Duration)>,
    /// Whether somebody has waited for uploads since.
    waited: bool,
}

/// The CPU time of all threads together, since they were started.
#[derive(Clone, Copy, Debug)]
pub struct Worked {
    /// The time.
    pub time: Duration,
    /// The number of threads.
    pub threads: usize,
}

impl LevelControl {
    /// Always `ordered`; if it `adapts`, that level or a higher one.
    pub fn new(ordered: Level, adapts: bool) -> Self {
        Self { ordered, adapts, state: Mutex::new(State { level: ordered, since: None, waited: false }) }
    }

    /// The level for the next chunks. `waited`: there was room for their pack only after earlier packs had been
    /// uploaded.
    pub fn level(&self, waited: bool, worked: Worked, now: Instant) -> Level {
        if !self.adapts {
            return self.ordered;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.waited |= waited;
        let (since, before) = *state.since.get_or_insert((now, worked.time));
        let core_time = (now - since) * u32::try_from(worked.threads).unwrap_or(u32::MAX);
        if now - since < WINDOW {
            return state.level;
        }
        let busy = worked.time.saturating_sub(before).as_nanos() * 100 / core_time.as_nanos().max(1);
        let (at, ordered) = (state.level.get(), self.ordered.get());
        let next = match busy {
            ..=HARDER_UP_TO if state.waited => LADDER.into_iter().find(|l| *l > at),
            ..EASIER_FROM if state.waited => None,
            _ => LADDER.into_iter().rev().chain([ordered]).find(|l| *l < at),
        };
        let level = next.and_then(|n| Level::new(n.max(ordered)).ok()).unwrap_or(state.level);
        if level != state.level {
            let busy = u64::try_from(busy).unwrap_or(u64::MAX);
            tracing::debug!(level = level.get(), busy_percent = busy, waited = state.waited, "another level");
        }
        *state = State { level, since: Some((now, worked.time)), waited: false };
        level
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(n: i32) -> Level {
        Level::new(n).unwrap()
    }

    /// A clock of two cores. Each step is a second in which the cores were busy for so many percent.
    struct Seconds<'a>(&'a LevelControl, Instant, Duration);

    impl Seconds<'_> {
        fn pass(&mut self, waited: bool, busy: u32) -> i32 {
            self.1 += WINDOW;
            self.2 += WINDOW * 2 * busy / 100;
            self.0.level(waited, Worked { time: self.2, threads: 2 }, self.1).get()
        }
    }

    #[test]
    fn the_level_rises_while_uploads_are_waited_for_and_cores_are_idle() {
        let control = LevelControl::new(level(3), true);
        let mut seconds = Seconds(&control, Instant::now(), Duration::from_secs(77));
        assert_eq!(seconds.pass(true, 1), 3, "nothing to compare with");
        let up: Vec<i32> = (0..5).map(|_| seconds.pass(true, 20)).collect();
        assert_eq!(up, [5, 6, 7, 9, 9]);
        assert_eq!(seconds.pass(true, 70), 9, "between both bounds it stays");
        assert_eq!(seconds.pass(true, 95), 7, "the cores are the bottleneck");
        assert_eq!(seconds.pass(false, 20), 6, "nobody waits");
        let down: Vec<i32> = (0..3).map(|_| seconds.pass(false, 95)).collect();
        assert_eq!(down, [5, 3, 3], "never easier than ordered");
    }

    #[test]
    fn a_level_that_does_not_adapt_stays() {
        for (ordered, adapts) in [(-1, false), (3, false), (19, true)] {
            let control = LevelControl::new(level(ordered), adapts);
            let mut seconds = Seconds(&control, Instant::now(), Duration::ZERO);
            assert!((0..9).all(|_| seconds.pass(true, 10) == ordered));
        }
        // A level that is not on the ladder comes back after it went up.
        let control = LevelControl::new(level(1), true);
        let mut seconds = Seconds(&control, Instant::now(), Duration::ZERO);
        seconds.pass(true, 10);
        assert_eq!((seconds.pass(true, 10), seconds.pass(false, 10)), (2, 1));
    }
}
