//! Replays the journal of a backup without transferring data, and makes the record that another leader starts from.

use std::collections::HashMap;
use std::sync::Arc;

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::id::{PointId, VolumeName};
use milkrun_repository::metadata::MetadataReader;
use milkrun_repository::point::Root;
use milkrun_repository::point::journal::{self, Record};

use super::order::Order;
use super::parent::Detail;
use super::quota::Quota;
use super::{BackupError, Run, lock};
use crate::inventory::SourceSpec;
use crate::journal::{Journal, Left};

/// A source, in the form of the journal.
pub(super) fn source(s: &SourceSpec) -> journal::Source {
    journal::Source {
        name: s.name.clone(),
        stream: s.stream,
        size: s.size.unwrap_or(0),
        moment: s.moment,
        claim: s.claim.clone(),
        reach: s.reach.iter().map(|r| (r.node.clone().unwrap_or_default(), r.path.clone())).collect(),
    }
}

/// All that another leader needs to start this run again.
pub(super) fn begin(order: &Order, root: &Root, parent: Option<PointId>, ordered_by: String) -> Record {
    Record::Begin(journal::Begin {
        application: order.application.clone(),
        namespace_uid: order.namespace_uid.clone(),
        domain: root.domain,
        class: root.class,
        lock_ms: order.lock_for.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
        parent,
        level: order.level,
        adapt_level: order.adapt_level,
        whole_chunks: order.whole_chunks,
        allow_mounted: order.allow_mounted,
        allow_changing: order.allow_changing,
        allow_empty: order.allow_empty,
        open: order.open,
        ordered_by,
        host: order.host.clone(),
        sources: order.sources.iter().map(source).collect(),
        skipped: order.skipped.clone(),
        manifest_objects: order.manifest_objects,
        manifests: order.manifests.clone(),
    })
}

fn to_wire(r: journal::Region) -> wire::Region {
    let extent = |run: journal::Run| match run.chunk {
        None => wire::Extent { length: run.len, ..Default::default() },
        // The journal has no digests of pages: extents that are new here get them when they are next read.
        Some((id, chunk_offset, chunk_length)) => wire::Extent {
            length: run.len,
            chunk: id.as_bytes().to_vec().into(),
            chunk_offset,
            chunk_length,
            ..Default::default()
        },
    };
    let extents = r.runs.into_iter().map(extent).collect();
    wire::Region { offset: r.offset, length: r.len, unchanged: r.unchanged, extents }
}

impl Run {
    /// Replays a journal. Returns the volumes that are done.
    pub(super) async fn replay(self: &Arc<Self>, left: &Left) -> Result<Vec<String>, BackupError> {
        let mut finished = Vec::new();
        let mut readers = HashMap::new();
        for batch in left.batches() {
            for record in Journal::objects(&self.repository, &batch).await? {
                finished.extend(self.do_again(record, &mut readers).await?);
            }
        }
        // This take-over counts as well.
        lock(&self.quotas).values_mut().for_each(Quota::forgive);
        Ok(finished)
    }

    /// Replays one record. Returns the volume that it completes, if any.
    async fn do_again<'a>(
        self: &'a Arc<Self>,
        record: Record,
        readers: &mut HashMap<VolumeName, MetadataReader<'a>>,
    ) -> Result<Option<String>, BackupError> {
        match record {
            // The volumes of the order are there already.
            Record::Begin(_) | Record::Source(_) | Record::Complete(_) | Record::Ended => {}
            Record::TakeOver { .. } => lock(&self.quotas).values_mut().for_each(Quota::forgive),
            // Records of a restore are not part of a backup.
            Record::Restore(_) | Record::Reached { .. } | Record::Restored { .. } => {}
            Record::Sealed { pack, entries } => {
                // The store is not asked here: the commit checks each pack that the maps name.
                self.grew(usize::try_from(pack.length).unwrap_or(usize::MAX));
                let full = {
                    let mut index = lock(&self.index);
                    index.add(pack, entries);
                    index.fresh_len() >= super::packs::SEGMENT_ENTRIES
                };
                if full {
                    self.write_segment(false).await?;
                }
            }
            Record::Granted { node, volume, bytes } => {
                let mut quotas = lock(&self.quotas);
                let quota = quotas.entry(node).or_default();
                quota.add(volume.as_str(), self.size_of(volume.as_str()));
                quota.granted = quota.granted.saturating_add(bytes);
            }
            Record::ByList { volume } => {
                if let Some(build) = self.build_of(volume.as_str()) {
                    build.lock().await.by_list = true;
                }
            }
            Record::LeavesOut { volume } => {
                if let Some(build) = self.build_of(volume.as_str()) {
                    build.lock().await.leaves_out = true;
                }
            }
            Record::Regions { volume, regions } => {
                let reader = readers.entry(volume.clone()).or_insert_with(|| self.parent_reader());
                self.tell_until(&volume, regions.last().map_or(0, |r| r.offset + r.len), reader).await?;
                let regions = regions.into_iter().map(to_wire).collect();
                self.take_regions(volume.as_str(), 0, regions, None).await?;
            }
            Record::Finished(f) => {
                let volume = f.volume.to_string();
                let done = wire::FinishRequest {
                    assignment: Some(wire::Assignment { volume: volume.clone(), ..Default::default() }),
                    length: f.len,
                    sector_bytes: f.sector_bytes,
                    read_bytes: f.read_bytes,
                    new_bytes: f.new_bytes,
                    stored_bytes: f.stored_bytes,
                    notes: f.notes,
                    // An earlier record says whether it was.
                    by_list: true,
                    sampled_bytes: 0,
                    file_system: f.file_system.kind,
                    file_system_label: f.file_system.label,
                };
                self.take_finish(&volume, done).await?;
                return Ok(Some(volume));
            }
        }
        Ok(None)
    }

    /// Goes through the parent up to `until`, as if it were sent to an agent.
    async fn tell_until(
        &self,
        volume: &VolumeName,
        until: u64,
        reader: &MetadataReader<'_>,
    ) -> Result<(), BackupError> {
        loop {
            let told = match self.build_of(volume.as_str()) {
                Some(build) => build.lock().await.sent_to,
                None => return Ok(()),
            };
            if told >= until || self.next_parent(volume.as_str(), 0, reader, Detail::Outline).await?.is_none() {
                return Ok(());
            }
        }
    }
}
