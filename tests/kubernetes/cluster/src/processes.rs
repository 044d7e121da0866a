//! The processes of a cluster: who started them, and what becomes of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Result;

/// How a process is started, as often as wanted.
type Recipe = Box<dyn Fn() -> Command + Send>;

struct Entry {
    recipe: Recipe,
    log: PathBuf,
    pid: Option<Pid>,
}

/// All processes of a cluster, by name.
#[derive(Default)]
pub(crate) struct Processes {
    entries: Mutex<BTreeMap<String, Entry>>,
}

impl Processes {
    /// Starts a process. What it says goes to `log`.
    pub(crate) fn add(&self, name: &str, log: PathBuf, recipe: impl Fn() -> Command + Send + 'static) -> Result<()> {
        let entry = Entry { recipe: Box::new(recipe), log, pid: None };
        self.locked().insert(name.to_owned(), entry);
        self.start(name)
    }

    /// Starts a process again.
    pub(crate) fn start(&self, name: &str) -> Result<()> {
        let mut entries = self.locked();
        let entry = entries.get_mut(name).ok_or_else(|| format!("no process is called {name}"))?;
        if entry.pid.is_some() {
            return Err(format!("{name} is running"));
        }
        let opened = File::options().create(true).append(true).open(&entry.log);
        let log = opened.map_err(|e| format!("{}: {e}", entry.log.display()))?;
        let copy = log.try_clone().map_err(|e| e.to_string())?;
        let child = (entry.recipe)().stdin(Stdio::null()).stdout(log).stderr(copy).spawn();
        let child = child.map_err(|e| format!("{name}: {e}"))?;
        // Children are reaped in one place, by the supervisor, which is everybody's parent in the end.
        entry.pid = Some(Pid::from_raw(i32::try_from(child.id()).map_err(|e| e.to_string())?));
        Ok(())
    }

    /// Sends a signal to a process.
    pub(crate) fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        let entries = self.locked();
        let entry = entries.get(name).ok_or_else(|| format!("no process is called {name}"))?;
        let pid = entry.pid.ok_or_else(|| format!("{name} is not running"))?;
        kill(pid, signal).map_err(|e| format!("{name}: {e}"))
    }

    /// Notes that a process has ended.
    pub(crate) fn ended(&self, pid: Pid) {
        for entry in self.locked().values_mut() {
            if entry.pid == Some(pid) {
                entry.pid = None;
            }
        }
    }

    pub(crate) fn is_running(&self, name: &str) -> bool {
        self.locked().get(name).is_some_and(|entry| entry.pid.is_some())
    }

    /// Each process, and whether it runs.
    pub(crate) fn list(&self) -> Vec<(String, bool)> {
        self.locked().iter().map(|(name, entry)| (name.clone(), entry.pid.is_some())).collect()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
