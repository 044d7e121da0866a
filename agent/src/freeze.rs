//! Freezing the file systems of running pods while their snapshots are cut: what is on the device is then whole, and nobody
//! writes. Every writer of a frozen file system hangs, and can't be killed; so a thaw depends on nobody. A thread of its own holds
//! each file system open and thaws it when its time is over, and a note on the node lets the next process thaw what this one left.

mod file_system;
mod held;
mod mounts;
mod notes;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::device::allowed::{AllowedPaths, NotAllowed};
use file_system::FileSystem;
pub use held::Thawed;
use held::{Held, NotHeld};
use notes::Notes;

/// The longest time that a file system is frozen, whoever asks. Clients of a database give up sooner.
pub const LIMIT_MAX: Duration = Duration::from_secs(300);

/// Freezes and thaws.
#[derive(Clone, Debug)]
pub struct Freezer {
    allowed: AllowedPaths,
    notes: Option<Notes>,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    freezes: HashMap<Key, Arc<Held>>,
    /// This process is about to end: nothing more is frozen.
    closed: bool,
}

/// One freeze: who asked for it, and what is frozen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    run: Vec<u8>,
    mount: PathBuf,
}

impl Key {
    fn of(run: &[u8], mount: &Path) -> Self {
        Self { run: run.to_vec(), mount: mount.to_owned() }
    }
}

/// Why a file system is not frozen.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// It is none that this agent freezes.
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
    /// A process that takes over would not know what to thaw.
    #[error("this agent has no folder for notes of what it freezes, which outlive it: start it with --freeze-notes")]
    NoNotes,
    /// The note can't be written.
    #[error("can't note that {mount:?} is about to be frozen")]
    Note {
        /// Which file system.
        mount: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// This process is about to end.
    #[error("this agent is about to stop")]
    Stopping,
    /// What is mounted there is part of something larger, or mounted elsewhere too.
    #[error("{mount:?} has no file system of its own: to freeze it would stop what lies beside it")]
    Shared {
        /// Where.
        mount: PathBuf,
    },
    /// The system refuses.
    #[error("can't freeze the file system at {mount:?}")]
    Freeze {
        /// Which one.
        mount: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It took longer than it may stay frozen.
    #[error("the file system at {mount:?} was not frozen within {} s: too much waits to be written", limit.as_secs())]
    Slow {
        /// Which one.
        mount: PathBuf,
        /// The limit.
        limit: Duration,
    },
    /// This run has frozen it before, or has asked for its thaw.
    #[error("the file system at {mount:?} was thawed again")]
    Over {
        /// Which one.
        mount: PathBuf,
    },
}

impl Freezer {
    /// Freezes nothing but what is `allowed`. `notes`: a folder that outlives this process, but not the machine's start; without it,
    /// nothing is frozen. What another process left frozen is thawed, now and later.
    #[must_use]
    pub fn new(allowed: AllowedPaths, notes: Option<PathBuf>) -> Self {
        let notes = notes.map(Notes::new);
        if let Some(notes) = &notes {
            notes.watch();
        }
        Self { allowed, notes, table: Arc::default() }
    }

    /// Whether it freezes anything.
    #[must_use]
    pub fn can_freeze(&self) -> bool {
        self.notes.is_some()
    }

    /// Writes what waits to be written to the file system at `mount`: the freeze that follows is quick.
    ///
    /// # Errors
    /// [`FreezeError`].
    pub fn sync(&self, mount: &Path) -> Result<(), FreezeError> {
        self.open(mount)?.sync().map_err(|source| FreezeError::Freeze { mount: mount.to_owned(), source })
    }

    /// Freezes the file system that is mounted at `mount`, for at most `limit`. Waits until it is frozen. Asking again for the same
    /// run changes nothing.
    ///
    /// # Errors
    /// [`FreezeError`]: it is not frozen, or will be thawed at once.
    pub fn freeze(&self, run: &[u8], mount: &Path, limit: Duration) -> Result<(), FreezeError> {
        let limit = limit.min(LIMIT_MAX);
        let key = Key::of(run, mount);
        let found = self.table().freezes.get(&key).cloned();
        let held = match found {
            Some(held) => held,
            None => self.begin(key, limit)?,
        };
        let mount = mount.to_owned();
        held.wait_until_frozen(limit).map_err(|why| match why {
            NotHeld::Over => FreezeError::Over { mount },
            NotHeld::Refused(source) => FreezeError::Freeze { mount, source },
            NotHeld::Slow => FreezeError::Slow { mount, limit },
        })
    }

    /// Thaws what this run has frozen here. `None`: it has frozen nothing here, and will not any more.
    #[must_use]
    pub fn thaw(&self, run: &[u8], mount: &Path) -> Option<Thawed> {
        let held = match self.table().freezes.entry(Key::of(run, mount)) {
            Entry::Occupied(found) => found.get().clone(),
            Entry::Vacant(none) => {
                none.insert(Held::never());
                return None;
            }
        };
        held.ask(false);
        held.wait_until_over()
    }

    /// Thaws everything, and freezes nothing more: this process is about to end.
    pub fn close(&self) {
        let all: Vec<Arc<Held>> = {
            let mut table = self.table();
            table.closed = true;
            table.freezes.values().cloned().collect()
        };
        // All are told before any is waited for.
        for held in &all {
            held.ask(true);
        }
        for held in all {
            let _ = held.wait_until_over();
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the file system that is mounted at `mount`, if it may be frozen.
    fn open(&self, mount: &Path) -> Result<FileSystem, FreezeError> {
        let (point, within) = self.allowed.check_mount(mount)?;
        let refused = |source| FreezeError::Freeze { mount: mount.to_owned(), source };
        let all = mounts::all().map_err(refused)?;
        // What is checked is what was opened: a mount may go at any moment.
        let file_system = FileSystem::open(&point, &all).map_err(refused)?;
        if file_system.mount.is_alone_at(&point, within.as_deref(), &all) {
            Ok(file_system)
        } else {
            Err(FreezeError::Shared { mount: mount.to_owned() })
        }
    }

    /// Starts the thread of a freeze.
    fn begin(&self, key: Key, limit: Duration) -> Result<Arc<Held>, FreezeError> {
        let mount = key.mount.clone();
        let notes = self.notes.as_ref().ok_or(FreezeError::NoNotes)?;
        let file_system = self.open(&mount)?;
        let refused = |source| FreezeError::Freeze { mount: mount.clone(), source };
        let note = notes.write(&mount, &file_system.mount.device, limit);
        let note = note.map_err(|source| FreezeError::Note { mount: mount.clone(), source })?;
        let held = Held::begins();
        {
            let mut table = self.table();
            table.freezes.retain(|_, held| !held.is_forgotten());
            if table.closed {
                note.remove();
                return Err(FreezeError::Stopping);
            }
            if let Some(other) = table.freezes.get(&key) {
                // Another thread asked the same at the same time.
                note.remove();
                return Ok(other.clone());
            }
            table.freezes.insert(key.clone(), held.clone());
        }
        let of_thread = held.clone();
        let thread = std::thread::Builder::new().name("freeze".into());
        let started = thread.spawn(move || of_thread.run(&file_system, note, limit));
        started.map_err(|source| {
            self.table().freezes.remove(&key);
            refused(source)
        })?;
        Ok(held)
    }
}
