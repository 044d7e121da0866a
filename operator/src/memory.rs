//! What this process remembers of runs. Nothing of it has to last: a process that takes over begins with what it finds in the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A run that did not look for so long is gone: somebody removed its object by force. Looks come every few seconds.
const SILENT_MAX: Duration = Duration::from_secs(600);

/// After so long all runs have looked since the process began.
const ALL_LOOKED: Duration = Duration::from_secs(60);

/// What this process remembers, by the UID of the run's object.
#[derive(Debug)]
pub struct Memory {
    runs: Mutex<BTreeMap<String, Remembered>>,
    began: Instant,
}

impl Default for Memory {
    fn default() -> Self {
        Self { runs: Mutex::default(), began: Instant::now() }
    }
}

#[derive(Debug)]
struct Remembered {
    /// Whether this process was told that all file systems of the run are frozen.
    frozen: bool,
    /// The claims of the run that have a slot.
    slots: BTreeSet<String>,
    /// Since when more of its claims want one.
    wants_since: Option<Instant>,
    /// When it looked last.
    looked: Instant,
}

impl Default for Remembered {
    fn default() -> Self {
        Self { frozen: false, slots: BTreeSet::new(), wants_since: None, looked: Instant::now() }
    }
}

impl Remembered {
    fn look(&mut self, slots: BTreeSet<String>, wants: bool) {
        (self.slots, self.looked) = (slots, Instant::now());
        self.wants_since = if wants { self.wants_since.or(Some(self.looked)) } else { None };
    }

    /// Since when it waits for its first slot.
    fn waits_since(&self) -> Option<Instant> {
        self.wants_since.filter(|_| self.slots.is_empty())
    }
}

/// How many slots other runs have.
fn given(runs: &mut BTreeMap<String, Remembered>, run: &str) -> usize {
    runs.retain(|_, other| other.looked.elapsed() < SILENT_MAX);
    runs.iter().filter(|(other, _)| *other != run).map(|(_, other)| other.slots.len()).sum()
}

/// Whether nobody has waited longer for a first slot.
fn is_next(runs: &BTreeMap<String, Remembered>, run: &str) -> bool {
    let mine = runs.get(run).and_then(Remembered::waits_since);
    let mut others = runs.iter().filter(|(other, _)| *other != run).filter_map(|(_, other)| other.waits_since());
    !others.any(|since| mine.is_none_or(|mine| since < mine))
}

impl Memory {
    fn runs(&self) -> MutexGuard<'_, BTreeMap<String, Remembered>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all file systems of a run were frozen.
    #[must_use]
    pub fn is_frozen(&self, run: &str) -> bool {
        self.runs().get(run).is_some_and(|run| run.frozen)
    }

    /// All file systems of a run are frozen. They are not frozen a second time: what was cut before that would not count.
    pub fn frozen(&self, run: &str) {
        self.runs().entry(run.to_owned()).or_default().frozen = true;
    }

    /// Whether it knows which slots all runs have. Before, the cluster has to be asked.
    #[must_use]
    pub fn knows_all(&self) -> bool {
        self.began.elapsed() > ALL_LOOKED
    }

    /// Gives slots to claims of a run, as long as there are any. `exposed`: its claims that are exposed now. `elsewhere`: how many of
    /// other runs are, as far as the cluster shows it; slots that were given and not used yet count too. Nobody gets more while a run
    /// without any has waited longer. Returns the claims with slots.
    pub fn take_slots(
        &self,
        run: &str,
        exposed: BTreeSet<String>,
        wanting: Vec<String>,
        elsewhere: usize,
        max: usize,
    ) -> BTreeSet<String> {
        let mut runs = self.runs();
        let taken = elsewhere.max(given(&mut runs, run));
        let free = if is_next(&runs, run) { max.saturating_sub(exposed.len() + taken) } else { 0 };
        let wants = wanting.len() > free;
        let mut slots = exposed;
        slots.extend(wanting.into_iter().take(free));
        runs.entry(run.to_owned()).or_default().look(slots.clone(), wants);
        slots
    }

    /// Gives slots to all of these volumes of a run, or to none: whoever holds some and waits for the rest could wait for ever.
    /// `held`: the run has them already. More volumes than there are slots get them once nobody else has any. Returns whether they
    /// have slots.
    pub fn take_together(
        &self,
        run: &str,
        volumes: BTreeSet<String>,
        held: bool,
        elsewhere: usize,
        max: usize,
    ) -> bool {
        let mut runs = self.runs();
        let taken = elsewhere.max(given(&mut runs, run));
        let fits = taken == 0 || taken + volumes.len() <= max;
        let has = held || runs.get(run).is_some_and(|this| this.slots == volumes) || fits && is_next(&runs, run);
        let slots = if has { volumes } else { BTreeSet::new() };
        runs.entry(run.to_owned()).or_default().look(slots, !has);
        has
    }

    /// A run is over, or holds no slots any more.
    pub fn forget(&self, run: &str) {
        self.runs().remove(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn runs_that_look_at_the_same_moment_share_the_slots() {
        let memory = Memory::default();
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(memory.take_slots("one", set(&[]), list(&["a", "b", "c"]), 0, 4), set(&["a", "b", "c"]));
        // Nothing of the first one is in the cluster yet.
        assert_eq!(memory.take_slots("two", set(&[]), list(&["x", "y"]), 0, 4), set(&["x"]));
        assert_eq!(memory.take_slots("two", set(&["x"]), list(&["y"]), 3, 4), set(&["x"]));
        // One of the first was read.
        assert_eq!(memory.take_slots("one", set(&["b", "c"]), list(&[]), 1, 4), set(&["b", "c"]));
        assert_eq!(memory.take_slots("two", set(&["x"]), list(&["y"]), 2, 4), set(&["x", "y"]));
        memory.forget("one");
        assert_eq!(memory.take_slots("two", set(&["x", "y"]), list(&["z"]), 0, 4), set(&["x", "y", "z"]));
        // What another process has left counts.
        assert_eq!(memory.take_slots("new", set(&[]), list(&["n"]), 4, 4), set(&[]));
    }

    #[test]
    fn volumes_that_are_held_together_get_their_slots_together() {
        let memory = Memory::default();
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(memory.take_slots("backup", set(&[]), list(&["x", "y"]), 0, 3), set(&["x", "y"]));
        assert!(!memory.take_together("restore", set(&["a", "b"]), false, 0, 3));
        // It waits without any, and others that have some let it go first.
        assert_eq!(memory.take_slots("backup", set(&["y"]), list(&["z"]), 0, 3), set(&["y"]));
        assert!(memory.take_together("restore", set(&["a", "b"]), false, 1, 3));
        assert!(memory.take_together("restore", set(&["a", "b"]), false, 3, 3), "what it has it keeps");
        assert_eq!(memory.take_slots("backup", set(&["y"]), list(&["z"]), 0, 3), set(&["y"]));
        // More than there are: alone. And what is held already is held, whatever this process knows.
        assert!(!memory.take_together("large", set(&["1", "2", "3", "4"]), false, 0, 3));
        assert!(memory.take_together("another", set(&["5"]), true, 9, 3));
        // Whoever comes later waits, also where there would be room: otherwise it would wait for ever.
        memory.forget("restore");
        assert_eq!(memory.take_slots("later", set(&[]), list(&["n"]), 0, 3), set(&[]));
        for run in ["backup", "another"] {
            memory.forget(run);
        }
        assert!(memory.take_together("large", set(&["1", "2", "3", "4"]), false, 0, 3));
        assert_eq!(memory.take_slots("later", set(&[]), list(&["n"]), 0, 5), set(&["n"]));
    }

    #[test]
    fn a_run_that_has_slots_lets_others_have_their_first() {
        let memory = Memory::default();
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(memory.take_slots("large", set(&[]), list(&["a", "b", "c"]), 0, 2), set(&["a", "b"]));
        assert_eq!(memory.take_slots("small", set(&[]), list(&["x"]), 2, 2), set(&[]));
        // One of the large run's volumes was read: its slot is not for the next of its own.
        assert_eq!(memory.take_slots("large", set(&["b"]), list(&["c"]), 0, 2), set(&["b"]));
        assert_eq!(memory.take_slots("small", set(&[]), list(&["x"]), 1, 2), set(&["x"]));
        memory.forget("small");
        assert_eq!(memory.take_slots("large", set(&["b"]), list(&["c"]), 0, 2), set(&["b", "c"]));
    }
}
