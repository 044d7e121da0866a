//! How an agent works, and how it opens its sources.

use std::path::Path;
use std::sync::Arc;

use milkrun_repository::store::grant::Redeem;

use crate::device::allowed::AllowedPaths;
use crate::device::{ByteSource, Source, SourceError, SourceOptions, open_source, open_stream};
use crate::freeze::Freezer;

/// Opens volumes.
pub type OpenSource = Arc<dyn Fn(&Path, SourceOptions) -> Result<Box<dyn Source>, SourceError> + Send + Sync>;
/// Opens streams.
pub type OpenStream = Arc<dyn Fn(&str, SourceOptions) -> Result<Box<dyn ByteSource>, SourceError> + Send + Sync>;

/// How sources are opened. Tests open scripted devices here; the embedded agent of the command line also runs commands.
#[derive(Clone)]
pub struct Open {
    /// Volumes.
    pub volume: OpenSource,
    /// Streams.
    pub stream: OpenStream,
}

/// How an agent works.
#[derive(Clone)]
pub struct AgentOptions {
    /// Its node.
    pub node: String,
    /// Threads for CPU work.
    pub threads: usize,
    /// Bytes in flight.
    pub memory: u64,
    /// The largest number of volumes at once; 0: no limit.
    pub volumes: u32,
    /// Uses grants.
    pub redeem: Arc<dyn Redeem>,
    /// Opens sources.
    pub open: Open,
    /// Which sources and targets are opened.
    pub allowed: AllowedPaths,
    /// Freezes file systems.
    pub freezer: Freezer,
    /// The target of a restore is made durable after so many bytes, in whole windows of the plan.
    pub sync_every: u64,
}

impl AgentOptions {
    /// With as many threads as there are cores, and the default budget.
    pub fn new(node: impl Into<String>, redeem: Arc<dyn Redeem>) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            node: node.into(),
            threads,
            memory: crate::budget::DEFAULT,
            volumes: 0,
            redeem,
            open: Open { volume: Arc::new(open_source), stream: Arc::new(open_stream) },
            allowed: AllowedPaths::Any,
            freezer: Freezer::new(AllowedPaths::Any, None),
            sync_every: crate::restore::SYNC_EVERY_BYTES,
        }
    }
}
