//! The repositories of one process. Each has its own keys, index and limits; all share nodes and runs. One that is not ready (its
//! store does not answer, its password is wrong) never stops the others.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use milkrun_repository::clock::Moment;

use crate::{Coordinator, Shared};

/// The repositories of a process, by name.
#[derive(Clone)]
pub struct Repositories {
    shared: Shared,
    table: Arc<RwLock<BTreeMap<String, State>>>,
}

/// The state of one of them.
#[derive(Clone)]
pub struct State {
    /// Its address, for people.
    pub address: String,
    /// Whether it can be used.
    pub standing: Standing,
    /// Since when it is in this state.
    pub since: Moment,
    /// Its coordinator while it can't be used: its runs are still under way.
    paused: Option<Box<Coordinator>>,
}

/// Whether a repository can be used.
#[derive(Clone)]
pub enum Standing {
    /// It can be used.
    Ready(Box<Coordinator>),
    /// It can't be used, for this reason.
    NotReady(String),
}

/// Why an order finds no repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRepository {
    /// There are several, and the order names none.
    #[error("which repository? this coordinator has {0}: --repository-name NAME")]
    Which(String),
    /// There is no repository of that name.
    #[error("this coordinator has no repository {0:?}; it has {1}")]
    Unknown(String, String),
    /// It is not ready.
    #[error("the repository {name} can't be used: {why}")]
    NotReady {
        /// Which one.
        name: String,
        /// Why.
        why: String,
    },
}

impl Repositories {
    /// No repository yet.
    pub fn new(shared: Shared) -> Self {
        Self { shared, table: Arc::default() }
    }

    /// A single one.
    pub fn of_one(coordinator: Coordinator) -> Self {
        let repositories = Self::new(coordinator.shared.clone());
        repositories.ready(coordinator);
        repositories
    }

    /// What they share.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    fn set(&self, name: &str, address: String, standing: Standing) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let before = table.remove(name);
        let since = match &before {
            Some(before) if same(&before.standing, &standing) => before.since,
            _ => Moment::now(),
        };
        let paused = match (&standing, before) {
            (Standing::NotReady(_), Some(State { standing: Standing::Ready(coordinator), .. })) => Some(coordinator),
            (Standing::NotReady(_), Some(before)) => before.paused,
            _ => None,
        };
        table.insert(name.to_owned(), State { address, standing, since, paused });
        #[expect(clippy::cast_precision_loss, reason = "a few repositories")]
        let ready = table.values().filter(|s| matches!(s.standing, Standing::Ready(_))).count() as f64;
        metrics::gauge!("milkrun_repositories_ready").set(ready);
        #[expect(clippy::cast_precision_loss, reason = "a few repositories")]
        metrics::gauge!("milkrun_repositories").set(table.len() as f64);
    }

    /// A repository can be used from now on.
    pub fn ready(&self, coordinator: Coordinator) {
        let (name, address) = (coordinator.name.clone(), coordinator.repository.store.describe());
        self.set(&name, address, Standing::Ready(Box::new(coordinator)));
    }

    /// A repository can't be used now.
    pub fn not_ready(&self, name: &str, address: String, why: String) {
        self.set(name, address, Standing::NotReady(why));
    }

    /// There is no such repository any more.
    pub fn remove(&self, name: &str) {
        self.table.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// The coordinator of the repository that an order names; an empty name means the only one.
    ///
    /// # Errors
    /// [`NoRepository`].
    pub fn one(&self, name: &str) -> Result<Coordinator, NoRepository> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let names = || table.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let (name, state) = match (table.get_key_value(name), table.first_key_value()) {
            (Some(found), _) => found,
            (None, Some(only)) if name.is_empty() && table.len() == 1 => only,
            (None, _) if name.is_empty() => return Err(NoRepository::Which(names())),
            (None, _) => return Err(NoRepository::Unknown(name.to_owned(), names())),
        };
        match &state.standing {
            Standing::Ready(coordinator) => Ok(Coordinator::clone(coordinator)),
            Standing::NotReady(why) => Err(NoRepository::NotReady { name: name.clone(), why: why.clone() }),
        }
    }

    /// All of them, with the state of each.
    pub fn states(&self) -> Vec<(String, State)> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.iter().map(|(name, state)| (name.clone(), state.clone())).collect()
    }

    /// Calls `work` with each coordinator that has, or may have, runs under way.
    pub(crate) fn each(&self, mut work: impl FnMut(&Coordinator)) {
        for (_, state) in self.states() {
            match (&state.standing, &state.paused) {
                (Standing::Ready(coordinator), _) | (_, Some(coordinator)) => work(coordinator),
                _ => {}
            }
        }
    }

    /// The highest epoch under which one of them is led. It is for the logs of agents: what counts is the epoch of each assignment.
    pub fn epoch(&self) -> u64 {
        let mut highest = 0;
        self.each(|coordinator| highest = highest.max(coordinator.epoch));
        highest
    }
}

fn same(a: &Standing, b: &Standing) -> bool {
    match (a, b) {
        (Standing::Ready(_), Standing::Ready(_)) => true,
        (Standing::NotReady(a), Standing::NotReady(b)) => a == b,
        _ => false,
    }
}
