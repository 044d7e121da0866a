//! Builds the map of one volume as its regions come in. They are taken in order, each extent is checked, and its chunk's place is
//! found. Several groups of regions are made into leaves side by side, and added to the map in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use milkrun_proto::agent::v1 as wire;
use milkrun_repository::chunk::PAGE;
use milkrun_repository::clock::Moment;
use milkrun_repository::config::REGION_BYTES;
use milkrun_repository::id::{ChunkId, PackId, VolumeName};
use milkrun_repository::pack::Place;
use milkrun_repository::point::journal::{self, Record};
use milkrun_repository::point::root::{FREE_LEFT_OUT, FileSystem, Layout, MapId, VolumeEntry, VolumeKind};
use milkrun_repository::repository::OpenPoint;
use milkrun_repository::volume_map::{Child, Extent, LEAF_BYTES_MAX, Leaf, MapBuilder, MapCursor, MapRef, MapRoot};

use super::map_part::MapPart;
use super::pages::{lists_max, sent};
use super::parent_region::{ParentRegion, Placed};
use super::restore_cost::RestoreCost;
use super::{BackupError, Run, joined, lock};
use crate::assignment::RefusedCall;
use crate::inventory::SourceSpec;
use crate::journal::Journal;
use crate::one_line::one_line;

/// The most notes of a volume.
const NOTES_MAX: usize = 64;
const NOTE_MAX: usize = 256;
/// The most characters of a file system's kind, and of its label: btrfs has the longest.
const FILE_SYSTEM_TEXT_MAX: usize = 256;

/// How many extents a region may have beyond one for each page: the last extent of a stream may be short.
const EXTENTS_SPARE: u64 = 16;

/// How many leaves of a volume one task makes, one after the other, and how many such tasks run side by side.
const GROUP: usize = 4;
const GROUPS_AT_ONCE: usize = 8;

/// A record of the journal is closed once it has this many extents; the last group may exceed it.
const RUNS_NOTED: usize = 16 * 1024;

/// No volume is larger: 128 TiB.
const VOLUME_BYTES_MAX: u64 = 1 << 47;

/// The state of a volume while it is backed up.
pub(super) struct VolumeBuild {
    pub(super) name: VolumeName,
    pub(super) kind: VolumeKind,
    builder: MapBuilder,
    next: u64,
    hole_bytes: u64,
    effort: RestoreCost,
    /// How many points in a row, up to the parent, were read by changed-block lists.
    pub(super) lists_before: u32,
    /// The parent left out free space: its holes can't be used to check a changed-block list.
    pub(super) left_out_before: bool,
    /// An attempt was told to leave out free space.
    pub(super) leaves_out: bool,
    /// At least a part of this point's volume was read by a changed-block list.
    pub(super) by_list: bool,
    /// The attempt whose calls count.
    pub(super) attempt: u32,
    /// The offset from which that attempt went on.
    pub(super) resumed_at: u64,
    /// The parent's map.
    origin: Option<MapRoot>,
    /// The parent's map, until it is handed out.
    pub(super) parent: Option<MapRoot>,
    pub(super) cursor: Option<MapCursor>,
    /// The end of the parent's ranges that the agent was sent.
    pub(super) told_to: u64,
    /// The parent's holes that the agent was sent and has not reported on: offset and length.
    pub(super) told_holes: BTreeMap<u64, u64>,
    /// The parent's leaves that the agent was sent and has not reported on.
    pub(super) told: BTreeMap<u64, (MapRef, Leaf)>,
    pub(super) finished: Option<Finished>,
    facts: Facts,
}

/// The parent's record of a volume.
pub(super) struct Before {
    pub(super) map: MapRoot,
    /// How many points in a row were read by changed-block lists.
    pub(super) by_lists: u32,
    /// Whether free space was left out.
    pub(super) left_out: bool,
}

/// Facts about a volume from the order, for the root.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// When its snapshot was taken.
    pub(super) moment: Moment,
    /// Facts of its claim, in JSON.
    pub(super) claim: String,
}

/// The file system of a volume as an agent reports it. It is recorded in the root.
fn file_system(done: &wire::FinishRequest) -> FileSystem {
    let text = |text: &str| one_line(text, FILE_SYSTEM_TEXT_MAX);
    FileSystem { kind: text(&done.file_system), label: text(&done.file_system_label) }
}

/// A volume whose map is complete.
#[derive(Clone)]
pub(super) struct Finished {
    pub(super) entry: VolumeEntry,
    pub(super) read_bytes: u64,
    pub(super) map: MapRoot,
}

/// What is done for a region.
enum Planned {
    /// There is nothing to make.
    MapPart(MapPart),
    /// A new leaf is made of it, together with the leaves that the parent has there.
    Changed { region: wire::Region, before: Vec<(u64, Leaf)> },
}

impl VolumeBuild {
    /// For a source of a run that began at this time. The parent is used if it has this volume.
    pub(super) fn of(source: &SourceSpec, began: Moment, parent: Option<&OpenPoint>) -> Self {
        let kind = if source.stream { VolumeKind::Stream } else { VolumeKind::Image };
        // Only images have a parent: the bytes of a stream shift.
        let before = parent.and_then(|p| {
            let i = p.body.volumes.iter().position(|v| v.name == source.name && v.kind == kind && !source.stream)?;
            let volume = &p.body.volumes[i];
            let left_out = volume.notes.iter().any(|n| n.starts_with(FREE_LEFT_OUT));
            Some(Before { map: p.map(i, &volume.map), by_lists: volume.layout.by_lists, left_out })
        });
        let facts = Facts { moment: source.moment.unwrap_or(began), claim: source.claim.clone() };
        Self::new(source.name.clone(), kind, facts, before)
    }

    fn new(name: VolumeName, kind: VolumeKind, facts: Facts, before: Option<Before>) -> Self {
        let lists_before = before.as_ref().map_or(0, |p| p.by_lists);
        let left_out_before = before.as_ref().is_some_and(|p| p.left_out);
        let parent = before.map(|p| p.map);
        Self {
            name,
            kind,
            facts,
            builder: MapBuilder::new(),
            next: 0,
            hole_bytes: 0,
            effort: RestoreCost::default(),
            lists_before,
            left_out_before,
            leaves_out: false,
            by_list: false,
            attempt: 0,
            resumed_at: 0,
            origin: parent,
            parent,
            cursor: None,
            told_to: 0,
            told_holes: BTreeMap::new(),
            told: BTreeMap::new(),
            finished: None,
        }
    }

    /// Another attempt goes on from the last checkpoint; its agent is sent the parent from the beginning.
    pub(super) fn begin_attempt(&mut self, attempt: u32) -> u64 {
        self.attempt = attempt;
        self.resumed_at = self.next;
        self.parent = self.origin;
        self.cursor = None;
        self.told_to = 0;
        self.told_holes.clear();
        self.told.clear();
        self.next
    }

    /// The parent's map.
    pub(super) fn origin(&self) -> Option<MapRoot> {
        self.origin
    }

    /// Decides what is done for the next region, whose order was checked. Leaves and holes of the parent before its end are
    /// dropped.
    ///
    /// # Errors
    /// What is wrong with it.
    fn plan(&mut self, region: wire::Region) -> Result<Planned, &'static str> {
        let end = region.offset + region.length;
        let later = self.told.split_off(&end);
        let mut told = std::mem::replace(&mut self.told, later).split_off(&region.offset);
        let hole = region.extents.is_empty();
        let plan = if region.unchanged {
            if told.get(&region.offset).is_some_and(|(_, leaf)| leaf.len() == region.length)
                && let Some((reference, leaf)) = told.remove(&region.offset)
            {
                let needs = needs(&leaf, &reference);
                Planned::MapPart(MapPart::Leaf { offset: region.offset, reference, leaf, needs, unchanged: true })
            } else {
                // An unchanged hole has no leaf. A region counts as unchanged only if the parent was seen to have it, whoever
                // reports it: an agent, or a journal from before the parent was damaged.
                let before = self.told_holes.range(..=region.offset).next_back();
                if !hole || before.is_none_or(|(at, len)| at + len < end) {
                    return Err("an unchanged region that the parent does not have");
                }
                Planned::MapPart(MapPart::Hole { offset: region.offset })
            }
        } else if hole {
            Planned::MapPart(MapPart::Hole { offset: region.offset })
        } else {
            Planned::Changed { region, before: told.into_iter().map(|(at, (_, leaf))| (at, leaf)).collect() }
        };
        self.told_holes.retain(|at, len| *at + *len > end);
        Ok(plan)
    }

    /// Whether the parent can predict anything.
    pub(super) fn has_parent(&self) -> bool {
        self.origin.is_some()
    }
}

impl Run {
    /// Takes finished regions of a volume, in order. When this returns, another leader would go on after them.
    ///
    /// # Errors
    /// [`BackupError::Nonsense`] for regions out of order, or for extents of unknown chunks.
    pub async fn checkpoint(
        self: &Arc<Self>,
        volume: &str,
        attempt: u32,
        regions: Vec<wire::Region>,
    ) -> Result<(), BackupError> {
        let result = self.take_regions(volume, attempt, regions, self.journal.as_ref()).await;
        // Also when the call fails half-way: the next attempt goes on after the regions that were taken.
        self.write_journal().await?;
        result
    }

    /// Adds a record to the run's journal, if it has one. When this returns, another leader would find the record.
    ///
    /// # Errors
    /// [`BackupError::Journal`].
    pub(super) async fn write_down(&self, record: Record) -> Result<(), BackupError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        journal.note(record);
        self.write_journal().await
    }

    /// Waits until all records that were noted are in the journal.
    ///
    /// # Errors
    /// [`BackupError::Journal`].
    pub(super) async fn write_journal(&self) -> Result<(), BackupError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        self.granted_unwritten.store(0, Ordering::Relaxed);
        Ok(journal.write().await?)
    }

    /// As [`Self::checkpoint`], but only in memory. Regions are noted in the journal at once, before later ones can be taken: so
    /// whatever fails afterwards, the journal has no gap, and nothing is out of order.
    pub(super) async fn take_regions(
        self: &Arc<Self>,
        volume: &str,
        attempt: u32,
        regions: Vec<wire::Region>,
        journal: Option<&Journal>,
    ) -> Result<(), BackupError> {
        let Some(build) = self.build_of(volume) else { return Ok(()) };
        let mut build = build.lock().await;
        if build.attempt != attempt {
            // The volume was assigned again while this call waited.
            return Err(RefusedCall::Stale.into());
        }
        let nonsense = |what| BackupError::Nonsense { volume: volume.to_owned(), what };
        let mut next = build.next;
        let mut planned = Vec::with_capacity(regions.len());
        for region in regions {
            if region.offset != next || region.length == 0 || build.finished.is_some() {
                return Err(nonsense("a region out of order"));
            }
            let end = region.offset.checked_add(region.length).filter(|&end| end <= VOLUME_BYTES_MAX);
            next = end.ok_or_else(|| nonsense("a region behind any volume's end"))?;
            planned.push((next, build.plan(region).map_err(nonsense)?));
        }
        let volume: Arc<str> = volume.into();
        let mut planned = planned.into_iter();
        let mut making = FuturesOrdered::new();
        let mut result = Ok(());
        let mut taken = Vec::new();
        let mut runs = 0;
        loop {
            while result.is_ok() && making.len() < GROUPS_AT_ONCE {
                let group: Vec<(u64, Planned)> = planned.by_ref().take(GROUP).collect();
                if group.is_empty() {
                    break;
                }
                let (run, volume) = (self.clone(), volume.clone());
                making.push_back(joined(tokio::spawn(async move { run.make(&volume, group).await })));
            }
            // Tasks that have begun always run to their end: a task that makes a leaf may have a full pack with the leaves of
            // others.
            let group = making.next().await;
            if let Some(journal) = journal.filter(|_| runs >= RUNS_NOTED || (group.is_none() && !taken.is_empty())) {
                runs = 0;
                journal.note(Record::Regions { volume: build.name.clone(), regions: std::mem::take(&mut taken) });
            }
            let Some(group) = group else { return result };
            let (made, failed) = group.unwrap_or_else(|e| (Vec::new(), Err(e)));
            for (end, made) in made {
                if result.is_ok() {
                    let noted = journal.is_some().then(|| made.noted(end));
                    let before = build.next;
                    result = self.add(&mut build, made, end).await;
                    // A long hole may have been added in part.
                    let len = build.next - before;
                    if let Some(region) = noted.filter(|_| len > 0) {
                        runs += region.runs.len();
                        taken.push(journal::Region { len, ..region });
                    }
                }
            }
            result = result.and(failed);
        }
    }

    /// Makes the planned parts, in order, up to the first one that fails.
    async fn make(&self, volume: &str, group: Vec<(u64, Planned)>) -> (Vec<(u64, MapPart)>, Result<(), BackupError>) {
        let mut all = Vec::with_capacity(group.len());
        for (end, plan) in group {
            let made = match plan {
                Planned::MapPart(made) => Ok(made),
                Planned::Changed { region, before } => self.make_leaf(volume, &region, ParentRegion::of(before)).await,
            };
            match made {
                Ok(made) => all.push((end, made)),
                Err(e) => return (all, Err(e)),
            }
        }
        (all, Ok(()))
    }

    async fn make_leaf(&self, volume: &str, region: &wire::Region, told: ParentRegion) -> Result<MapPart, BackupError> {
        let nonsense = |what| BackupError::Nonsense { volume: volume.to_owned(), what };
        let placed = self.place(&told, region, nonsense)?;
        let leaf = self.keep_pages(placed, lists_max(region.offset)).await?;
        if leaf.is_hole() {
            return Ok(MapPart::Hole { offset: region.offset });
        }
        let reference = self.put_metadata(leaf.encode()).await?;
        let needs = needs(&leaf, &reference);
        Ok(MapPart::Leaf { offset: region.offset, reference, leaf, needs, unchanged: false })
    }

    /// Adds the next part, up to `end`, to the map. If that fails, `build.next` says where the map ends.
    async fn add(&self, build: &mut VolumeBuild, made: MapPart, end: u64) -> Result<(), BackupError> {
        let mut put = |bytes: Vec<u8>| async move { self.put_metadata(bytes).await };
        match made {
            MapPart::Leaf { offset, reference, leaf, needs, .. } => {
                lock(&self.referenced).extend(needs);
                let child = Child { len: end - offset, chunk: Some(reference) };
                build.builder.push(child, &mut put).await?;
                build.next = end;
                build.hole_bytes += hole_bytes(&leaf);
                build.effort.add(&leaf).await?;
            }
            MapPart::Hole { .. } => {
                build.effort.hole().await?;
                while build.next < end {
                    let len = (end - build.next).min(REGION_BYTES);
                    build.builder.push(Child { len, chunk: None }, &mut put).await?;
                    build.next += len;
                    build.hole_bytes += len;
                    if (end - build.next).is_multiple_of(REGION_BYTES << 10) {
                        // A long hole must not block the thread.
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
        Ok(())
    }

    /// Finds the place of every extent's chunk. Invariant 10: only chunks that are known or were sealed.
    fn place<'r>(
        &self,
        told: &ParentRegion,
        region: &'r wire::Region,
        nonsense: impl Fn(&'static str) -> BackupError,
    ) -> Result<Placed<'r>, BackupError> {
        if region.length > LEAF_BYTES_MAX {
            return Err(nonsense("a region longer than a leaf"));
        }
        // Extents are at least single pages: nobody makes smaller ones.
        if region.extents.len() as u64 > region.length / PAGE as u64 + EXTENTS_SPARE {
            return Err(nonsense("more extents than pages"));
        }
        // A part that is kept has as many extents as the parent has there.
        let mut placed = Placed::with_capacity(region.extents.len() + told.len());
        let mut at = region.offset;
        for e in &region.extents {
            if e.length == 0 {
                return Err(nonsense("an empty extent"));
            }
            let here = at..at + u64::from(e.length);
            at = here.end;
            if e.kept {
                told.keep(here, &mut placed).map_err(&nonsense)?;
                continue;
            }
            let pages = sent(e).map_err(&nonsense)?;
            if e.chunk.is_empty() {
                placed.push(Extent::Hole { len: e.length }, None);
                continue;
            }
            let id = ChunkId::try_from(&e.chunk[..]).map_err(|_| nonsense("a chunk id of another length"))?;
            let place = self.place_of(&id, told).ok_or_else(|| nonsense("a chunk that nobody knows"))?;
            let end = e.chunk_offset.checked_add(e.length);
            if place.plain_len != e.chunk_length || end.is_none_or(|end| end > place.plain_len) {
                return Err(nonsense("an extent outside of its chunk"));
            }
            let kept = if pages.is_some() { None } else { told.pages(&id, e.chunk_offset, e.length) };
            let extent = Extent::Data { len: e.length, chunk_offset: e.chunk_offset, id, place, pages: kept };
            placed.push(extent, pages);
        }
        // Kept parts lie on pages too: together they are no more than the region's pages.
        if placed.fresh.len() as u64 > region.length / PAGE as u64 + EXTENTS_SPARE {
            return Err(nonsense("more extents than pages"));
        }
        if placed.leaf.so_far().len() != region.length {
            return Err(nonsense("extents that do not fill their region"));
        }
        Ok(placed)
    }

    /// The place of a chunk: the parent's at the same place, or else any that was stored. The parent's comes first: it was checked
    /// before it was sent to the agent, while a chunk that was sealed since may come from a compromised agent.
    fn place_of(&self, id: &ChunkId, told: &ParentRegion) -> Option<Place> {
        told.place(id).or_else(|| lock(&self.index).find(id))
    }

    /// All regions were taken: completes the map.
    ///
    /// # Errors
    /// [`BackupError::Nonsense`] when they do not fill the volume.
    pub async fn finish(&self, volume: &str, done: wire::FinishRequest) -> Result<(), BackupError> {
        let noted = volume.parse().map(|volume| journal::Finished {
            volume,
            len: done.length,
            sector_bytes: done.sector_bytes,
            read_bytes: done.read_bytes,
            new_bytes: done.new_bytes,
            stored_bytes: done.stored_bytes,
            notes: done.notes.clone(),
            file_system: file_system(&done),
        });
        self.take_finish(volume, done).await?;
        match noted {
            Ok(finished) => self.write_down(Record::Finished(finished)).await,
            Err(_) => Ok(()),
        }
    }

    /// As [`Self::finish`], but only in memory.
    pub(super) async fn take_finish(&self, volume: &str, done: wire::FinishRequest) -> Result<(), BackupError> {
        let Some(build) = self.build_of(volume) else { return Ok(()) };
        let mut build = build.lock().await;
        if done.assignment.as_ref().is_none_or(|a| a.attempt != build.attempt) {
            return Err(RefusedCall::Stale.into());
        }
        if build.finished.as_ref().is_some_and(|f| f.entry.map.len == done.length) {
            // The volume was done before, and its agent did not get the answer.
            return Ok(());
        }
        if done.length != build.next || build.finished.is_some() {
            let what = "regions that do not fill the volume";
            return Err(BackupError::Nonsense { volume: volume.to_owned(), what });
        }
        let mut put = |bytes: Vec<u8>| async move { self.put_metadata(bytes).await };
        let map = build.builder.finish(&mut put).await?;
        if map.len != done.length {
            let what = "a map that does not fill the volume";
            return Err(BackupError::Nonsense { volume: volume.to_owned(), what });
        }
        // An agent that found its list wrong read everything, unless it went on from a checkpoint.
        build.by_list &= done.by_list || build.resumed_at > 0;
        let by_lists = if build.by_list { build.lists_before.saturating_add(1) } else { 0 };
        let sampled_bytes = if build.by_list { done.sampled_bytes } else { 0 };
        let mut notes = done.notes.clone();
        // Notes are recorded in the root: a compromised agent could fill it with them.
        notes.truncate(NOTES_MAX);
        for note in &mut notes {
            *note = one_line(note, NOTE_MAX);
        }
        if build.leaves_out && build.resumed_at > 0 && !notes.iter().any(|n| n.starts_with(FREE_LEFT_OUT)) {
            // Regions that an earlier attempt handed over stay.
            notes.push(format!("{FREE_LEFT_OUT}perhaps, by an earlier attempt, as far as it came"));
        }
        // Some numbers are known only to the agent: they are limited to what is possible.
        let data = map.len.saturating_sub(build.hole_bytes);
        let (new_bytes, stored_bytes) = (done.new_bytes.min(data), done.stored_bytes.min(self.stored_bytes()));
        let read_bytes = done.read_bytes.min(map.len.saturating_add(sampled_bytes).saturating_mul(2));
        if let Some(listed) = self.size_of(volume).filter(|listed| map.len > *listed) {
            notes.push(format!("the inventory says {listed} bytes, and its agent says {}", map.len));
        }
        let layout = Layout { by_lists, sampled_bytes, ..std::mem::take(&mut build.effort).finish().await? };
        let entry = VolumeEntry {
            name: build.name.clone(),
            kind: build.kind,
            sector_bytes: done.sector_bytes,
            map: MapId { len: map.len, level: map.level, chunk: map.chunk.map(|c| c.id) },
            hole_bytes: build.hole_bytes,
            new_bytes,
            stored_bytes,
            notes,
            layout,
            moment: build.facts.moment,
            file_system: file_system(&done),
            claim: build.facts.claim.clone(),
        };
        build.finished = Some(Finished { entry, read_bytes, map });
        Ok(())
    }
}

/// All packs that a point keeps for a leaf.
fn needs(leaf: &Leaf, reference: &MapRef) -> Vec<PackId> {
    leaf.needs().chain([reference.place.pack]).collect()
}

fn hole_bytes(leaf: &Leaf) -> u64 {
    let holes = leaf.extents().filter(|e| matches!(e, Extent::Hole { .. }));
    holes.map(|e| u64::from(e.len())).sum()
}
