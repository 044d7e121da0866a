//! What an agent reports about a volume when its backup ends.

use milkrun_repository::point::root::FileSystem;

/// What is known about a volume once all of it was read.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Its bytes.
    pub len: u64,
    /// Its sector size.
    pub sector_bytes: u32,
    /// Notes for people.
    pub notes: Vec<String>,
    /// Only what the changed-block list names was read, and a sample (see `sampled_bytes`).
    pub by_list: bool,
    /// Bytes that the list does not name, and that were read as a sample to check it.
    pub sampled_bytes: u64,
    /// What its superblock says.
    pub file_system: FileSystem,
}
