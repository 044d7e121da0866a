//! What an agent says of a volume at its end.

use milkrun_repository::point::root::FileSystem;

/// What is known of a volume when all of it was read.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Its bytes.
    pub len: u64,
    /// Its sector size.
    pub sector_bytes: u32,
    /// What a person should know.
    pub notes: Vec<String>,
    /// What the list of changes does not name was not read.
    pub by_list: bool,
    /// But for these bytes.
    pub sampled_bytes: u64,
    /// What its superblock says.
    pub file_system: FileSystem,
}
