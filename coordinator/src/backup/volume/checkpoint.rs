//! Takes the regions of a volume that an agent has finished, and adds them to its map. Several groups of regions are made into
//! leaves side by side, and added in order.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use milkrun_proto::agent::v1 as wire;
use milkrun_repository::config::REGION_BYTES;
use milkrun_repository::point::journal::{self, Record};
use milkrun_repository::volume_map::{Child, Extent, Leaf};

use super::{RegionPlan, VolumeBuild, needs};
use crate::assignment::RefusedCall;
use crate::backup::map_part::MapPart;
use crate::backup::pages::lists_max;
use crate::backup::parent_region::ParentRegion;
use crate::backup::{BackupError, Run, joined, lock};
use crate::journal::Journal;

/// How many leaves of a volume one task makes, one after the other, and how many such tasks run side by side.
const GROUP: usize = 4;
const GROUPS_AT_ONCE: usize = 8;

/// A record of the journal is closed once it has this many extents; the last group may exceed it.
const EXTENTS_PER_RECORD: usize = 16 * 1024;

/// No volume is larger: 128 TiB.
const VOLUME_BYTES_MAX: u64 = 1 << 47;

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

    /// As [`Self::checkpoint`], but only in memory. Regions are noted in the journal at once, before later ones can be taken: so
    /// whatever fails afterwards, the journal has no gap, and nothing is out of order.
    pub(in crate::backup) async fn take_regions(
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
                let group: Vec<(u64, RegionPlan)> = planned.by_ref().take(GROUP).collect();
                if group.is_empty() {
                    break;
                }
                let (run, volume) = (self.clone(), volume.clone());
                making.push_back(joined(tokio::spawn(async move { run.make(&volume, group).await })));
            }
            // Tasks that have begun always run to their end: a task that makes a leaf may have a full pack with the leaves of
            // others.
            let group = making.next().await;
            if let Some(journal) =
                journal.filter(|_| runs >= EXTENTS_PER_RECORD || (group.is_none() && !taken.is_empty()))
            {
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
    async fn make(
        &self,
        volume: &str,
        group: Vec<(u64, RegionPlan)>,
    ) -> (Vec<(u64, MapPart)>, Result<(), BackupError>) {
        let mut all = Vec::with_capacity(group.len());
        for (end, plan) in group {
            let made = match plan {
                RegionPlan::MapPart(made) => Ok(made),
                RegionPlan::Changed { region, before } => {
                    self.make_leaf(volume, &region, ParentRegion::of(before)).await
                }
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
}

fn hole_bytes(leaf: &Leaf) -> u64 {
    let holes = leaf.extents().filter(|e| matches!(e, Extent::Hole { .. }));
    holes.map(|e| u64::from(e.len())).sum()
}
