//! The arguments of `backup`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;
use milkrun_repository::id::AppName;
use milkrun_repository::point::root::Class;

use super::values::{Level, Named, TakenAt, level, named, taken};
use super::{Repository, Whose};
use crate::units;

#[derive(Debug, ClapArgs)]
pub(crate) struct Backup {
    #[command(flatten)]
    pub(crate) repository: Repository,
    #[command(flatten)]
    pub(crate) whose: Whose,
    /// The application's name
    #[arg(value_name = "APP")]
    pub(crate) application: AppName,
    /// A block device or image file (with --coordinator its inventory says which)
    #[arg(long, value_name = "NAME=PATH", value_parser = named)]
    pub(crate) volume: Vec<Named>,
    /// A byte stream: a file, a pipe, or - for standard input
    #[arg(long, value_name = "NAME=PATH|-", value_parser = named)]
    pub(crate) stream: Vec<Named>,
    /// A byte stream that a command writes: run by the shell, and if it fails there is no restore point
    #[arg(long, value_name = "NAME=COMMAND", value_parser = named)]
    pub(crate) stream_command: Vec<Named>,
    /// Kubernetes manifests: YAML or JSON files, or folders of them
    #[arg(long, value_name = "DIR-OR-FILE")]
    pub(crate) manifests: Vec<PathBuf>,
    /// How long the point stays locked [default: as the repository says]
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    pub(crate) lock_for: Option<Duration>,
    /// What retention will count the point as: hourly, daily, weekly, monthly, yearly or none
    #[arg(long, value_name = "CLASS", default_value = "none")]
    pub(crate) class: Class,
    /// When the snapshot of a volume was taken (RFC 3339) [default: when the backup began]
    #[arg(long, value_name = "NAME=TIME", value_parser = taken)]
    pub(crate) taken: Vec<TakenAt>,
    /// A volume of the application that is left out, and why: the point says so
    #[arg(long, value_name = "NAME=REASON", value_parser = named)]
    pub(crate) skip: Vec<Named>,
    /// Which point predicts what is unchanged: auto, none, or a point's id
    #[arg(long, value_name = "auto|none|POINT", default_value = "auto")]
    pub(crate) parent: String,
    /// A file that lists what may have changed in a volume since the parent; nothing else of it is read, but for a sample
    #[arg(long, value_name = "NAME=FILE", value_parser = named)]
    pub(crate) changed_from: Vec<Named>,
    /// Of so many points in a row, read one in full whatever the lists of changes say
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) full_every: u32,
    /// Store a chunk of which a page changed whole, instead of the page alone
    #[arg(long)]
    pub(crate) whole_chunks: bool,
    /// Leave out what a clean ext4 file system has free, as if zeros lay there; on any doubt everything is read (the point says so)
    #[arg(long, conflicts_with = "changed_from")]
    pub(crate) skip_free: bool,
    /// zstd level, -7 (fast) to 19 (2 is tuned for the pages of databases, and 3 is 2 wherever that leaves less), or auto: 3, and up to 9 while the line to the store is what the backup waits for
    #[arg(long, value_name = "N|auto", default_value = "3", allow_negative_numbers = true, value_parser = level)]
    pub(crate) level: Level,
    /// Read devices that are mounted read-write or in use otherwise (the point says so)
    #[arg(long)]
    pub(crate) allow_mounted: bool,
    /// Accept volumes and streams without a byte
    #[arg(long)]
    pub(crate) allow_empty: bool,
    /// Accept files that change while they are read (the point says so)
    #[arg(long)]
    pub(crate) allow_changing: bool,
    /// Accept a lock beyond a year without asking
    #[arg(long)]
    pub(crate) yes: bool,
}
