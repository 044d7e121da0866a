//! Notes of what is frozen, in a folder of the node. They outlive this process and its container; they must not outlive the
//! machine's start, which thaws everything. One file per freeze. Every process of an agent looks at the notes of others, again and
//! again: one that was killed may have frozen a file system in its last moment.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use milkrun_repository::clock::{Moment, entropy};

use super::file_system::FileSystem;
use super::mounts;

/// How often notes of others are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How long after its time a note of what is not frozen is kept.
const KEPT: Duration = Duration::from_secs(60);
/// The same for a note of what is mounted nowhere: it may be mounted again.
const KEPT_UNMOUNTED: Duration = Duration::from_secs(3600);

/// The folder of notes.
#[derive(Clone, Debug)]
pub(super) struct Notes {
    folder: PathBuf,
    /// Distinguishes this process's notes.
    process: Arc<String>,
}

/// A note of one freeze.
#[derive(Debug)]
pub(super) struct Note {
    file: PathBuf,
    mount: PathBuf,
}

/// What a note says.
#[derive(Debug, PartialEq, Eq)]
struct Noted {
    /// The device's number.
    device: String,
    /// When it is thawed at the latest, in milliseconds since 1970.
    until_ms: i64,
    /// Where it was mounted.
    mount: PathBuf,
}

impl Note {
    /// What it is about.
    pub(super) fn mount(&self) -> &Path {
        &self.mount
    }

    /// Removes it: what it is about is thawed.
    pub(super) fn remove(self) {
        // A note that stays costs one thaw of what is not frozen.
        let _ = fs::remove_file(self.file);
    }
}

impl Noted {
    fn write(&self) -> String {
        format!("{}\n{}\n{}", self.device, self.until_ms, self.mount.display())
    }

    fn read(text: &str) -> Option<Self> {
        let mut lines = text.splitn(3, '\n');
        let (device, until_ms, mount) = (lines.next()?, lines.next()?.parse().ok()?, lines.next()?);
        Some(Self { device: device.to_owned(), until_ms, mount: mount.into() })
    }

    /// Thaws it, where it is mounted now.
    fn thaw(&self) -> io::Result<bool> {
        let all = mounts::all()?;
        let known = [&self.mount].into_iter();
        let points = known.chain(all.iter().filter(|mount| mount.device == self.device).map(|mount| &mount.point));
        let mut opened = points.filter_map(|point| FileSystem::open(point, &all).ok());
        let opened = opened.find(|file_system| file_system.mount.device == self.device);
        opened.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it is mounted nowhere any more"))?.thaw()
    }

    /// Thaws it. Once nobody can freeze it any more, its note goes.
    fn settle(&self, file: &Path) {
        let mount = self.mount.display();
        let over = match self.thaw() {
            Ok(true) => {
                tracing::warn!(%mount, "thawed: another process of this agent left it frozen");
                true
            }
            // That process may be about to freeze it.
            Ok(false) => self.is_over_for(KEPT),
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.is_over_for(KEPT_UNMOUNTED),
            Err(why) => {
                tracing::error!(%mount, %why, "another process of this agent left it frozen; trying again");
                false
            }
        };
        if over {
            let _ = fs::remove_file(file);
        }
    }

    /// Whether nobody can freeze it any more for that long.
    fn is_over_for(&self, kept: Duration) -> bool {
        Moment::now().millis() > self.until_ms.saturating_add(i64::try_from(kept.as_millis()).unwrap_or(i64::MAX))
    }
}

impl Notes {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, process: Arc::new(hex(&entropy::<8>())) }
    }

    /// Notes a freeze that is about to begin, and lasts so long.
    pub(super) fn write(&self, mount: &Path, device: &str, limit: Duration) -> io::Result<Note> {
        fs::create_dir_all(&self.folder)?;
        let file = self.folder.join(format!("{}-{}", self.process, hex(&entropy::<8>())));
        let until_ms = Moment::now().millis().saturating_add(i64::try_from(limit.as_millis()).unwrap_or(i64::MAX));
        let noted = Noted { device: device.to_owned(), until_ms, mount: mount.to_owned() };
        fs::write(&file, noted.write())?;
        Ok(Note { file, mount: mount.to_owned() })
    }

    /// The notes of other processes.
    fn others(&self) -> Vec<(PathBuf, Noted)> {
        let mut others = Vec::new();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let own = entry.file_name().to_string_lossy().starts_with(self.process.as_str());
            let read = || Noted::read(&fs::read_to_string(entry.path()).ok()?);
            if let Some(noted) = (!own).then(read).flatten() {
                others.push((entry.path(), noted));
            }
        }
        others
    }

    /// Thaws what other processes have left frozen, now and again and again, until nobody has this any more. A device that hangs
    /// holds up neither the caller nor other notes.
    pub(super) fn watch(&self) {
        let (folder, process): (PathBuf, Weak<String>) = (self.folder.clone(), Arc::downgrade(&self.process));
        let mut looking: HashMap<PathBuf, JoinHandle<()>> = HashMap::new();
        spawn("freeze-notes", move || {
            while let Some(process) = process.upgrade() {
                looking.retain(|_, thread| !thread.is_finished());
                for (file, noted) in (Self { folder: folder.clone(), process }).others() {
                    if !looking.contains_key(&file) {
                        let of_thread = file.clone();
                        let thread = spawn("freeze-note", move || noted.settle(&of_thread));
                        looking.extend(thread.map(|thread| (file, thread)));
                    }
                }
                std::thread::sleep(LOOK_EVERY);
            }
        });
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Option<JoinHandle<()>> {
    let started = std::thread::Builder::new().name(name.into()).spawn(work);
    started.inspect_err(|why| tracing::error!(%why, "what other processes leave frozen can't be looked at")).ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_kept_as_long_as_somebody_may_freeze() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (Notes::new(folder.path().join("notes")), Notes::new(folder.path().join("notes")));
        let note = one.write(Path::new("/proc"), "4095:7", Duration::ZERO).unwrap();
        let words = folder.path().join("notes/words");
        fs::write(&words, "words").unwrap();
        let settle = |notes: &Notes| notes.others().iter().for_each(|(file, noted)| noted.settle(file));
        settle(&other);
        assert!(note.file.exists() && words.exists());
        let text = fs::read_to_string(&note.file).unwrap();
        let long_ago = Noted { until_ms: 0, ..Noted::read(&text).unwrap() };
        assert_eq!(Noted::read(&long_ago.write()), Some(Noted { until_ms: 0, ..Noted::read(&text).unwrap() }));
        fs::write(&note.file, long_ago.write()).unwrap();
        settle(&one);
        assert!(note.file.exists(), "its own notes are those of its own threads");
        settle(&other);
        assert!(!note.file.exists() && words.exists());
    }
}
