//! Snapshots: cut, deleted, shown.

use std::time::{SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;
use tonic::Status;

use crate::csi::Snapshot as Answer;
use crate::server::Driver;
use crate::state::{Snapshot, Source, id, make_image};
use crate::switches::Switches;

const SECOND: i64 = 1_000_000_000;

/// Nanoseconds of Unix time.
#[expect(clippy::disallowed_methods, reason = "the driver is a program of its own, and has no other clock")]
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

pub(crate) fn timestamp(nanos: i64) -> Timestamp {
    Timestamp { seconds: nanos / SECOND, nanos: i32::try_from(nanos % SECOND).unwrap_or(0) }
}

/// A snapshot as the interface shows it now.
pub(crate) fn answer(snapshot: Snapshot, switches: &Switches) -> Answer {
    let wait = i64::try_from(switches.snapshot_ready_after_s).unwrap_or(i64::MAX).saturating_mul(SECOND);
    Answer {
        size_bytes: snapshot.bytes,
        ready_to_use: !switches.snapshot_never_ready && now() >= snapshot.cut.saturating_add(wait),
        creation_time: Some(timestamp(snapshot.cut)),
        snapshot_id: snapshot.id,
        source_volume_id: snapshot.volume,
        group_snapshot_id: snapshot.group,
    }
}

impl Driver {
    pub(crate) async fn cut_snapshot(&self, volume: &str, name: &str, switches: &Switches) -> Result<Snapshot, Status> {
        if volume.is_empty() || name.is_empty() {
            return Err(Status::invalid_argument("a volume and a name must be given"));
        }
        let id = id("snapshot", name);
        if let Ok(snapshot) = self.state.snapshot(&id) {
            let same = snapshot.volume == volume && snapshot.name == name;
            let taken = || Status::already_exists(format!("{name} is there, of volume {}", snapshot.volume));
            return if same { Ok(snapshot.clone()) } else { Err(taken()) };
        }
        let source = self.state.volume(volume)?;
        switches.delay_cut().await?;
        make_image(&self.state.snapshot_image(&id), Some(&self.state.volume_image(volume)), source.bytes)?;
        let (volume, name) = (volume.to_owned(), name.to_owned());
        let snapshot = Snapshot { id, name, volume, bytes: source.bytes, cut: now(), group: String::new() };
        self.state.put_snapshot(&snapshot)?;
        self.vanish(&snapshot, switches)?;
        Ok(snapshot)
    }

    /// Loses a snapshot that was just cut, if the switches say so.
    pub(crate) fn vanish(&self, snapshot: &Snapshot, switches: &Switches) -> Result<(), Status> {
        if !switches.snapshots_vanish {
            return Ok(());
        }
        let image = self.state.snapshot_image(&snapshot.id);
        std::fs::remove_file(&image).map_err(|e| Status::internal(format!("{}: {e}", image.display())))
    }

    pub(crate) fn delete_snapshot_of(&self, id: &str) -> Result<(), Status> {
        if id.is_empty() {
            return Err(Status::invalid_argument("no snapshot is named"));
        }
        if Switches::read(self.state.disk())?.clones_hold_snapshots {
            let source = Some(Source::Snapshot(id.to_owned()));
            if let Some(clone) = self.state.volumes()?.into_iter().find(|volume| volume.source == source) {
                return Err(Status::failed_precondition(format!("volume {} was made from snapshot {id}", clone.id)));
            }
        }
        self.state.remove_snapshot(id)
    }
}
