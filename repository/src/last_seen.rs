//! What this machine remembers of a repository, beside its index cache: which repository was at an address, and the newest point
//! of each application that this machine saw. A repository that was rolled back as a whole to an earlier day, or replaced by
//! another one with the same password, is sound by itself. Only a machine that remembers can notice.
//!
//! ```text
//! <folder>/at-<hash of the address>          ids of the repositories that stood there, one a line
//! <folder>/<repository id>/newest-<app>      the point's id, and a keyed hash of it
//! ```

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::id::{AppHash, PointId, RepositoryId};
use crate::keys::KeyRing;

/// What is remembered of one repository.
#[derive(Clone)]
pub struct LastSeen {
    folder: Option<PathBuf>,
    repository: RepositoryId,
    key: Zeroizing<[u8; 32]>,
}

/// A repository is not what this machine remembers.
#[derive(Debug, thiserror::Error)]
pub enum Changed {
    /// Another repository is at the address.
    #[error(
        "at {address} stood the repository {known}, and now {found}: it was exchanged. If that is meant (disks that take turns), \
         add the line {found} to {record:?}"
    )]
    Exchanged {
        /// The address.
        address: String,
        /// The repository that was there.
        known: String,
        /// The repository that is there now.
        found: RepositoryId,
        /// The file that remembers it.
        record: PathBuf,
    },
    /// The repository lacks a point that it had.
    #[error(
        "{point} was in this repository, and is not there any more: it was rolled back to an earlier state, or this is an older \
         copy of it. If that is meant, remove {record:?}"
    )]
    RolledBack {
        /// The point.
        point: PointId,
        /// The file that remembers it.
        record: PathBuf,
    },
}

/// A point that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its application.
    pub app: AppHash,
    /// The point.
    pub point: PointId,
    record: PathBuf,
}

impl Seen {
    /// The error for the case that this point is missing.
    pub fn missing(self) -> Changed {
        Changed::RolledBack { point: self.point, record: self.record }
    }
}

/// A record consists of a few short lines.
const LENGTH_MAX: u64 = 64 << 10;

impl LastSeen {
    /// Remembers beside the index cache in `folder`; without a folder nothing is remembered.
    pub fn new(folder: Option<&Path>, repository: &RepositoryId, ring: &KeyRing) -> Self {
        Self { folder: folder.map(Path::to_owned), repository: *repository, key: ring.cache_key() }
    }

    fn at(&self, address: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("at-{}", &blake3::hash(address.as_bytes()).to_hex()[..32])))
    }

    /// Whether this repository was at the address before. The first repository at an address is accepted as it is.
    ///
    /// # Errors
    /// [`Changed::Exchanged`].
    pub fn stands_at(&self, address: &str) -> Result<(), Changed> {
        let Some(record) = self.at(address) else { return Ok(()) };
        let Some(known) = read(&record) else {
            write(&record, &format!("{}\n", self.repository));
            return Ok(());
        };
        let own = self.repository.hex();
        match known.lines().last() {
            Some(last) if !known.lines().any(|id| id.trim() == own) => Err(Changed::Exchanged {
                address: address.to_owned(),
                known: last.trim().to_owned(),
                found: self.repository,
                record,
            }),
            _ => Ok(()),
        }
    }

    /// Remembers that this repository was just made at this address and belongs there from now on.
    pub fn is_made_at(&self, address: &str) {
        if let Some(record) = self.at(address) {
            let known = read(&record).unwrap_or_default();
            let known: String = known.lines().map(|id| format!("{}\n", id.trim())).collect();
            write(&record, &format!("{known}{}\n", self.repository));
        }
    }

    fn newest(&self, app: &AppHash) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(self.repository.hex()).join(format!("newest-{app}")))
    }

    fn line(&self, app: &AppHash, point: &PointId) -> String {
        let point = point.to_string();
        let tag = blake3::Hasher::new_keyed(&self.key).update(app.as_bytes()).update(point.as_bytes()).finalize();
        format!("{point} {}\n", tag.to_hex())
    }

    /// The newest point of an application that this machine saw.
    pub fn newest_seen(&self, app: &AppHash) -> Option<Seen> {
        let record = self.newest(app)?;
        let line = read(&record)?;
        let point: PointId = line.split(' ').next()?.parse().ok()?;
        // Without the secret nobody can make us look for a point that never existed.
        (self.line(app, &point) == line).then_some(Seen { app: *app, point, record })
    }

    /// The newest point of each application that this machine saw.
    pub fn all_seen(&self) -> Vec<Seen> {
        let Some(folder) = &self.folder else { return Vec::new() };
        let entries = fs::read_dir(folder.join(self.repository.hex())).into_iter().flatten().flatten();
        let apps = entries.filter_map(|e| e.file_name().to_str()?.strip_prefix("newest-")?.parse().ok());
        apps.filter_map(|app| self.newest_seen(&app)).collect()
    }

    /// Remembers the newest point of an application.
    pub fn saw(&self, app: &AppHash, point: &PointId) {
        if let Some(record) = self.newest(app) {
            write(&record, &self.line(app, point));
        }
    }
}

fn read(path: &Path) -> Option<String> {
    let meta = fs::symlink_metadata(path).ok()?;
    if !meta.is_file() || meta.len() > LENGTH_MAX {
        return None;
    }
    fs::read_to_string(path).ok()
}

/// If a record can't be written, it is not remembered: that must stop nothing.
fn write(path: &Path, text: &str) {
    let Some(folder) = path.parent() else { return };
    let written = fs::create_dir_all(folder).and_then(|()| {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.persist(path).map_err(|e| e.error)
    });
    if let Err(e) = written
        && e.kind() != ErrorKind::NotFound
    {
        tracing::debug!(?path, error = %e, "what is known of the repository is not remembered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;
    use crate::id::RunId;
    use crate::keys::Secret;

    fn last_seen(folder: &Path, repository: u8, secret: u8) -> LastSeen {
        let ring = KeyRing::from_secret(&Secret::from_bytes([secret; 32]));
        LastSeen::new(Some(folder), &RepositoryId::from_bytes([repository; 16]), &ring)
    }

    #[test]
    fn what_was_seen_is_remembered_by_who_has_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        let (app, other) = (AppHash::from_bytes([1; 16]), AppHash::from_bytes([2; 16]));
        let point = |n: u8| PointId::new(Moment::from_millis(i64::from(n) * 100_000), RunId::from_bytes([n; 8]));
        let w = last_seen(folder.path(), 1, 1);
        assert_eq!(w.newest_seen(&app), None);
        w.saw(&app, &point(1));
        w.saw(&app, &point(2));
        assert_eq!(w.newest_seen(&app).map(|s| s.point), Some(point(2)));
        assert_eq!(w.all_seen().len(), 1);
        assert_eq!(w.newest_seen(&other), None);
        // A record that somebody else wrote is ignored.
        let record = w.newest(&app).unwrap();
        fs::copy(&record, w.newest(&other).unwrap()).unwrap();
        assert_eq!(w.newest_seen(&other), None);
        assert_eq!(last_seen(folder.path(), 1, 2).newest_seen(&app), None);
    }

    #[test]
    fn another_repository_at_the_same_address_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (last_seen(folder.path(), 1, 1), last_seen(folder.path(), 2, 1));
        one.stands_at("file:///a").unwrap();
        one.stands_at("file:///a").unwrap();
        two.stands_at("file:///b").unwrap();
        let Err(Changed::Exchanged { record, .. }) = two.stands_at("file:///a") else { panic!("not noticed") };
        // Disks that are used in turns: both repositories are accepted once a person listed both.
        fs::write(&record, format!("{}\n{}\n", one.repository, two.repository)).unwrap();
        one.stands_at("file:///a").unwrap();
        two.stands_at("file:///a").unwrap();
        // A repository that is made at the address is accepted there.
        let three = last_seen(folder.path(), 3, 1);
        assert!(three.stands_at("file:///a").is_err());
        three.is_made_at("file:///a");
        three.stands_at("file:///a").unwrap();
        one.stands_at("file:///a").unwrap();
    }
}
