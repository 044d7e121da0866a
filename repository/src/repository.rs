//! A repository: how to make one and open one, and the handle that everything else uses.

mod domains;
mod init;
mod open;
mod renew;

pub use domains::NoDomain;
pub use init::{InitError, InitOptions, Initialised, init, role_policies};
pub use open::{Credential, OpenError, open, public_config};
pub use renew::{Renewed, rolling};

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::config::Config;
use crate::id::PackId;
use crate::index::PackInfo;
use crate::keys::{Domain, KeyRing};
use crate::metadata::{MetadataError, MetadataReader, metadata_packs};
use crate::pack::{PackKind, PackTarget};
use crate::point::RootBody;
use crate::point::catalog::{Catalog, Found, PlaceError, Placed, chain};
use crate::point::commit::{CommitError, Locks, locked_enough, real_lock};
use crate::point::root::MapId;
use crate::store::{GetError, Key, SharedStore, Version, read};
use crate::volume_map::{Extent, MapCursor, MapRef, MapRoot, Step};

/// An open repository.
#[derive(Clone)]
pub struct Repository {
    /// The store that holds it.
    pub store: SharedStore,
    /// The configuration, which was decided when the repository was made.
    pub config: Config,
    /// The version of `repository.json` that was opened.
    pub config_version: Version,
    /// All keys that are derived from the secret.
    pub ring: Arc<KeyRing>,
    /// Keys of domains that were opened.
    opened: Arc<domains::Opened>,
}

/// A point with everything that is needed to read it.
pub struct OpenPoint {
    /// The root.
    pub found: Found,
    /// Its sealed part.
    pub body: RootBody,
    /// Where its packs are.
    pub placement: Placed,
    /// The keys that open its packs.
    pub domain: Arc<Domain>,
}

/// Why a point can't be read.
#[derive(Debug, thiserror::Error)]
pub enum PointError {
    /// The root can't be opened.
    #[error("the root of {point} is damaged")]
    Root {
        /// Which point.
        point: crate::id::PointId,
        /// Why.
        #[source]
        source: crate::point::root::RootError,
    },
    /// The keys that open it are not available.
    #[error("the restore point {point} can't be opened")]
    Keys {
        /// Which point.
        point: crate::id::PointId,
        /// Why.
        #[source]
        source: NoDomain,
    },
    /// No usable placement.
    #[error(transparent)]
    Placement(#[from] PlaceError),
    /// Root and placement contradict each other.
    #[error("the placement of {0} does not fit its root")]
    Contradiction(crate::id::PointId),
}

impl Repository {
    fn new(store: SharedStore, config: Config, config_version: Version, ring: KeyRing) -> Self {
        Self { store, config, config_version, ring: Arc::new(ring), opened: Arc::default() }
    }

    /// The same repository, reached through another store.
    #[must_use]
    pub fn over(&self, store: SharedStore) -> Self {
        Self { store, opened: Arc::default(), ..self.clone() }
    }

    /// The catalog, which finds points.
    pub fn catalog(&self) -> Catalog<'_> {
        Catalog { store: &*self.store, repository: self.config.id, signer: self.config.keys.signing }
    }

    /// The key that packs of a kind are sealed to.
    pub fn target(&self, domain: &Domain, kind: PackKind) -> PackTarget {
        PackTarget { repository: self.config.id, kind, recipient: domain.recipient(kind) }
    }

    /// The sealed part of a root that was found.
    ///
    /// # Errors
    /// [`PointError`].
    pub async fn body(&self, found: &Found) -> Result<RootBody, PointError> {
        let point = found.root.id();
        let domain = self.domain(found.root.domain()).await.map_err(|source| PointError::Keys { point, source })?;
        found.open(&domain).map_err(|source| PointError::Root { point, source })
    }

    /// Opens a point that was found.
    ///
    /// # Errors
    /// [`PointError`].
    pub async fn open_point(&self, found: Found) -> Result<OpenPoint, PointError> {
        let point = found.root.id();
        let domain = self.domain(found.root.domain()).await.map_err(|source| PointError::Keys { point, source })?;
        let body = found.open(&domain).map_err(|source| PointError::Root { point, source })?;
        let placement = self.catalog().placement(&found).await?;
        let maps = body.volumes.iter().map(|v| v.map).chain(body.manifests.map(|m| m.map));
        let fits = maps.clone().count() == placement.maps.len()
            && maps.zip(&placement.maps).all(|(map, place)| map.chunk.is_some() == place.is_some());
        if fits { Ok(OpenPoint { found, body, placement, domain }) } else { Err(PointError::Contradiction(point)) }
    }

    /// A reader for a point's maps and manifests.
    pub fn reader(&self, domain: &Arc<Domain>, packs: impl IntoIterator<Item = PackInfo>) -> MetadataReader<'_> {
        self.reader_of(domain, metadata_packs(packs))
    }

    /// Like [`Self::reader`], with packs that several readers share.
    pub fn reader_of(&self, domain: &Arc<Domain>, packs: Arc<HashMap<PackId, PackInfo>>) -> MetadataReader<'_> {
        MetadataReader::new(&*self.store, self.config.id, domain.clone(), packs)
    }

    /// The manifests of a point: JSON lines, one object each.
    ///
    /// # Errors
    /// [`MetadataError`].
    pub async fn manifests(&self, point: &OpenPoint) -> Result<Vec<u8>, MetadataError> {
        let Some((i, entry)) = point.manifests() else { return Ok(Vec::new()) };
        let reader = self.reader(&point.domain, point.placement.packs.iter().cloned());
        let mut cursor = MapCursor::new(point.map(i, &entry.map));
        let mut out = Vec::new();
        while let Some(step) = cursor.next(&reader).await? {
            let Step::Leaf { leaf, .. } = step else { continue };
            for extent in leaf.extents() {
                if let Extent::Data { id, place, chunk_offset, len, .. } = extent {
                    let bytes = crate::volume_map::MapSource::chunk(&reader, &MapRef { id, place }).await?;
                    out.extend_from_slice(&bytes[chunk_offset as usize..(chunk_offset + len) as usize]);
                }
            }
        }
        Ok(out)
    }

    /// Keeps `repository.json` locked for as long as any point.
    ///
    /// # Errors
    /// [`CommitError`].
    pub async fn lock_config(&self, locks: Locks) -> Result<(), CommitError> {
        let (Some(lock), key) = (locks.packs, Key::config()) else { return Ok(()) };
        let failed = |e| match e {
            GetError::NotFound(_) => CommitError::Vanished(key.clone()),
            GetError::Failed(f) => CommitError::Store(f),
        };
        let head = self.store.head(&key, Some(&self.config_version)).await.map_err(failed)?;
        let found = real_lock(&*self.store, &key, &self.config_version, &head, locks.point).await.map_err(failed)?;
        if !locked_enough(found, locks.point) {
            self.store.extend_lock(&key, &head.version, lock).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Checks, before a commit, that the repository is still the one that was opened: the same place
    /// ([`identity`](crate::store::Store::identity)) as when the run began, and the same configuration in it.
    ///
    /// # Errors
    /// [`CommitError`].
    pub async fn still_there(&self, began: &str) -> Result<(), CommitError> {
        let key = Key::config();
        match read(&*self.store, &key, Some(&self.config_version)).await {
            Ok(bytes) if bytes == self.config_bytes() => {}
            Ok(_) => return Err(CommitError::Replaced),
            Err(GetError::NotFound(_)) => return Err(CommitError::Vanished(key)),
            Err(GetError::Failed(f)) => return Err(f.into()),
        }
        let now = self.store.identity().await?;
        if now == began { Ok(()) } else { Err(CommitError::Elsewhere { began: began.to_owned(), now }) }
    }

    /// The bytes of `repository.json` that this repository was opened with.
    pub fn config_bytes(&self) -> Bytes {
        self.config.encode(&self.ring).into()
    }
}

impl OpenPoint {
    /// The map of the i-th volume (or of the manifests, after the volumes).
    pub fn map(&self, i: usize, id: &MapId) -> MapRoot {
        let place = self.placement.maps.get(i).copied().flatten();
        MapRoot { len: id.len, level: id.level, chunk: id.chunk.zip(place).map(|(id, place)| MapRef { id, place }) }
    }

    /// The manifests' entry and its place in the list of maps.
    pub fn manifests(&self) -> Option<(usize, crate::point::root::ManifestEntry)> {
        self.body.manifests.map(|m| (self.body.volumes.len(), m))
    }

    /// All maps, each with its name for people.
    pub fn maps(&self) -> impl Iterator<Item = (String, MapRoot)> + '_ {
        let volumes =
            self.body.volumes.iter().enumerate().map(|(i, v)| (format!("volume {}", v.name), self.map(i, &v.map)));
        volumes.chain(self.manifests().map(|(i, m)| ("manifests".to_owned(), self.map(i, &m.map))))
    }
}

/// Whether a point's error only means that nothing could be asked, as opposed to damage.
pub fn is_unreachable(e: &PointError) -> bool {
    matches!(e, PointError::Placement(PlaceError::Store(_)) | PointError::Keys { source: NoDomain::Store(_), .. })
}

/// A point error in one line.
pub fn describe(e: &PointError) -> String {
    chain(e)
}
