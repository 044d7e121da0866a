//! Reading map and manifest chunks, with a small cache of windows and pack keys that are opened once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Mutex;

use crate::id::{PackId, RepositoryId};
use crate::index::PackInfo;
use crate::keys::Domain;
use crate::pack::{PackKey, PackKind, Place, SlotOpener, slot_key};
use crate::point::catalog::chain;
use crate::store::{Failure, GetError, Key, Store};
use crate::volume_map::{MapRef, MapSource};

/// How much is read at once: neighbouring leaves are usually wanted next.
const WINDOW: u64 = 512 << 10;
/// How many bytes of windows are kept.
const WINDOWS: usize = 24 * WINDOW as usize;

/// Why a metadata chunk could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// The placement does not list the chunk's pack.
    #[error("pack {0} is needed and not in the placement")]
    Unplaced(PackId),
    /// The pack isn't in the store.
    #[error("{0} is missing")]
    Missing(Key),
    /// It is damaged.
    #[error("{key}, slot {slot}: {reason}")]
    Damaged {
        /// The pack's key.
        key: Key,
        /// The slot.
        slot: u32,
        /// Why.
        reason: String,
    },
    /// The store can't be asked.
    #[error(transparent)]
    Store(#[from] Failure),
}

impl MetadataError {
    /// Whether this is damage, as opposed to a store that can't be asked.
    pub fn is_damage(&self) -> bool {
        !matches!(self, Self::Store(_))
    }

    /// The pack that is damaged or gone.
    pub fn pack(&self) -> Option<PackId> {
        match self {
            Self::Missing(key) | Self::Damaged { key, .. } => key.parse_pack(),
            Self::Unplaced(_) | Self::Store(_) => None,
        }
    }

    /// The object that is concerned.
    pub fn object(&self) -> Option<Key> {
        match self {
            Self::Unplaced(id) => Some(Key::pack(id)),
            Self::Missing(key) | Self::Damaged { key, .. } => Some(key.clone()),
            Self::Store(_) => None,
        }
    }
}

/// Reads metadata chunks of one point, with a small cache of windows and pack keys that are opened once.
pub struct MetadataReader<'a> {
    store: &'a dyn Store,
    repository: RepositoryId,
    domain: Arc<Domain>,
    packs: Arc<HashMap<PackId, PackInfo>>,
    keys: Arc<OpenedKeys>,
    window: u64,
    state: Mutex<State>,
}

/// Keys of packs that some reader opened, shared with others that read the same packs: opening a key takes a tenth of a
/// millisecond and more.
#[derive(Default)]
pub struct OpenedKeys(std::sync::Mutex<HashMap<PackId, PackKey>>);

impl OpenedKeys {
    fn get_or_open<E>(&self, pack: &PackId, open: impl FnOnce() -> Result<PackKey, E>) -> Result<PackKey, E> {
        let keys = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = keys().get(pack) {
            return Ok(key.clone());
        }
        let key = open()?;
        keys().insert(*pack, key.clone());
        Ok(key)
    }
}

#[derive(Default)]
struct State {
    /// Kept, so that its tables are made only once.
    opener: Option<SlotOpener>,
    windows: VecDeque<Window>,
    window_bytes: usize,
}

struct Window {
    pack: PackId,
    start: u64,
    bytes: Bytes,
}

/// The metadata packs among these: a reader finds maps and manifests in them.
pub fn metadata_packs(packs: impl IntoIterator<Item = PackInfo>) -> Arc<HashMap<PackId, PackInfo>> {
    let metadata = packs.into_iter().filter(|p| p.kind == PackKind::Metadata);
    Arc::new(metadata.map(|p| (p.id, p)).collect())
}

impl<'a> MetadataReader<'a> {
    /// A reader that knows these packs.
    pub fn new(
        store: &'a dyn Store,
        repository: RepositoryId,
        domain: Arc<Domain>,
        packs: Arc<HashMap<PackId, PackInfo>>,
    ) -> Self {
        Self { store, repository, domain, packs, keys: Arc::default(), window: WINDOW, state: Mutex::default() }
    }

    /// Shares opened keys with other readers of packs of the same key ring.
    #[must_use]
    pub fn sharing(self, keys: Arc<OpenedKeys>) -> Self {
        Self { keys, ..self }
    }

    /// Reads only what it is asked for. This is for places all over a map, whose neighbours are not wanted.
    #[must_use]
    pub fn without_read_ahead(self) -> Self {
        Self { window: 0, ..self }
    }

    /// A slot's bytes as stored. Several calls may run at once.
    async fn sealed(&self, info: &PackInfo, place: &Place) -> Result<Vec<u8>, MetadataError> {
        let (start, end) = (u64::from(place.offset), place.end());
        let key = Key::pack(&info.id);
        let damaged = || MetadataError::Damaged { key: key.clone(), slot: place.slot, reason: "cut short".into() };
        {
            let state = self.state.lock().await;
            let holds = |w: &&Window| w.pack == info.id && w.start <= start && end <= w.start + w.bytes.len() as u64;
            if let Some(w) = state.windows.iter().find(holds) {
                let at = usize::try_from(start - w.start).map_err(|_| damaged())?;
                return Ok(w.bytes[at..at + place.sealed_len as usize].to_vec());
            }
        }
        let range = start..end.max((start + self.window).min(info.length));
        let bytes = match self.store.get(&key, Some(&info.version), Some(range)).await {
            Ok(bytes) => bytes,
            Err(GetError::NotFound(_)) => return Err(MetadataError::Missing(key)),
            Err(GetError::Failed(f)) => return Err(f.into()),
        };
        let sealed = bytes.get(..place.sealed_len as usize).ok_or_else(damaged)?.to_vec();
        let mut state = self.state.lock().await;
        state.window_bytes += bytes.len();
        while state.window_bytes > WINDOWS
            && let Some(oldest) = state.windows.pop_front()
        {
            state.window_bytes -= oldest.bytes.len();
        }
        state.windows.push_back(Window { pack: info.id, start, bytes });
        Ok(sealed)
    }
}

#[async_trait]
impl MapSource for MetadataReader<'_> {
    type Error = MetadataError;

    async fn chunk(&self, r: &MapRef) -> Result<Bytes, MetadataError> {
        let info = self.packs.get(&r.place.pack).ok_or(MetadataError::Unplaced(r.place.pack))?;
        let damaged = |reason: String| MetadataError::Damaged { key: Key::pack(&info.id), slot: r.place.slot, reason };
        let mut sealed = self.sealed(info, &r.place).await?;
        let open = || info.key.open(self.domain.secret(PackKind::Metadata), &self.repository, &info.id, info.kind);
        let key = self.keys.get_or_open(&info.id, open).map_err(|e| damaged(chain(&e)))?;
        let idle = self.state.lock().await.opener.take();
        let mut opener = match idle {
            Some(opener) => opener,
            None => SlotOpener::new(self.repository).map_err(|e| damaged(chain(&e)))?,
        };
        let mut out = vec![0; r.place.plain_len as usize];
        let key = slot_key(&key, r.place.slot);
        let opened = opener.open(&r.id, &r.place, &key, &mut sealed, &mut out, |b| self.domain.chunks().identify(b));
        self.state.lock().await.opener = Some(opener);
        opened.map_err(|e| damaged(chain(&e)))?;
        Ok(out.into())
    }

    fn malformed(&self, r: &MapRef, what: &'static str) -> MetadataError {
        let reason = format!("the map is malformed: {what}");
        MetadataError::Damaged { key: Key::pack(&r.place.pack), slot: r.place.slot, reason }
    }
}
