//! The state of one volume while it is backed up: how far its map is, and what an agent was sent of the parent. It decides what is
//! done for the next region.

mod checkpoint;
mod extents;
mod finish;

use std::collections::BTreeMap;

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::clock::Moment;
use milkrun_repository::id::{PackId, VolumeName};
use milkrun_repository::point::root::{FREE_LEFT_OUT, VolumeEntry, VolumeKind};
use milkrun_repository::repository::OpenPoint;
use milkrun_repository::volume_map::{Leaf, MapBuilder, MapCursor, MapRef, MapRoot};

use super::map_part::MapPart;
use super::restore_cost::RestoreCost;
use crate::inventory::SourceSpec;

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
    pub(super) sent_to: u64,
    /// The parent's holes that the agent was sent and has not reported on: offset and length.
    pub(super) sent_holes: BTreeMap<u64, u64>,
    /// The parent's leaves that the agent was sent and has not reported on.
    pub(super) sent: BTreeMap<u64, (MapRef, Leaf)>,
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

/// A volume whose map is complete.
#[derive(Clone)]
pub(super) struct Finished {
    pub(super) entry: VolumeEntry,
    pub(super) read_bytes: u64,
    pub(super) map: MapRoot,
}

/// What is done for a region.
enum RegionPlan {
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
            sent_to: 0,
            sent_holes: BTreeMap::new(),
            sent: BTreeMap::new(),
            finished: None,
        }
    }

    /// Another attempt goes on from the last checkpoint; its agent is sent the parent from the beginning.
    pub(super) fn begin_attempt(&mut self, attempt: u32) -> u64 {
        self.attempt = attempt;
        self.resumed_at = self.next;
        self.parent = self.origin;
        self.cursor = None;
        self.sent_to = 0;
        self.sent_holes.clear();
        self.sent.clear();
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
    fn plan(&mut self, region: wire::Region) -> Result<RegionPlan, &'static str> {
        let end = region.offset + region.length;
        let later = self.sent.split_off(&end);
        let mut sent = std::mem::replace(&mut self.sent, later).split_off(&region.offset);
        let hole = region.extents.is_empty();
        let plan = if region.unchanged {
            if sent.get(&region.offset).is_some_and(|(_, leaf)| leaf.len() == region.length)
                && let Some((reference, leaf)) = sent.remove(&region.offset)
            {
                let needs = needs(&leaf, &reference);
                RegionPlan::MapPart(MapPart::Leaf { offset: region.offset, reference, leaf, needs, unchanged: true })
            } else {
                // An unchanged hole has no leaf. A region counts as unchanged only if the parent was seen to have it, whoever
                // reports it: an agent, or a journal from before the parent was damaged.
                let before = self.sent_holes.range(..=region.offset).next_back();
                if !hole || before.is_none_or(|(at, len)| at + len < end) {
                    return Err("an unchanged region that the parent does not have");
                }
                RegionPlan::MapPart(MapPart::Hole { offset: region.offset })
            }
        } else if hole {
            RegionPlan::MapPart(MapPart::Hole { offset: region.offset })
        } else {
            RegionPlan::Changed { region, before: sent.into_iter().map(|(at, (_, leaf))| (at, leaf)).collect() }
        };
        self.sent_holes.retain(|at, len| *at + *len > end);
        Ok(plan)
    }

    /// Whether the parent can predict anything.
    pub(super) fn has_parent(&self) -> bool {
        self.origin.is_some()
    }
}

/// All packs that a point keeps for a leaf.
fn needs(leaf: &Leaf, reference: &MapRef) -> Vec<PackId> {
    leaf.needs().chain([reference.place.pack]).collect()
}
