//! The end of a run: manifests, index, and the commit.

use std::sync::Arc;

use milkrun_proto::control::v1 as control;
use milkrun_repository::chunk::Piece;
use milkrun_repository::clock::Moment;
use milkrun_repository::index::PackInfo;
use milkrun_repository::point::RootBody;
use milkrun_repository::point::commit::{Commit, CommitError, Committed};
use milkrun_repository::point::root::{ManifestEntry, MapId};
use milkrun_repository::repository::OpenPoint;
use milkrun_repository::volume_map::{Child, Extent, LeafBuilder, MapBuilder, MapCursor, MapRef, MapRoot, Step};
use tokio::sync::mpsc;

use super::order::Order;
use super::sets::note_incomplete;
use super::volume::Finished;
use super::{BackupError, Run, lock};
use crate::points::volume;
use crate::runs::RunEvent;
use crate::skipped::to_wire;

/// Bytes of manifests that one leaf covers.
const MANIFEST_LEAF: usize = 16 << 20;

/// Commits the run once all volumes are done: manifests, index, and the commit itself.
pub(super) async fn commit(
    order: &Order,
    run: &Arc<Run>,
    parent: Option<&OpenPoint>,
    began: tokio::time::Instant,
    inbox: &mut mpsc::UnboundedReceiver<RunEvent>,
) -> Result<control::BackupDone, BackupError> {
    let finished = finished_volumes(order, run).await?;
    let mut maps: Vec<MapRoot> = finished.iter().map(|f| f.map).collect();
    let mut manifests = None;
    if order.manifest_objects > 0 {
        if let Some(parent) = parent {
            run.know_manifests(parent).await?;
        }
        let map = run.put_manifests(&order.manifests).await?;
        let id = MapId { len: map.len, level: map.level, chunk: map.chunk.map(|c| c.id) };
        manifests = Some(ManifestEntry { objects: order.manifest_objects, map: id });
        maps.push(map);
    }
    run.close_metadata().await?;
    run.write_segment(true).await?;
    let repository = &run.repository;
    repository.lock_config(run.locks).await?;
    while let Ok(event) = inbox.try_recv() {
        if matches!(event, RunEvent::Cancel) {
            return Err(BackupError::Cancelled);
        }
    }
    repository.still_there(&run.began_in).await?;
    let period = order.lock_for.unwrap_or(repository.config.lock.period);
    repository.keys_still_there(&run.domain, period).await?;
    let (stored, reused) = run.receipts()?;
    let packs_reused = reused.len() as u64;
    let body = RootBody {
        application: order.application.clone(),
        namespace_uid: order.namespace_uid.clone(),
        host: order.host.clone(),
        writer: format!("milkrun {}", env!("CARGO_PKG_VERSION")),
        parent: parent.map(|p| p.found.root.id()),
        duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        stored_bytes: run.stored_bytes(),
        lock_ms: order.lock_for.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
        skipped: order.skipped.clone(),
        volumes: finished.iter().map(|f| f.entry.clone()).collect(),
        manifests,
    };
    let moments_differ = body.moments_differ();
    let committed: Committed = Commit {
        store: &*repository.store,
        config: &repository.config,
        ring: &repository.ring,
        domain: &run.domain,
        root: run.root,
        body,
        maps: maps.iter().map(|m| m.chunk.map(|c| c.place)).collect(),
        locks: run.locks,
        stored,
        reused,
    }
    .run()
    .await?;
    run.grew(usize::try_from(committed.stored_bytes).unwrap_or(usize::MAX));
    show_committed(order, run, &committed);
    Ok(control::BackupDone {
        point: run.root.id().to_string(),
        moment_ms: run.root.moment.millis(),
        lock_until_ms: run.root.lock_until.map_or(0, Moment::millis),
        duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        stored_bytes: run.stored_bytes(),
        volumes: finished.iter().map(result).collect(),
        manifest_objects: order.manifest_objects,
        packs_reused,
        locks_extended: committed.locks_extended,
        moments_differ,
        skipped: order.skipped.iter().map(to_wire).collect(),
    })
}

/// The volumes of the order, whose maps are complete.
async fn finished_volumes(order: &Order, run: &Run) -> Result<Vec<Finished>, BackupError> {
    let mut finished: Vec<Finished> = Vec::new();
    for source in &order.sources {
        if let Some(build) = run.build_of(source.name.as_str()) {
            finished.extend(build.lock().await.finished.clone());
        }
    }
    if let Some(empty) = finished.iter().find(|f| f.map.len == 0 && !order.allow_empty) {
        return Err(BackupError::Empty(empty.entry.name.clone()));
    }
    note_incomplete(&mut finished.iter_mut().map(|f| &mut f.entry).collect::<Vec<_>>());
    Ok(finished)
}

/// Shows a committed run in metrics and logs.
fn show_committed(order: &Order, run: &Run, committed: &Committed) {
    metrics::counter!("milkrun_lock_extensions_total").increment(committed.locks_extended);
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970")]
    let now = Moment::now().seconds() as f64;
    metrics::gauge!("milkrun_last_success_timestamp_seconds", "application" => order.application.to_string(), "repository" => run.repository_name.clone())
        .set(now);
    tracing::info!(run = %run.root.run, point = %run.root.id(), application = %order.application, "committed");
}

fn result(f: &Finished) -> control::VolumeResult {
    control::VolumeResult { read_bytes: f.read_bytes, ..volume(&f.entry) }
}

impl Run {
    /// Learns where the parent has its manifests, so that unchanged parts are referenced and not stored again.
    async fn know_manifests(&self, parent: &OpenPoint) -> Result<(), BackupError> {
        let Some((i, entry)) = parent.manifests() else { return Ok(()) };
        let reader = self.parent_reader();
        let mut cursor = MapCursor::new(parent.map(i, &entry.map));
        loop {
            let leaf = match cursor.next(&reader).await {
                Ok(Some(Step::Leaf { leaf, .. })) => leaf,
                Ok(Some(Step::Hole { .. })) => continue,
                Ok(None) => return Ok(()),
                Err(e) if e.is_damage() => {
                    tracing::warn!(reason = %e, "the parent's manifests are damaged from here on; they are stored anew");
                    return Ok(());
                }
                Err(e) => return Err(e.into()),
            };
            let known: Vec<MapRef> = cursor.take_visited().into_iter().chain(leaf.chunks().iter().copied()).collect();
            let gone = self.missing(known.iter().map(|r| r.place.pack).collect()).await?;
            let mut writer = self.metadata.lock().await;
            known.into_iter().filter(|r| !gone.contains(&r.place.pack)).for_each(|r| writer.note(r));
        }
    }

    /// Stores the manifests as a stream in metadata packs.
    async fn put_manifests(self: &Arc<Self>, bytes: &[u8]) -> Result<MapRoot, BackupError> {
        let cutter = self.repository.config.streams;
        let seed = self.domain.chunks().cut_seed();
        let mut pieces = Vec::new();
        cutter.cut(seed, bytes, true, &mut pieces);
        let mut builder = MapBuilder::new();
        let mut put = |bytes: Vec<u8>| async move { self.put_metadata(bytes).await };
        let mut leaf = LeafBuilder::default();
        for piece in pieces {
            let Piece::Data { offset, len } = piece else { continue };
            if leaf.so_far().len() as usize + len > MANIFEST_LEAF {
                let full = std::mem::take(&mut leaf).finish();
                let chunk = Some(self.put_metadata(full.encode()).await?);
                builder.push(Child { len: full.len(), chunk }, &mut put).await?;
            }
            let text = self.preparer.manifests(bytes[offset..offset + len].to_vec()).map_err(BackupError::Setup)?;
            let reference = self.put_prepared(&text).await?;
            let place = reference.place;
            let (len, id) = (place.plain_len, reference.id);
            leaf.push(Extent::Data { len, chunk_offset: 0, id, place, pages: None });
        }
        let leaf = leaf.finish();
        if !leaf.is_empty() {
            let chunk = Some(self.put_metadata(leaf.encode()).await?);
            builder.push(Child { len: leaf.len(), chunk }, &mut put).await?;
        }
        builder.finish(&mut put).await
    }

    /// Receipts of the packs that this run stored and its maps name, and the older packs that the maps reuse.
    fn receipts(&self) -> Result<(Vec<milkrun_repository::point::StoredPack>, Vec<PackInfo>), BackupError> {
        let referenced = lock(&self.referenced).clone();
        let stored = std::mem::take(&mut *lock(&self.stored));
        let index = lock(&self.index);
        let mut reused = Vec::new();
        for id in referenced.iter().filter(|id| !stored.contains_key(*id)) {
            reused.push(index.pack(id).cloned().ok_or(CommitError::Unknown(*id))?);
        }
        let stored = stored.into_iter().filter(|(id, _)| referenced.contains(id)).map(|(_, s)| s).collect();
        Ok((stored, reused))
    }
}
