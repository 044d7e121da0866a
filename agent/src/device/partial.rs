//! The unfinished file of a volume or stream that is restored to a new file. An incomplete volume is useless, so the
//! file is removed when the attempt is given up, unless another attempt of the same run may resume with it.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::UNIX_EPOCH;

use milkrun_repository::crash;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::exclusive::{self, TargetLock};
use super::lock;

/// The part of the file name between the target's name and the attempt's.
const INFIX: &str = ".milkrun-partial";

/// An attempt to restore to a target.
#[derive(Clone, Debug, Default)]
pub struct Attempt {
    /// A unique name; it becomes a part of the name of an unfinished file that the attempt makes.
    pub name: String,
    /// The tag of the target that an earlier attempt of the run wrote; empty: there was none.
    pub before: String,
    /// Whether an unfinished file stays for the next attempt if this one is given up.
    pub keep: Arc<AtomicBool>,
}

/// Identifies this very file, and not another one that had or will have the same name.
pub(super) fn identity(file: &File) -> io::Result<String> {
    let meta = file.metadata()?;
    let born = meta.created().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos());
    Ok(format!("{:x}:{}:{born:x}", meta.dev(), meta.ino()))
}

/// The tag of a file: the attempt that made it, or "file" if it existed before, and the file's identity.
pub(super) fn tag_of(file: &File, made_by: &str) -> io::Result<String> {
    Ok(format!("{made_by} {}", identity(file)?))
}

/// Whether a tag is this file's. The name of the file does not matter.
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
    /// Keeps other restores away.
    _lock: Arc<TargetLock>,
}

impl Partial {
    /// Opens the file beside `path` that an earlier attempt left, if its tag matches and it has `len` bytes. Else makes
    /// a new one.
    pub(super) fn open(path: &Path, len: u64, attempt: &Attempt) -> io::Result<(Self, File)> {
        let made_by = attempt.before.split(' ').next().filter(|m| !m.is_empty() && !m.contains('/'));
        if let Some(made_by) = made_by {
            let partial = name(path, made_by)?;
            match OpenOptions::new().read(true).write(true).open(&partial) {
                Ok(file) if is_of(&attempt.before, &file)? && file.metadata()?.len() == len => {
                    let file_lock = exclusive::take(&file)?;
                    return Ok((Self::of(partial, made_by, true, attempt, file_lock), file));
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
        let file = match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&partial) {
            // This attempt was begun before: the file is its own.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                exclusive::remove(&partial)?;
                OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&partial)?
            }
            file => file?,
        };
        // The lock is taken before other files are removed: two restores that begin at once do not remove each other's.
        let file_lock = exclusive::take(&file)?;
        // Before it was locked, another restore may have removed this file as a left-over.
        if !fs::metadata(&partial)
            .is_ok_and(|m| file.metadata().is_ok_and(|f| (f.dev(), f.ino()) == (m.dev(), m.ino())))
        {
            return Err(ErrorKind::WouldBlock.into());
        }
        let this = Self::of(partial, &attempt.name, false, attempt, file_lock);
        this.remove_others(path)?;
        Ok((this, file))
    }

    /// Removes other unfinished files of this target: crashes left them, or attempts that were not resumed. A locked
    /// one belongs to a running restore: [`ErrorKind::WouldBlock`].
    fn remove_others(&self, path: &Path) -> io::Result<()> {
        let start = name(path, "")?;
        let start = start.file_name().unwrap_or_default().as_bytes();
        for entry in fs::read_dir(folder(path))? {
            let other = entry?.path();
            let is_partial = other.file_name().is_some_and(|n| n.as_bytes().starts_with(start));
            if is_partial && other.file_name() != self.path.file_name() {
                exclusive::remove(&other)?;
            }
        }
        Ok(())
    }

    fn of(path: PathBuf, made_by: &str, was_there: bool, attempt: &Attempt, file_lock: Arc<TargetLock>) -> Self {
        let keep = attempt.keep.clone();
        Self { path, made_by: made_by.to_owned(), finished: false, was_there, keep, _lock: file_lock }
    }

    /// The attempt that made it.
    pub(super) fn made_by(&self) -> &str {
        &self.made_by
    }

    /// Whether an earlier attempt left it.
    pub(super) fn was_there(&self) -> bool {
        self.was_there
    }

    /// Renames a complete and durable file to its final name, durably.
    fn put_in_place(mut self, path: &Path, taken: Name) -> io::Result<()> {
        let exclusive = || renameat2(AT_FDCWD, &self.path, AT_FDCWD, path, RenameFlags::RENAME_NOREPLACE);
        match taken {
            Name::Taken => fs::rename(&self.path, path)?,
            Name::New => match exclusive() {
                Ok(()) => {}
                // The file system does not support this flag.
                Err(nix::Error::EINVAL) if fs::symlink_metadata(path).is_err() => fs::rename(&self.path, path)?,
                Err(nix::Error::EINVAL) => return Err(ErrorKind::AlreadyExists.into()),
                Err(e) => return Err(e.into()),
            },
        }
        self.finished = true;
        crash::point("after rename of the target");
        File::open(folder(path))?.sync_all()
    }
}

/// Whether a target's name was free when the restore began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// It was free: a file that has this name by now is somebody else's.
    New,
    /// It was taken: the file is replaced.
    Taken,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished && !self.keep.load(Ordering::SeqCst) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Renames the finished file to its final name, unless it was given up meanwhile. The mutex keeps others from giving it
/// up during that.
pub(super) fn put_in_place(partial: &Mutex<Option<Partial>>, path: &Path, taken: Name) -> io::Result<()> {
    let mut partial = lock(partial);
    match partial.take() {
        Some(finished) => finished.put_in_place(path, taken),
        None => Ok(()),
    }
}

pub(super) fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The longest file name, less the length of an attempt's name: run, epoch and attempt.
const NAME_MAX: usize = 255 - 32 - 1 - 16 - 1 - 10;

/// `<target>.milkrun-partial-<attempt>`. If the target's name is too long, its start and a digest of it are used
/// instead.
fn name(path: &Path, made_by: &str) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "no file name"))?.as_bytes();
    let mut partial = name.to_vec();
    if name.len() + INFIX.len() + 1 > NAME_MAX {
        let digest = blake3::hash(name).to_hex();
        partial.truncate(NAME_MAX - INFIX.len() - 1 - 17);
        partial.extend_from_slice(format!("-{}", &digest[..16]).as_bytes());
    }
    partial.extend_from_slice(format!("{INFIX}-{made_by}").as_bytes());
    Ok(path.with_file_name(OsStr::from_bytes(&partial)))
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
    fn a_kept_file_is_found_by_its_tag_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.img");
        let (partial, mut file) = Partial::open(&path, 3, &attempt("aa", "", true)).unwrap();
        file.write_all(b"abc").unwrap();
        let tag = tag_of(&file, partial.made_by()).unwrap();
        drop((partial, file));
        assert_eq!(files(folder.path()), ["data.img.milkrun-partial-aa"]);

        // Any later attempt may resume with it; its tag stays.
        let (partial, file) = Partial::open(&path, 3, &attempt("bb", &tag, true)).unwrap();
        assert_eq!((partial.was_there(), partial.made_by()), (true, "aa"));
        assert_eq!(tag_of(&file, partial.made_by()).unwrap(), tag);
        drop((partial, file));

        // Another file under the same name is not it.
        let kept = folder.path().join("data.img.milkrun-partial-aa");
        fs::rename(&kept, folder.path().join("elsewhere")).unwrap();
        fs::write(&kept, b"xyz").unwrap();
        drop(Partial::open(&path, 3, &attempt("cc", &tag, true)).unwrap());
        fs::rename(folder.path().join("elsewhere"), &kept).unwrap();

        // With another length, or with the tag of a file that is written in place, a new file is made, which has a new
        // tag.
        for (len, before) in [(4, tag.as_str()), (3, "file 1:2:3"), (3, &tag), (3, "../x 1:2:3")] {
            let (partial, file) = Partial::open(&path, len, &attempt("cc", before, true)).unwrap();
            assert_eq!((partial.was_there(), partial.made_by()), (false, "cc"));
            assert_eq!(file.metadata().unwrap().len(), 0);
            drop((partial, file));
            assert_eq!(files(folder.path()), ["data.img.milkrun-partial-cc"]);
        }

        // The unfinished file of a target with a similar name stays. A file that is given up and not kept is removed.
        fs::write(folder.path().join("data.img2.milkrun-partial-aa"), b"").unwrap();
        drop(Partial::open(&path, 3, &attempt("dd", "", false)).unwrap());
        assert_eq!(files(folder.path()), ["data.img2.milkrun-partial-aa"]);
    }

    /// The file of a running restore stays, and a second restore is refused. An unlocked file is removed.
    #[test]
    fn a_file_that_another_restore_holds_is_not_a_left_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.img");
        // Locked as by another process: the lock is not in this process's table.
        let kept = folder.path().join("data.img.milkrun-partial-aa");
        let file = File::create_new(&kept).unwrap();
        file.try_lock().unwrap();
        let refused = Partial::create(&path, &attempt("bb", "", false)).map(drop);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(files(folder.path()), ["data.img.milkrun-partial-aa"]);
        drop(file);
        let (second, _file) = Partial::create(&path, &attempt("bb", "", false)).unwrap();
        assert_eq!(files(folder.path()), ["data.img.milkrun-partial-bb"]);
        // It does not replace a file that got the target's name meanwhile.
        fs::write(&path, "somebody's").unwrap();
        let placed = put_in_place(&Mutex::new(Some(second)), &path, Name::New);
        assert_eq!(placed.unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"somebody's");
    }

    #[test]
    fn names_of_any_length_work_and_only_the_owner_may_read() {
        let folder = tempfile::tempdir().unwrap();
        let attempt = attempt(&format!("{}-{:x}-{}", "a".repeat(32), u64::MAX, u32::MAX), "", true);
        for len in [1, 170, 180, 219, 254, 255] {
            let names = ["x", "y"].map(|end| folder.path().join(format!("{}{end}", "n".repeat(len - 1))));
            let made = names.each_ref().map(|n| Partial::create(n, &attempt).unwrap());
            assert_eq!(files(folder.path()).len(), 2, "{len}");
            let mode = made[0].1.metadata().unwrap().mode();
            assert_eq!(mode & 0o777, 0o600);
            for ((partial, _), name) in made.into_iter().zip(&names) {
                put_in_place(&Mutex::new(Some(partial)), name, Name::New).unwrap();
            }
            assert!(names.iter().all(|n| n.exists()));
            names.iter().for_each(|n| fs::remove_file(n).unwrap());
        }
    }

    #[test]
    fn a_file_is_known_under_another_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.img");
        let (partial, file) = Partial::open(&path, 0, &attempt("aa", "", true)).unwrap();
        let tag = tag_of(&file, partial.made_by()).unwrap();
        put_in_place(&Mutex::new(Some(partial)), &path, Name::New).unwrap();
        assert!(is_of(&tag, &File::open(&path).unwrap()).unwrap());
        fs::rename(&path, folder.path().join("mine")).unwrap();
        fs::write(&path, b"").unwrap();
        assert!(!is_of(&tag, &File::open(&path).unwrap()).unwrap());
    }
}
