//! The known chunks of one domain: segments of the repository, through a local cache, and what this run sealed.

use std::collections::{HashMap, HashSet};

use futures::StreamExt;
use tokio::sync::Semaphore;

use super::{IndexCache, MappedSegment, PackInfo, Segment};
use crate::id::{ChunkId, DomainId, PackId, RepositoryId, SegmentId};
use crate::keys::KeyRing;
use crate::keys::envelope::{self, Kind};
use crate::pack::Place;
use crate::store::{Failure, GetError, Key, Listed, Store, Trouble, list, read_listed};

/// Everything that is known of one domain.
#[derive(Default)]
pub struct ChunkIndex {
    segments: Vec<(SegmentId, MappedSegment)>,
    packs: HashMap<PackId, PackInfo>,
    fresh: HashMap<ChunkId, Place>,
    /// Packs whose entries are not in any segment yet.
    unwritten: Vec<PackId>,
    /// Packs that were set aside.
    aside: HashSet<PackId>,
}

/// MiB of segments that are loaded at once. A longer segment is loaded alone.
const LOAD_MIB: usize = 256;

impl ChunkIndex {
    /// Loads the segments of `domain`. A segment that is missing, damaged or forged is left out with a warning: its chunks are
    /// found again through the parent's maps, or uploaded again.
    ///
    /// # Errors
    /// [`Failure`] when the store can't be asked.
    pub async fn load(
        store: &dyn Store,
        ring: &KeyRing,
        repository: &RepositoryId,
        domain: &DomainId,
        cache: &IndexCache,
    ) -> Result<Self, Failure> {
        let listed = list(store, &Key::segments(domain)).await?;
        let named: Vec<(SegmentId, Listed)> =
            listed.into_iter().filter_map(|l| Some((l.key.parse_segment()?, l))).collect();
        // Anybody who may write can put long rubbish there: not all of it is in memory at once.
        let room = &Semaphore::new(LOAD_MIB);
        let loads = named.into_iter().map(|(id, listed)| async move {
            let key = &listed.key;
            let wanted = usize::try_from(listed.length >> 20).unwrap_or(LOAD_MIB).clamp(1, LOAD_MIB);
            // The semaphore is never closed.
            let _room = room.acquire_many(u32::try_from(wanted).unwrap_or(1)).await;
            if let Some(mapped) = cache.open(&id) {
                return Ok(Some((id, mapped)));
            }
            let object = match read_listed(store, &listed).await {
                Ok(object) => object,
                Err(GetError::NotFound(_)) => return Ok(None),
                Err(GetError::Failed(f)) if f.trouble == Trouble::Foreign => {
                    tracing::warn!(segment = %key, why = %f, "an index segment is left out; its chunks are not reused");
                    return Ok(None);
                }
                Err(GetError::Failed(f)) => return Err(f),
            };
            let opened = envelope::open(ring, repository, key, Kind::IndexSegment, &object);
            let mapped = match opened {
                Ok(body) => cache.store(&id, &body).map_err(|e| e.to_string()),
                Err(e) => Err(e.to_string()),
            };
            match mapped {
                Ok(mapped) => Ok(Some((id, mapped))),
                Err(why) => {
                    tracing::warn!(segment = %key, why, "an index segment is left out; its chunks are not reused");
                    Ok(None)
                }
            }
        });
        let mut loads = futures::stream::iter(loads).buffered(8);
        let mut segments = Vec::new();
        while let Some(loaded) = loads.next().await {
            segments.extend(loaded?);
        }
        drop(loads);
        let replaced: HashSet<SegmentId> = segments.iter().flat_map(|(_, s)| s.replaces().iter().copied()).collect();
        segments.retain(|(id, _)| !replaced.contains(id));
        let packs = segments.iter().flat_map(|(_, s)| s.packs()).map(|p| (p.id, p.clone())).collect();
        Ok(Self { segments, packs, ..Self::default() })
    }

    /// Where a chunk is.
    pub fn find(&self, id: &ChunkId) -> Option<Place> {
        let usable = |p: &Place| self.aside.is_empty() || !self.aside.contains(&p.pack);
        let fresh = self.fresh.get(id).copied().filter(usable);
        // A chunk may lie in several packs, of which one may still be usable.
        fresh.or_else(|| self.segments.iter().rev().find_map(|(_, s)| s.find(id).filter(usable)))
    }

    /// Forgets the chunks in these packs. Call it before any lookup, so that a chunk is found in one place for as long as this
    /// value lives. The next segment that replaces others leaves these packs out.
    pub fn set_aside(&mut self, packs: impl IntoIterator<Item = PackId>) {
        self.aside.extend(packs);
    }

    /// Whether a pack was set aside.
    pub fn is_aside(&self, id: &PackId) -> bool {
        self.aside.contains(id)
    }

    /// What is known of a pack.
    pub fn pack(&self, id: &PackId) -> Option<&PackInfo> {
        self.packs.get(id)
    }

    /// How many segments there are.
    pub fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// How many entries are not in any segment yet.
    pub fn fresh_len(&self) -> usize {
        self.fresh.len()
    }

    /// All entries of all segments.
    pub fn entries(&self) -> impl Iterator<Item = (ChunkId, Place)> + '_ {
        self.segments.iter().flat_map(|(_, s)| s.entries())
    }

    /// Makes a sealed pack's chunks known. Call it only after the store confirmed that the pack is really there.
    pub fn add(&mut self, pack: PackInfo, entries: impl IntoIterator<Item = (ChunkId, Place)>) {
        self.unwritten.push(pack.id);
        self.packs.insert(pack.id, pack);
        self.fresh.extend(entries);
    }

    /// Learns of a pack, without its entries, from a signed placement, which says more than an index segment. Of the two known
    /// ends of its lock the later counts: a segment holds the lock of when the pack was sealed, a placement the lock as it was
    /// extended since.
    pub fn note_pack(&mut self, pack: PackInfo) {
        let known = self.packs.get(&pack.id).and_then(|known| known.locked_until);
        self.packs.insert(pack.id, PackInfo { locked_until: pack.locked_until.max(known), ..pack });
    }

    /// A segment of what is not in the repository's index yet; `None` when there is nothing. If there are many small segments,
    /// the result merges them. The caller stores it and hands it back to [`ChunkIndex::written`].
    pub fn unwritten(&self, merge: bool) -> Option<Segment> {
        if self.unwritten.is_empty() {
            return None;
        }
        let mut packs: Vec<PackInfo> = self.unwritten.iter().filter_map(|id| self.packs.get(id)).cloned().collect();
        let mut entries: Vec<(ChunkId, Place)> = self.fresh.iter().map(|(&id, &place)| (id, place)).collect();
        let mut replaces = Vec::new();
        if merge && self.segments.len() >= Self::MERGE_FROM {
            for (id, segment) in self.segments.iter().filter(|(_, s)| s.len() <= Self::MERGE_ENTRIES_MAX) {
                replaces.push(*id);
                packs.extend(segment.packs().iter().filter(|p| !self.aside.contains(&p.id)).cloned());
                // Entries of packs that are not listed are dropped.
                entries.extend(segment.entries());
            }
        }
        let mut segment = Segment::new(packs, entries);
        replaces.sort_unstable();
        segment.replaces = replaces;
        Some(segment)
    }

    /// Segments are merged from this number on: each lookup of an unknown chunk asks the filter of every segment.
    const MERGE_FROM: usize = 24;
    /// Segments with more entries are not merged.
    const MERGE_ENTRIES_MAX: usize = 256 * 1024;

    /// Takes over a segment from [`ChunkIndex::unwritten`] that is now stored and mapped.
    pub fn written(&mut self, id: SegmentId, mapped: MappedSegment) {
        let replaced: HashSet<SegmentId> = mapped.replaces().iter().copied().collect();
        self.segments.retain(|(id, _)| !replaced.contains(id));
        // Packs that were sealed while the segment was being stored are not in it.
        let written: HashSet<PackId> = mapped.packs().iter().map(|p| p.id).collect();
        self.segments.push((id, mapped));
        self.fresh.retain(|_, place| !written.contains(&place.pack));
        self.unwritten.retain(|id| !written.contains(id));
    }
}
