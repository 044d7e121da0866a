//! The unfinished file of a volume or stream. Half of one is worth nothing under any name: it is removed when it is given up,
//! unless another attempt of the same run is to go on with it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use milkrun_repository::crash;

use super::lock;

/// Between a target's name and the tag.
const INFIX: &str = ".milkrun-partial";

/// The tag of what is written under the target's own name: a device, or a file that was there.
pub(super) const IN_PLACE: &str = "in place";

/// Whose attempt at a target this is.
#[derive(Clone, Debug, Default)]
pub struct Attempt {
    /// Of this attempt and no other; a part of the name of an unfinished file that it makes.
    pub tag: String,
    /// What an earlier attempt of the run wrote and made durable in part; without it, all is written anew.
    pub goes_on: Option<String>,
    /// Set while an unfinished file is to stay for the next attempt, should this one be given up.
    pub keep: Arc<AtomicBool>,
}

/// An unfinished file.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    tag: String,
    finished: bool,
    was_there: bool,
    keep: Arc<AtomicBool>,
}

impl Partial {
    /// Opens the file beside `path` that an earlier attempt left, if it is one of `len` bytes; else a new one.
    pub(super) fn open(path: &Path, len: u64, attempt: &Attempt) -> io::Result<(Self, File)> {
        if let Some(tag) = attempt.goes_on.as_deref().filter(|t| *t != IN_PLACE) {
            let partial = name(path, tag)?;
            match OpenOptions::new().read(true).write(true).open(&partial) {
                Ok(file) if file.metadata()?.len() == len => return Ok((Self::of(partial, tag, true, attempt), file)),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Self::create(path, attempt)
    }

    /// Makes a new file beside `path`.
    pub(super) fn create(path: &Path, attempt: &Attempt) -> io::Result<(Self, File)> {
        let partial = name(path, &attempt.tag)?;
        remove_all(path)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&partial)?;
        Ok((Self::of(partial, &attempt.tag, false, attempt), file))
    }

    fn of(path: PathBuf, tag: &str, was_there: bool, attempt: &Attempt) -> Self {
        Self { path, tag: tag.to_owned(), finished: false, was_there, keep: attempt.keep.clone() }
    }

    /// The tag of the attempt that made it.
    pub(super) fn tag(&self) -> &str {
        &self.tag
    }

    /// Whether an earlier attempt left it.
    pub(super) fn was_there(&self) -> bool {
        self.was_there
    }

    /// Gives a whole and durable file its name, durably.
    fn put_in_place(mut self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        self.finished = true;
        crash::point("after rename of the target");
        File::open(folder(path))?.sync_all()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished && !self.keep.load(Ordering::SeqCst) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Gives the finished file its name, unless it was given up meanwhile; nobody gives it up in between.
pub(super) fn put_in_place(partial: &Mutex<Option<Partial>>, path: &Path) -> io::Result<()> {
    let mut partial = lock(partial);
    match partial.take() {
        Some(finished) => finished.put_in_place(path),
        None => Ok(()),
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn name(path: &Path, tag: &str) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "no file name"))?;
    let mut partial = name.to_os_string();
    partial.push(format!("{INFIX}-{tag}"));
    Ok(path.with_file_name(partial))
}

/// Removes what crashes, and attempts that nobody went on with, left of this target.
fn remove_all(path: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let start = name(path, "")?;
    let start = start.file_name().unwrap_or_default().as_bytes();
    for entry in fs::read_dir(folder(path))? {
        let entry = entry?;
        if entry.file_name().as_bytes().starts_with(start) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn attempt(tag: &str, goes_on: Option<&str>, keep: bool) -> Attempt {
        Attempt { tag: tag.into(), goes_on: goes_on.map(Into::into), keep: Arc::new(AtomicBool::new(keep)) }
    }

    fn files(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_kept_is_found_by_its_tag_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.img");
        let (partial, mut file) = Partial::open(&path, 3, &attempt("aa", None, true)).unwrap();
        file.write_all(b"abc").unwrap();
        drop(partial);
        assert_eq!(files(folder.path()), ["data.img.milkrun-partial-aa"]);

        // It goes on, by any later attempt, and keeps its tag.
        let (partial, file) = Partial::open(&path, 3, &attempt("bb", Some("aa"), true)).unwrap();
        assert_eq!((partial.was_there(), partial.tag()), (true, "aa"));
        assert_eq!(file.metadata().unwrap().len(), 3);
        drop(partial);

        // Another length, or what was written in place, is none of it: anew, under a new tag. Nobody mistakes that for the first.
        for (len, goes_on) in [(4, "aa"), (3, IN_PLACE), (3, "aa")] {
            let (partial, file) = Partial::open(&path, len, &attempt("cc", Some(goes_on), true)).unwrap();
            assert_eq!((partial.was_there(), partial.tag()), (false, "cc"));
            assert_eq!(file.metadata().unwrap().len(), 0);
            drop(partial);
            assert_eq!(files(folder.path()), ["data.img.milkrun-partial-cc"]);
        }

        // What looks alike and is another's stays; what is given up and not kept goes.
        fs::write(folder.path().join("data.img2.milkrun-partial-aa"), b"").unwrap();
        drop(Partial::open(&path, 3, &attempt("dd", None, false)).unwrap());
        assert_eq!(files(folder.path()), ["data.img2.milkrun-partial-aa"]);
    }
}
