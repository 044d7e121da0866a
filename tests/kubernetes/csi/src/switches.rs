//! What real drivers do badly, each as a switch in one file on the disk that all nodes share. It is read at every call.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tonic::Status;

/// The file of the switches, on the driver's disk.
pub(crate) const FILE: &str = "switches.json";

/// All switches. By default none is set.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Switches {
    /// Refuses volumes that many nodes read.
    pub(crate) no_read_only_many: bool,
    /// Refuses volumes from snapshots that a node may write.
    pub(crate) snapshots_are_read_only: bool,
    /// Refuses volumes of mode Block.
    pub(crate) no_block: bool,
    /// Makes volumes as large as the next GiB.
    pub(crate) whole_gibibytes: bool,
    /// Refuses to delete a snapshot while a volume that was made from it lives.
    pub(crate) clones_hold_snapshots: bool,
    /// Forgets a volume when a persistent volume of it with the policy Retain is deleted, whatever other ones of it there are.
    pub(crate) forgets_retained: bool,
    /// A snapshot is cut only after so many milliseconds.
    pub(crate) snapshot_takes_ms: u64,
    /// A snapshot is ready only so many seconds after it was cut.
    pub(crate) snapshot_ready_after_s: u64,
    /// No snapshot becomes ready.
    pub(crate) snapshot_never_ready: bool,
    /// Each snapshot fails with this text.
    pub(crate) snapshot_error: Option<String>,
    /// Each snapshot of a group fails with this text.
    pub(crate) groups_fail: Option<String>,
    /// Snapshots vanish from the storage once they were cut.
    pub(crate) snapshots_vanish: bool,
    /// How many volumes can be attached to a node. 0 is no limit.
    pub(crate) volumes_per_node: i64,
    /// Puts a layer between a new volume's device and its file system.
    pub(crate) layer: bool,
    /// What is wrong with lists of changed blocks.
    pub(crate) changed_blocks: ChangedBlocks,
}

/// What is wrong with lists of changed blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ChangedBlocks {
    /// Nothing.
    #[default]
    Right,
    /// The last range is left out.
    Wrong,
    /// Each message is 2 s late.
    Late,
    /// The stream ends with an error after its first message.
    BrokenOff,
    /// The stream is empty, and ends well.
    Empty,
}

impl Switches {
    /// Reads them.
    pub(crate) fn read(disk: &Path) -> Result<Self, Status> {
        let path = disk.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|e| Status::internal(format!("{}: {e}", path.display())))
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(Status::internal(format!("{}: {e}", path.display()))),
        }
    }

    /// Waits as long as it takes to cut a snapshot, or fails.
    pub(crate) async fn delay_cut(&self) -> Result<(), Status> {
        if let Some(text) = &self.snapshot_error {
            return Err(Status::internal(text.clone()));
        }
        tokio::time::sleep(Duration::from_millis(self.snapshot_takes_ms)).await;
        Ok(())
    }
}
