//! Finding restore points by id, or by application and time. Only authentic points are listed.
//!
//! Anybody who may write to the bucket can put a delete marker on a root, or another version beside it. So all versions are
//! looked at, oldest first, and the first authentic one counts. Delete markers and foreign versions are reported.

use std::collections::HashSet;

use futures::StreamExt;

use super::placement::{Placement, PlacementError};
use super::root::{Root, RootBody, RootError};
use crate::id::{AppHash, AppId, PointId, RepositoryId};
use crate::keys::{Domain, VerifyingKey};
use crate::pack::PackKind;
use crate::store::listing::versions_checked;
use crate::store::{Failure, GetError, Key, Listed, Store, Trouble, Version, read_listed};

/// Reads roots and placements; needs only the public key.
pub struct Catalog<'a> {
    /// The store.
    pub store: &'a dyn Store,
    /// The repository.
    pub repository: RepositoryId,
    /// The key that must have signed.
    pub signer: VerifyingKey,
}

/// An authentic root.
#[derive(Clone, Debug)]
pub struct Found {
    /// The readable part.
    pub root: Root,
    /// The version that holds it.
    pub version: Version,
    /// All its bytes.
    pub bytes: bytes::Bytes,
    /// Whether a delete marker hides it: somebody tried to make it disappear.
    pub hidden: bool,
}

/// A placement, and where it was found.
#[derive(Clone, Debug)]
pub struct Placed {
    /// What it says.
    pub placement: Placement,
    /// The version that holds it.
    pub version: Version,
    /// Whether a delete marker hides it.
    pub hidden: bool,
}

impl std::ops::Deref for Placed {
    type Target = Placement;
    fn deref(&self) -> &Placement {
        &self.placement
    }
}

/// The report on an object that a delete marker hides.
pub(crate) const HIDDEN: &str = "hidden by a delete marker; the locked version is still there";

/// An object under `points/` that is not an authentic root.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The key.
    pub key: Key,
    /// The version.
    pub version: Version,
    /// Why.
    pub reason: String,
}

/// What a listing found.
#[derive(Debug, Default)]
pub struct Listing {
    /// Authentic points and tombstones, oldest first.
    pub points: Vec<Found>,
    /// What was refused.
    pub refused: Vec<Refused>,
}

/// Why a point was not found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// There is no such point.
    #[error("there is no such restore point")]
    None,
    /// This application has no such point, but others of the same name have points.
    #[error("there is no such restore point; there are some of {}: say which is meant by --cluster-id and --namespace", listed(.0))]
    Namesakes(Vec<AppId>),
    /// There is something in its place, but not the point.
    #[error("{key} is refused: {reason}")]
    Refused {
        /// The key.
        key: Key,
        /// Why.
        reason: String,
    },
    /// The newest point, or an object that may be the newest, is not what it must be. An older point is not used in its place
    /// unless somebody asks for it.
    #[error("{key}, the newest, is refused: {reason}; to take an older one, name it by its id")]
    NewestRefused {
        /// The key.
        key: Key,
        /// Why.
        reason: String,
    },
    /// The store can't be asked.
    #[error(transparent)]
    Store(#[from] Failure),
}

fn listed(applications: &[AppId]) -> String {
    applications.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Why a point has no usable placement.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// There is none.
    #[error("the placement of {0} is missing")]
    Missing(PointId),
    /// There are some, but none is authentic.
    #[error("{key} is refused")]
    Refused {
        /// The newest one.
        key: Key,
        /// Why.
        #[source]
        reason: PlacementError,
    },
    /// The store can't be asked.
    #[error(transparent)]
    Store(#[from] Failure),
}

impl Catalog<'_> {
    /// All points (and tombstones) of an application, or of all.
    ///
    /// # Errors
    /// [`Failure`] when the store can't be asked: then nothing is known.
    pub async fn list(&self, app: Option<&AppHash>) -> Result<Listing, Failure> {
        self.look(versions_checked(self.store, &Key::points(app)).await?).await
    }

    async fn look(&self, versions: Vec<Listed>) -> Result<Listing, Failure> {
        let mut by_key: Vec<(Key, Vec<Listed>)> = Vec::new();
        for v in versions {
            match by_key.last_mut() {
                Some((key, of_key)) if *key == v.key => of_key.push(v),
                _ => by_key.push((v.key.clone(), vec![v])),
            }
        }
        let mut looks =
            futures::stream::iter(by_key.into_iter().map(|(key, of_key)| self.look_at(key, of_key))).buffered(16);
        let mut listing = Listing::default();
        while let Some(result) = looks.next().await {
            let (found, refused) = result?;
            listing.points.extend(found);
            listing.refused.extend(refused);
        }
        listing.points.sort_by_key(|f| (f.root.moment, f.root.run));
        Ok(listing)
    }

    /// The oldest authentic version of one root.
    async fn look_at(&self, key: Key, of_key: Vec<Listed>) -> Result<(Option<Found>, Vec<Refused>), Failure> {
        let hidden = of_key.iter().any(|v| v.delete_marker && v.latest);
        let mut refused = Vec::new();
        let mut found: Option<Found> = None;
        // Listed newest first; the oldest authentic one counts.
        for v in of_key.iter().rev().filter(|v| !v.delete_marker) {
            let mut refuse = |reason: String| {
                refused.push(Refused { key: key.clone(), version: v.version.clone(), reason });
            };
            if found.is_some() {
                refuse("a second version beside the authentic one".into());
                continue;
            }
            let bytes = match read_listed(self.store, v).await {
                Ok(bytes) => bytes,
                Err(GetError::NotFound(_)) => {
                    // It was listed, and deleted a moment later.
                    refuse("listed, and not there".into());
                    continue;
                }
                // One bad object must not make all others unavailable.
                Err(GetError::Failed(f)) if f.trouble == Trouble::Foreign => {
                    refuse(chain(&f));
                    continue;
                }
                Err(GetError::Failed(f)) => return Err(f),
            };
            match Root::decode(&bytes, &key, &self.repository, &self.signer) {
                Ok(root) => found = Some(Found { root, version: v.version.clone(), bytes, hidden }),
                Err(e) => refuse(chain(&e)),
            }
        }
        Ok((found, refused))
    }

    /// One point by id.
    ///
    /// # Errors
    /// [`FindError`].
    pub async fn point(&self, id: &PointId) -> Result<Found, FindError> {
        // The application is not known; the id is the last part of the key.
        let suffix = format!("/{}", id.key_part());
        let mut versions = versions_checked(self.store, &Key::points(None)).await?;
        versions.retain(|v| v.key.as_str().ends_with(&suffix));
        Self::only(self.look(versions).await?)
    }

    /// Whether a point of this application, or its tombstone, is there and authentic.
    ///
    /// # Errors
    /// [`Failure`] when the store can't be asked.
    pub async fn has(&self, app: &AppHash, id: &PointId) -> Result<bool, Failure> {
        let key = Key::point(app, id);
        let mut versions = self.store.versions(key.as_str()).await?;
        versions.retain(|v| v.key == key);
        Ok(!self.look(versions).await?.points.is_empty())
    }

    fn only(mut listing: Listing) -> Result<Found, FindError> {
        if let Some(at) = listing.points.iter().position(|f| !f.root.tombstone) {
            return Ok(listing.points.swap_remove(at));
        }
        match listing.refused.pop() {
            Some(Refused { key, reason, .. }) => Err(FindError::Refused { key, reason }),
            None => Err(FindError::None),
        }
    }

    /// The placement of a root: the newest authentic one.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub async fn placement(&self, found: &Found) -> Result<Placed, PlaceError> {
        let point = found.root.id();
        let digest = *blake3::hash(&found.bytes).as_bytes();
        let mut versions = self.store.versions(&Key::placements(&point)).await?;
        if versions.is_empty() {
            versions = versions_checked(self.store, &Key::placements(&point)).await?;
        }
        let markers: HashSet<Key> =
            versions.iter().filter(|v| v.delete_marker && v.latest).map(|v| v.key.clone()).collect();
        versions.retain(|v| !v.delete_marker);
        // The highest number comes first. Within one number the oldest version comes first: the listing has the newest first.
        versions.reverse();
        versions.sort_by(|a, b| b.key.cmp(&a.key));
        let (mut worst, mut foreign) = (None, None);
        for v in versions {
            let bytes = match read_listed(self.store, &v).await {
                Ok(bytes) => bytes,
                Err(GetError::NotFound(_)) => continue,
                Err(GetError::Failed(f)) if f.trouble == Trouble::Foreign => {
                    foreign = foreign.or(Some(PlaceError::Store(f)));
                    continue;
                }
                Err(GetError::Failed(f)) => return Err(f.into()),
            };
            match Placement::decode(&bytes, &v.key, &point, &digest, &self.repository, &self.signer) {
                Ok(placement) => {
                    let hidden = markers.contains(&v.key);
                    return Ok(Placed { placement, version: v.version, hidden });
                }
                Err(reason) => worst = worst.or(Some(PlaceError::Refused { key: v.key, reason })),
            }
        }
        Err(worst.or(foreign).unwrap_or(PlaceError::Missing(point)))
    }
}

impl Found {
    /// Opens the sealed part.
    ///
    /// # Errors
    /// [`RootError`].
    pub fn open(&self, domain: &Domain) -> Result<RootBody, RootError> {
        Root::open(&self.bytes, domain.secret(PackKind::Metadata))
    }
}

/// An error with all its causes, in one line.
pub fn chain(e: &dyn std::error::Error) -> String {
    let mut out = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        let text = s.to_string();
        // `#[error(transparent)]` shows its cause already.
        if !out.ends_with(&text) {
            out = format!("{out}: {text}");
        }
        source = s.source();
    }
    out
}
