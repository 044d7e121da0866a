//! A backup that is opened before its sources are known: they are added while it goes on. Each source is journalled before the
//! caller gets an answer. Adding a source twice changes nothing.

use std::sync::Arc;

use milkrun_repository::point::journal::{Complete, Record};
use milkrun_repository::repository::OpenPoint;

use super::order::Order;
use super::replay::source as journaled;
use super::volume::VolumeBuild;
use super::{BackupError, Run};
use crate::inventory::SourceSpec;
use crate::volume_assignments::VolumeAssignments;

/// Whether a source is new; `Err`: why it can't be added.
fn is_new(order: &Order, source: &SourceSpec) -> Result<bool, String> {
    match order.source(source.name.as_str()) {
        Some(same) if is_same(same, source) => Ok(false),
        Some(_) => Err(format!("the run has a source {} already, which is another", source.name)),
        None if order.complete => Err(format!("the run is complete: {} comes too late", source.name)),
        None if !order.open => Err("the run was not opened for sources".into()),
        None => Ok(true),
    }
}

/// Whether both are the same source. The hints on how to read it are not in the journal: after a failover it is read in full.
fn is_same(a: &SourceSpec, b: &SourceSpec) -> bool {
    let without_hints = |s: &SourceSpec| SourceSpec { changed_from: None, skip_free: false, ..s.clone() };
    without_hints(a) == without_hints(b)
}

/// Adds a source. The inner error goes to the one who asked; the outer one ends the run.
pub(super) async fn add_source(
    order: &mut Order,
    run: &Arc<Run>,
    parent: Option<&OpenPoint>,
    assignments: &mut VolumeAssignments<'_>,
    source: SourceSpec,
) -> Result<Result<(), String>, BackupError> {
    match is_new(order, &source) {
        Ok(true) => {}
        Ok(false) => return Ok(Ok(())),
        Err(why) => return Ok(Err(why)),
    }
    run.write_down(Record::Source(journaled(&source))).await?;
    run.add_volume(&source, VolumeBuild::of(&source, run.root.moment, parent));
    assignments.add(source.name.as_str(), source.reach.clone());
    order.sources.push(source);
    Ok(Ok(()))
}

/// No more sources will be added.
pub(super) async fn complete(
    order: &mut Order,
    run: &Arc<Run>,
    complete: Complete,
) -> Result<Result<(), String>, BackupError> {
    if order.complete {
        let same = order.skipped == complete.skipped && order.manifests == complete.manifests;
        return Ok(if same { Ok(()) } else { Err("the run was completed otherwise already".into()) });
    }
    let mut whole = Order { complete: true, ..order.clone() };
    take(&mut whole, complete.clone());
    if let Err(e) = whole.check() {
        return Ok(Err(e.to_string()));
    }
    run.write_down(Record::Complete(complete)).await?;
    *order = whole;
    Ok(Ok(()))
}

/// Adds to an order what completes it.
pub(super) fn take(order: &mut Order, complete: Complete) {
    order.skipped = complete.skipped;
    order.manifest_objects = complete.manifest_objects;
    order.manifests = complete.manifests;
    order.complete = true;
}
