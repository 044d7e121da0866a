//! The parent restore point: choosing it, and sending its extents to agents.
//!
//! A changed-block list is trusted in two steps. The coordinator decides whether one may be used at all (`begin_by_list`): only on
//! the first attempt, not for too many points in a row, and not if free space was left out before. The agent checks whether it is
//! right (`agent/src/backup/sample.rs`).
//!
//! With a list of single pages, an agent gets the parent in outline: which ranges are holes, which are data, and which are
//! fragmented. It need not know which chunk is where. So the rest of the volume costs almost nothing on the wire, however many
//! pieces it lies in.

use std::collections::{HashMap, HashSet};

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::Repository;
use milkrun_repository::clock::entropy;
use milkrun_repository::config::REGION_BYTES;
use milkrun_repository::id::{DomainId, PackId};
use milkrun_repository::index::{ChunkIndex, PackInfo};
use milkrun_repository::metadata::MetadataReader;
use milkrun_repository::pack::PackKind;
use milkrun_repository::point::catalog::FindError;
use milkrun_repository::point::journal::Record;
use milkrun_repository::repository::{NoDomain, OpenPoint, PointError};
use milkrun_repository::volume_map::{Extent, Leaf, MapCursor, MapRef, Step, digests_of};

use super::fragmentation::fragmented;
use super::order::FULL_EVERY;
use super::pages::{Lists, read_lists};
use super::parent_region::outline;
use super::{BackupError, Run};
use crate::inventory::SourceSpec;

/// How many random places in a volume are tried until one holds data.
const DRAWS: usize = 8;

/// Which point is the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The newest point of the application.
    Auto,
    /// No point: everything is read and looked up.
    None,
    /// This point.
    Point(milkrun_repository::id::PointId),
}

impl std::str::FromStr for Choice {
    type Err = BackupError;
    fn from_str(s: &str) -> Result<Self, BackupError> {
        match s {
            "" | "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            id => {
                let bad = |_| BackupError::Order(format!("{id:?} is no parent: auto, none, or a restore point's id"));
                Ok(Self::Point(id.parse().map_err(bad)?))
            }
        }
    }
}

/// Finds and opens the parent.
pub(super) async fn open(
    repository: &Repository,
    domain: DomainId,
    choice: Choice,
) -> Result<Option<OpenPoint>, BackupError> {
    let catalog = repository.catalog();
    let found = match choice {
        Choice::None => return Ok(None),
        Choice::Point(id) => match catalog.point(&id).await {
            Ok(found) if found.root.domain() == domain => found,
            Ok(found) if found.root.app == domain.app => {
                return Err(BackupError::Order(format!("{id} was made under earlier keys of the application")));
            }
            Ok(_) => return Err(BackupError::Order(format!("{id} is a restore point of another application"))),
            Err(FindError::Store(f)) => return Err(f.into()),
            Err(e) => return Err(BackupError::Order(format!("the parent {id}: {e}"))),
        },
        Choice::Auto => {
            let listing = catalog.list(Some(&domain.app)).await?;
            for refused in &listing.refused {
                tracing::warn!(object = %refused.key, reason = refused.reason, "not used as a parent");
            }
            let points = listing.points.into_iter().filter(|f| f.root.domain() == domain).collect();
            match repository.order(points).await?.last(|_| true) {
                Some(found) => found.clone(),
                None => return Ok(None),
            }
        }
    };
    match (repository.open_point(found).await, choice) {
        (Ok(point), _) => Ok(Some(point)),
        (Err(e), Choice::Auto) if !milkrun_repository::repository::is_unreachable(&e) => {
            // A damaged parent must not keep new backups from being made.
            tracing::warn!(reason = milkrun_repository::repository::describe(&e), "the parent is not used");
            Ok(None)
        }
        (Err(PointError::Placement(milkrun_repository::point::catalog::PlaceError::Store(f))), _)
        | (Err(PointError::Keys { source: NoDomain::Store(f), .. }), _) => Err(f.into()),
        (Err(e), _) => Err(BackupError::Parent(e)),
    }
}

/// Learns what the index lacks of the parent: its packs, and, if segments were lost, its chunks.
pub(super) async fn complete_index(
    repository: &Repository,
    parent: &OpenPoint,
    index: &mut ChunkIndex,
) -> Result<(), BackupError> {
    let packs = &parent.placement.packs;
    let unknown = |p: &&PackInfo| p.kind == PackKind::Data && index.pack(&p.id).is_none() && !index.is_aside(&p.id);
    let lost: HashSet<PackId> = packs.iter().filter(unknown).map(|p| p.id).collect();
    let mut entries: HashMap<PackId, Vec<_>> = HashMap::new();
    if !lost.is_empty() {
        tracing::warn!(packs = lost.len(), "the index is incomplete; it is rebuilt from the parent's maps");
        let reader = repository.reader(&parent.domain, packs.iter().cloned());
        for (_, map) in parent.maps() {
            let mut cursor = MapCursor::new(map);
            loop {
                let step = match cursor.next(&reader).await {
                    Ok(Some(step)) => step,
                    Ok(None) => break,
                    // Chunks that are not found are stored again.
                    Err(e) if e.is_damage() => {
                        tracing::warn!(reason = %e, "the parent's map is damaged from here on");
                        break;
                    }
                    Err(e) => return Err(e.into()),
                };
                let Step::Leaf { leaf, .. } = step else { continue };
                for &MapRef { id, place } in leaf.chunks() {
                    if lost.contains(&place.pack) {
                        entries.entry(place.pack).or_default().push((id, place));
                    }
                }
            }
        }
    }
    for pack in packs {
        match entries.remove(&pack.id) {
            Some(entries) => index.add(pack.clone(), entries),
            None => index.note_pack(pack.clone()),
        }
    }
    Ok(())
}

/// In how much detail an agent is sent the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Where data is, and where it is fragmented.
    Outline,
    /// Also which chunks.
    Chunks,
    /// Also the digests of their pages.
    Pages,
}

impl Run {
    /// The next range of a volume's parent; `None` at its end.
    ///
    /// # Errors
    /// [`BackupError`] when the parent's map can't be read.
    pub async fn next_parent(
        &self,
        volume: &str,
        attempt: u32,
        reader: &MetadataReader<'_>,
        detail: Detail,
    ) -> Result<Option<wire::ParentRange>, BackupError> {
        let Some(build) = self.build_of(volume) else { return Ok(None) };
        loop {
            let mut guard = build.lock().await;
            let build = &mut *guard;
            if build.attempt != attempt {
                return Ok(None);
            }
            let Some(root) = build.parent else { return Ok(None) };
            let cursor = build.cursor.get_or_insert_with(|| MapCursor::new(root));
            let step = match cursor.next(reader).await {
                Ok(Some(step)) => step,
                Ok(None) => {
                    build.parent = None;
                    return Ok(None);
                }
                Err(e) if e.is_damage() => {
                    // The rest of the parent can't be used; the volume is read and looked up without it.
                    tracing::warn!(volume, reason = %e, "the parent's map is damaged from here on");
                    build.parent = None;
                    return Ok(None);
                }
                Err(e) => return Err(e.into()),
            };
            let visited = cursor.take_visited();
            let gone = self.missing(visited.iter().map(|r| r.place.pack).collect()).await?;
            let mut writer = self.metadata.lock().await;
            for reference in visited.into_iter().filter(|r| !gone.contains(&r.place.pack)) {
                writer.note(reference);
            }
            drop(writer);
            let end = match &step {
                Step::Hole { offset, len } => offset + len,
                Step::Leaf { offset, leaf, .. } => offset + leaf.len(),
            };
            build.sent_to = end;
            match step {
                // An earlier attempt already reported on this range.
                _ if end <= build.resumed_at => {}
                Step::Hole { offset, len } => {
                    build.sent_holes.insert(offset, len);
                    return Ok(Some(wire::ParentRange { offset, length: len, extents: Vec::new() }));
                }
                Step::Leaf { offset, reference, leaf } => {
                    if !self.is_whole(&reference, &leaf).await? {
                        continue;
                    }
                    let range = range_of(offset, &leaf, reader, detail).await?;
                    build.sent.insert(offset, (reference, leaf));
                    return Ok(Some(range));
                }
            }
        }
    }

    /// A random leaf of a volume's parent, with the digests of its pages; `None` if no leaf can be sent.
    ///
    /// # Errors
    /// [`BackupError`] when the parent's map can't be read.
    pub async fn sample_parent(
        &self,
        volume: &str,
        attempt: u32,
        reader: &MetadataReader<'_>,
    ) -> Result<Option<wire::ParentRange>, BackupError> {
        let Some(build) = self.build_of(volume) else { return Ok(None) };
        let root = {
            let build = build.lock().await;
            build.origin().filter(|root| build.attempt == attempt && root.len > 0)
        };
        let Some(root) = root else { return Ok(None) };
        // Looks for a place with data: a hole says nothing about a list.
        let mut found = Ok(None);
        let mut somewhere = 0;
        for _ in 0..DRAWS {
            somewhere = u64::from_le_bytes(entropy()) % root.len;
            found = MapCursor::starting_at(root, somewhere).next(reader).await;
            if !matches!(found, Ok(Some(Step::Hole { .. }))) {
                break;
            }
        }
        match found {
            Ok(Some(Step::Leaf { offset, reference, leaf })) if self.is_whole(&reference, &leaf).await? => {
                Ok(Some(range_of(offset, &leaf, reader, Detail::Pages).await?))
            }
            Ok(Some(Step::Hole { offset, len })) => {
                // A hole may be terabytes long: only one region's worth around the place is sent.
                let from = offset.max(somewhere - somewhere % REGION_BYTES);
                let length = REGION_BYTES.min(offset + len - from);
                Ok(Some(wire::ParentRange { offset: from, length, extents: Vec::new() }))
            }
            Ok(_) => Ok(None),
            Err(e) if e.is_damage() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether all packs that a leaf names are still there, also those of page digests.
    async fn is_whole(&self, reference: &MapRef, leaf: &Leaf) -> Result<bool, BackupError> {
        let packs: HashSet<PackId> = leaf.needs().chain([reference.place.pack]).collect();
        Ok(self.missing(packs).await?.is_empty())
    }

    /// Decides whether this attempt reads a volume by its changed-block list. If so, this is recorded before anything is read, so
    /// that the point never passes for one that was read in full.
    ///
    /// # Errors
    /// [`BackupError::Journal`].
    pub(super) async fn begin_by_list(
        &self,
        volume: &str,
        source: &SourceSpec,
        full_every: u32,
        attempt: u32,
        resume_at: u64,
    ) -> Result<bool, BackupError> {
        let Some(build) = self.build_of(volume) else { return Ok(false) };
        let mut build = build.lock().await;
        let most = if full_every == 0 { FULL_EVERY } else { full_every };
        let due = build.lists_before.saturating_add(1) >= most;
        // Only the first attempt: the list lies on its node, and another node may have an older list, or none.
        let first = attempt == 1 && resume_at == 0;
        let usable = source.changed_from.is_some() && !source.stream && build.has_parent();
        let by_list = first && usable && !due && !build.left_out_before;
        if usable && build.left_out_before {
            tracing::warn!(volume, "its list of changes is not used: the point before left out what was free");
        }
        if source.changed_from.is_some() && due {
            tracing::info!(
                volume,
                points = build.lists_before,
                "it is time for a full read, whatever the list of changes says"
            );
        }
        if resume_at == 0 {
            build.by_list = false;
        }
        if !by_list {
            return Ok(false);
        }
        build.by_list = true;
        let name = build.name.clone();
        drop(build);
        self.write_down(Record::ByList { volume: name }).await?;
        Ok(true)
    }

    /// Records that an agent will leave out free space, before the volume is assigned to it. So the point never passes for a
    /// complete one, whatever becomes of the attempt.
    ///
    /// # Errors
    /// [`BackupError::Journal`].
    pub(super) async fn begin_leaving_out(&self, volume: &str) -> Result<(), BackupError> {
        let Some(build) = self.build_of(volume) else { return Ok(()) };
        let mut build = build.lock().await;
        build.leaves_out = true;
        let name = build.name.clone();
        drop(build);
        self.write_down(Record::LeavesOut { volume: name }).await
    }

    /// Reads the parent's maps.
    pub fn parent_reader(&self) -> MetadataReader<'_> {
        let reader = self.repository.reader_of(&self.domain, self.parent_packs.clone());
        reader.sharing(self.parent_keys.clone())
    }
}

/// A leaf in the form that is sent to an agent.
async fn range_of(
    offset: u64,
    leaf: &Leaf,
    reader: &MetadataReader<'_>,
    detail: Detail,
) -> Result<wire::ParentRange, BackupError> {
    let fragmented = fragmented(leaf);
    if detail == Detail::Outline {
        return Ok(wire::ParentRange { offset, length: leaf.len(), extents: outline(leaf, &fragmented) });
    }
    let mut lists = Lists::default();
    if detail == Detail::Pages {
        read_lists(leaf, reader, &mut lists).await?;
    }
    let extents = leaf.extents().map(|e| match e {
        Extent::Hole { len } => wire::Extent { length: len, ..Default::default() },
        Extent::Data { len, chunk_offset, id, place, .. } => wire::Extent {
            length: len,
            chunk: id.as_bytes().to_vec().into(),
            chunk_offset,
            chunk_length: place.plain_len,
            pages: digests_of(&e, &lists).unwrap_or_default().as_flattened().to_vec().into(),
            retire: fragmented.contains(&id),
            kept: false,
        },
    });
    Ok(wire::ParentRange { offset, length: leaf.len(), extents: extents.collect() })
}
