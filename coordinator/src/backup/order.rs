//! The order of a backup.

use std::collections::HashSet;
use std::time::Duration;

use milkrun_repository::id::AppId;
use milkrun_repository::point::root::{Class, Skipped};

use super::BackupError;
use crate::inventory::SourceSpec;

/// What a backup is to do.
#[derive(Clone, Debug)]
pub struct Order {
    /// The application.
    pub application: AppId,
    /// The UID of its namespace; empty outside of Kubernetes.
    pub namespace_uid: String,
    /// The class by which retention counts the point.
    pub class: Class,
    /// Volumes and streams. If there are none, and no manifests either, those of the inventory are used.
    pub sources: Vec<SourceSpec>,
    /// Volumes that the application has and this run leaves out.
    pub skipped: Vec<Skipped>,
    /// Manifests as JSON lines.
    pub manifests: Vec<u8>,
    /// How many objects the manifests have.
    pub manifest_objects: u32,
    /// How long the point stays locked; `None`: as the repository says.
    pub lock_for: Option<Duration>,
    /// `auto`, `none` or an id.
    pub parent: String,
    /// zstd level.
    pub level: i32,
    /// Whether the level is raised where a volume waits for the line to the store.
    pub adapt_level: bool,
    /// The host of the coordinator, for people.
    pub host: String,
    /// Read devices that are mounted read-write.
    pub allow_mounted: bool,
    /// Accept files that change.
    pub allow_changing: bool,
    /// Accept volumes and streams without a byte.
    pub allow_empty: bool,
    /// Whether a chunk of which a page changed is stored whole.
    pub whole_chunks: bool,
    /// Whether blocks that a clean file system marks as free are left out, for all volumes.
    pub skip_free: bool,
    /// Of this many points in a row, at least one is read without a changed-block list; 0: 16.
    pub full_every: u32,
    /// Whether sources are added while it goes on, by a caller who may name them.
    pub open: bool,
    /// Whether all sources are known.
    pub complete: bool,
}

/// Of this many points in a row, at least one is read in full, unless an order says otherwise.
pub(super) const FULL_EVERY: u32 = 16;

impl Order {
    /// A source by its name.
    pub(super) fn source(&self, name: &str) -> Option<&SourceSpec> {
        self.sources.iter().find(|s| s.name.as_str() == name)
    }

    /// Checks that it names something, and nothing twice.
    ///
    /// # Errors
    /// [`BackupError::Order`].
    pub(super) fn check(&self) -> Result<(), BackupError> {
        let mut names = HashSet::new();
        if let Some(twice) = self.sources.iter().find(|s| !names.insert(&s.name)) {
            return Err(BackupError::Order(format!("two sources are called {}", twice.name)));
        }
        if let Some(both) = self.skipped.iter().find(|s| names.contains(&s.name)) {
            return Err(BackupError::Order(format!("{} is to be backed up, and to be left out", both.name)));
        }
        if self.complete && self.sources.is_empty() && self.manifests.is_empty() {
            return Err(BackupError::Order("nothing to back up: name at least one volume, stream or manifest".into()));
        }
        Ok(())
    }
}
