//! Walks of a whole run through a world without I/O, for the tests of plans: somebody interferes at each moment, and another operator
//! goes on.

use jiff::Timestamp;

use crate::Settings;

/// So many looks end every run of the tests.
const LOOKS_MAX: usize = 100;
/// More looks than any of them needs until it cleans up.
const LOOKS: usize = 30;

/// How the operators of all walks were started.
pub(crate) fn settings() -> Settings {
    Settings {
        namespace: "milkrun".into(),
        work_namespace: "milkrun-work".into(),
        image: "milkrun:1".into(),
        cluster: "c".into(),
        kubelet: "/var/lib/kubelet".into(),
        exposed_max: 16,
        process: "this one".into(),
    }
}

/// When they take place.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(1_767_225_600).unwrap_or_default()
}

/// A run, and the world that it works on.
pub(crate) trait Walked {
    /// Whether the run is over.
    fn is_over(&self) -> bool;

    /// One look of an operator that is killed after so many things were done, if at all. Returns how many things there were.
    fn step(&mut self, killed_after: Option<usize>) -> usize;

    /// Looks until the run is over.
    fn run(&mut self) {
        for _ in 0..LOOKS_MAX {
            if self.is_over() {
                return;
            }
            self.step(None);
        }
        panic!("it does not end");
    }
}

fn after<W: Walked>(looks: usize, new: &impl Fn() -> W) -> W {
    let mut world = new();
    for _ in 0..looks {
        world.step(None);
    }
    world
}

/// Kills the operator after each thing of each look. `then` gets the world of that moment, and which moment it is.
pub(crate) fn killed_at_each_moment<W: Walked>(new: impl Fn() -> W, mut then: impl FnMut(W, &str)) {
    let mut whole = new();
    let mut things = Vec::new();
    while !whole.is_over() {
        things.push(whole.step(None));
    }
    assert!(things.len() > 8, "{things:?}");
    for (look, things) in things.into_iter().enumerate() {
        for killed_after in 0..things {
            let mut world = after(look, &new);
            world.step(Some(killed_after));
            then(world, &format!("look {look}, killed after {killed_after}"));
        }
    }
}

/// Stops before each look. `then` gets the world of that moment, and which look comes.
pub(crate) fn before_each_look<W: Walked>(new: impl Fn() -> W, mut then: impl FnMut(W, usize)) {
    for look in 0..LOOKS {
        then(after(look, &new), look);
    }
}
