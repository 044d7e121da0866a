//! The local cache of opened segments: `<folder>/<repository id>/<segment id>`.
//!
//! A file is trusted only if a holder of the secret wrote it: each file ends with a hash that is keyed by the repository's secret
//! and bound to its segment. Only the owner has access to the folder. If there is no folder, or no room in it, a segment is kept
//! in memory: a cache saves time, and a missing one stops nothing.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::memfd::{MFdFlags, memfd_create};
use zeroize::Zeroizing;

use super::MappedSegment;
use crate::id::{RepositoryId, SegmentId};
use crate::keys::KeyRing;
use crate::last_seen::LastSeen;
use crate::wire::Malformed;

/// The cache of one repository.
#[derive(Clone)]
pub struct IndexCache {
    /// `None`: nothing is kept.
    folder: Option<PathBuf>,
    key: Zeroizing<[u8; 32]>,
    last_seen: LastSeen,
}

/// A segment can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The body is not a segment.
    #[error("the body is no index segment")]
    Malformed(#[from] Malformed),
    /// There is room neither in the folder nor in memory.
    #[error("there is no room for an index segment, neither in the cache folder nor in memory")]
    NoRoom(#[source] io::Error),
}

impl IndexCache {
    /// The folder that holds the caches: `chosen`, else `$XDG_CACHE_HOME/milkrun`, else `~/.cache/milkrun`; `None` if none of
    /// these is known.
    pub fn folder(chosen: Option<PathBuf>) -> Option<PathBuf> {
        chosen.or_else(|| {
            let known = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
            let base = known("XDG_CACHE_HOME").or_else(|| Some(known("HOME")?.join(".cache")))?;
            Some(base.join("milkrun"))
        })
    }

    /// Uses `<folder>/<repository>`, made if missing. If that is not possible, segments are kept in memory.
    pub fn new(folder: Option<&Path>, repository: &RepositoryId, ring: &KeyRing) -> Self {
        let base = folder;
        let folder = folder.map(|f| f.join(repository.hex())).and_then(|folder| match private(&folder) {
            Ok(()) => Some(folder),
            Err(e) => {
                tracing::warn!(?folder, reason = %e, "no index cache: what it would hold is kept in memory, and nothing is remembered of the repository");
                None
            }
        });
        let last_seen = LastSeen::new(base.filter(|_| folder.is_some()), repository, ring);
        Self { folder, key: ring.cache_key(), last_seen }
    }

    /// What this machine remembers of the repository.
    pub fn last_seen(&self) -> &LastSeen {
        &self.last_seen
    }

    fn path(&self, id: &SegmentId) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(id.hex()))
    }

    /// A cached segment. `None` if it is not cached, or not as it was written.
    pub fn open(&self, id: &SegmentId) -> Option<MappedSegment> {
        let file = File::open(self.path(id)?).ok()?;
        // Anybody else who could write there could also cut the file short while it is mapped.
        let meta = file.metadata().ok()?;
        let own = meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o022 == 0;
        if own { MappedSegment::open(&file, &self.key, id) } else { None }
    }

    /// Puts an authenticated body into the cache and maps it.
    ///
    /// # Errors
    /// [`CacheError`] when the body is no segment, or there is no room for it at all.
    pub fn store(&self, id: &SegmentId, body: &[u8]) -> Result<MappedSegment, CacheError> {
        let bytes = MappedSegment::cache_file(body, &self.key, id)?;
        if let (Some(folder), Some(path)) = (&self.folder, self.path(id)) {
            match keep(folder, &path, &bytes) {
                Ok(()) => {
                    if let Some(mapped) = self.open(id) {
                        return Ok(mapped);
                    }
                }
                Err(e) => {
                    tracing::warn!(?folder, reason = %e, "an index segment is kept in memory: the cache can't take it");
                }
            }
        }
        let no_room = |e: nix::Error| CacheError::NoRoom(e.into());
        let file = File::from(memfd_create("milkrun index", MFdFlags::MFD_CLOEXEC).map_err(no_room)?);
        file.write_all_at(&bytes, 0).map_err(CacheError::NoRoom)?;
        let mapped = MappedSegment::open(&file, &self.key, id);
        mapped.ok_or_else(|| CacheError::NoRoom(io::Error::other("changed while it was written")))
    }
}

fn keep(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Makes a folder that only its owner can access, or checks that it is one.
fn private(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut meta = fs::symlink_metadata(folder)?;
    if meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o077 != 0 {
        // Earlier releases made the folder with the umask's permissions.
        fs::set_permissions(folder, Permissions::from_mode(0o700))?;
        meta = fs::symlink_metadata(folder)?;
    }
    if !meta.is_dir() || meta.uid() != nix::unistd::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
        return Err(io::Error::other("it belongs to somebody else, or others may write to it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::PackId;
    use crate::index::Segment;
    use crate::index::tests::{entry, pack};
    use crate::keys::Secret;

    fn ring(n: u8) -> KeyRing {
        KeyRing::from_secret(&Secret::from_bytes([n; 32]))
    }

    fn cache(folder: Option<&Path>, secret: u8) -> IndexCache {
        IndexCache::new(folder, &RepositoryId::from_bytes([0; 16]), &ring(secret))
    }

    fn body() -> Vec<u8> {
        Segment::new(vec![pack(1)], (0..200).map(|i| entry([i; 32], 1, u32::from(i))).collect()).encode()
    }

    #[test]
    fn only_what_a_key_holder_wrote_for_this_segment_is_believed() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = [1, 2].map(|n| SegmentId::from_bytes([n; 16]));
        let cached = cache(Some(folder.path()), 1);
        cached.store(&one, &body()).unwrap();
        assert!(cached.open(&one).is_some());
        let path = cached.path(&one).unwrap();
        let good = fs::read(&path).unwrap();
        // A file is made anew if it is under another name, by a stranger's key, has a flipped bit, is cut, or is writable for
        // others.
        fs::copy(&path, cached.path(&two).unwrap()).unwrap();
        assert!(cached.open(&two).is_none());
        assert!(cache(Some(folder.path()), 2).open(&one).is_none());
        for at in (0..good.len()).step_by(good.len() / 50) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(cached.open(&one).is_none(), "byte {at}");
            fs::write(&path, &good[..at]).unwrap();
            assert!(cached.open(&one).is_none(), "cut at {at}");
        }
        fs::write(&path, &good).unwrap();
        assert!(cached.open(&one).is_some());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(cached.open(&one).is_none());
        assert_eq!(cached.store(&one, &body()).unwrap().packs()[0].id, PackId::from_bytes([1; 16]));
    }

    #[test]
    fn without_a_folder_of_its_own_nothing_stops() {
        let id = SegmentId::from_bytes([1; 16]);
        let folder = tempfile::tempdir().unwrap();
        // No folder; a file in its place; a link; a folder that can't be made.
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let open = folder.path().join("open");
        fs::create_dir_all(&open).unwrap();
        std::os::unix::fs::symlink(folder.path(), open.join(RepositoryId::from_bytes([0; 16]).hex())).unwrap();
        for folder in [None, Some(file.as_path()), Some(&open), Some(Path::new("/proc/self/none"))] {
            let cache = cache(folder, 1);
            assert_eq!(cache.folder, None, "{folder:?}");
            assert_eq!(cache.store(&id, &body()).unwrap().len(), 200);
            assert!(cache.open(&id).is_none());
        }
        assert!(cache(None, 1).store(&id, b"rubbish").is_err());
        // A folder that an earlier release made is restricted to its owner from now on.
        let old = folder.path().join("old");
        let inner = old.join(RepositoryId::from_bytes([0; 16]).hex());
        fs::create_dir_all(&inner).unwrap();
        fs::set_permissions(&inner, Permissions::from_mode(0o775)).unwrap();
        assert!(cache(Some(&old), 1).folder.is_some());
        assert_eq!(fs::metadata(&inner).unwrap().mode() & 0o777, 0o700);
    }
}
