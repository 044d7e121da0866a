//! The unfinished file of a volume or stream. Half of one is worth nothing under any name: it is removed when it is given up,
//! unless another attempt of the same run is to go on with it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::UNIX_EPOCH;

use milkrun_repository::crash;

use super::lock;

/// Between a target's name and the attempt's.
const INFIX: &str = ".milkrun-partial";

/// Whose attempt at a target this is.
#[derive(Clone, Debug, Default)]
pub struct Attempt {
    /// Of this attempt and no other; a part of the name of an unfinished file that it makes.
    pub name: String,
    /// The tag of what an earlier attempt of the run wrote; empty: there was none.
    pub before: String,
    /// Whether an unfinished file is to stay for the next attempt, should this one be given up.
    pub keep: Arc<AtomicBool>,
}

/// Which file this is, and not what was or will be found under the same name.
pub(super) fn identity(file: &File) -> io::Result<String> {
    let meta = file.metadata()?;
    let born = meta.created().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos());
    Ok(format!("{:x}:{}:{born:x}", meta.dev(), meta.ino()))
}

/// The tag of a file: who made it, or "file" if it was there, and which it is.
pub(super) fn tag_of(file: &File, made_by: &str) -> io::Result<String> {
    Ok(format!("{made_by} {}", identity(file)?))
}

/// Whether a tag is that file's, under whatever name it stands now.
pub(super) fn is_of(tag: &str, file: &File) -> io::Result<bool> {
    let identity = identity(file)?;
    Ok(tag.split_once(' ').is_some_and(|(_, i)| i == identity))
}

/// An unfinished file.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    made_by: String,
    finished: bool,
    was_there: bool,
    keep: Arc<AtomicBool>,
}

impl Partial {
    /// Opens the file beside `path` that an earlier attempt left, if it is that very one and has `len` bytes; else a new one.
    pub(super) fn open(path: &Path, len: u64, attempt: &Attempt) -> io::Result<(Self, File)> {
        let made_by = attempt.before.split(' ').next().filter(|m| !m.is_empty() && !m.contains('/'));
        if let Some(made_by) = made_by {
            let partial = name(path, made_by)?;
            match OpenOptions::new().read(true).write(true).open(&partial) {
                Ok(file) if is_of(&attempt.before, &file)? && file.metadata()?.len() == len => {
                    return Ok((Self::of(partial, made_by, true, attempt), file));
                }
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Self::create(path, attempt)
    }

    /// Makes a new file beside `path`.
    pub(super) fn create(path: &Path, attempt: &Attempt) -> io::Result<(Self, File)> {
        let partial = name(path, &attempt.name)?;
        remove_all(path)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&partial)?;
        Ok((Self::of(partial, &attempt.name, false, attempt), file))
    }

    fn of(path: PathBuf, made_by: &str, was_there: bool, attempt: &Attempt) -> Self {
        Self { path, made_by: made_by.to_owned(), finished: false, was_there, keep: attempt.keep.clone() }
    }

    /// The attempt that made it.
    pub(super) fn made_by(&self) -> &str {
        &self.made_by
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

fn name(path: &Path, made_by: &str) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "no file name"))?;
    let mut partial = name.to_os_string();
    partial.push(format!("{INFIX}-{made_by}"));
    Ok(path.with_file_name(partial))
}

/// Removes what crashes, and attempts that nobody went on with, left of this target.
fn remove_all(path: &Path) -> io::Result<()> {
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

    fn attempt(name: &str, before: &str, keep: bool) -> Attempt {
        Attempt { name: name.into(), before: before.into(), keep: Arc::new(AtomicBool::new(keep)) }
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
        let (partial, mut file) = Partial::open(&path, 3, &attempt("aa", "", true)).unwrap();
        file.write_all(b"abc").unwrap();
        let tag = tag_of(&file, partial.made_by()).unwrap();
        drop(partial);
        assert_eq!(files(folder.path()), ["data.img.milkrun-partial-aa"]);

        // It goes on, by any later attempt, and keeps its tag.
        let (partial, file) = Partial::open(&path, 3, &attempt("bb", &tag, true)).unwrap();
        assert_eq!((partial.was_there(), partial.made_by()), (true, "aa"));
        assert_eq!(tag_of(&file, partial.made_by()).unwrap(), tag);
        drop(partial);

        // Its twin under the same name is another.
        let kept = folder.path().join("data.img.milkrun-partial-aa");
        fs::rename(&kept, folder.path().join("elsewhere")).unwrap();
        fs::write(&kept, b"xyz").unwrap();
        drop(Partial::open(&path, 3, &attempt("cc", &tag, true)).unwrap());
        fs::rename(folder.path().join("elsewhere"), &kept).unwrap();

        // Another length, or what was written in place, is none of it: anew, under a new tag. Nobody mistakes that for the first.
        for (len, before) in [(4, tag.as_str()), (3, "file 1:2:3"), (3, &tag), (3, "../x 1:2:3")] {
            let (partial, file) = Partial::open(&path, len, &attempt("cc", before, true)).unwrap();
            assert_eq!((partial.was_there(), partial.made_by()), (false, "cc"));
            assert_eq!(file.metadata().unwrap().len(), 0);
            drop(partial);
            assert_eq!(files(folder.path()), ["data.img.milkrun-partial-cc"]);
        }

        // What looks alike and is another's stays; what is given up and not kept goes.
        fs::write(folder.path().join("data.img2.milkrun-partial-aa"), b"").unwrap();
        drop(Partial::open(&path, 3, &attempt("dd", "", false)).unwrap());
        assert_eq!(files(folder.path()), ["data.img2.milkrun-partial-aa"]);
    }

    #[test]
    fn a_file_is_known_under_another_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.img");
        let (partial, file) = Partial::open(&path, 0, &attempt("aa", "", true)).unwrap();
        let tag = tag_of(&file, partial.made_by()).unwrap();
        put_in_place(&Mutex::new(Some(partial)), &path).unwrap();
        assert!(is_of(&tag, &File::open(&path).unwrap()).unwrap());
        fs::rename(&path, folder.path().join("mine")).unwrap();
        fs::write(&path, b"").unwrap();
        assert!(!is_of(&tag, &File::open(&path).unwrap()).unwrap());
    }
}
