//! The command line of `milkrun-agent`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use milkrun_identity::NodeName;
use milkrun_identity::channel::CoordinatorUrl;
use milkrun_observe::logs::LogFormat;
use milkrun_repository::units;

/// Moves the volumes of one node: reads them for backups, writes them for restores, as its coordinator says.
#[derive(Debug, Parser)]
#[command(
    name = "milkrun-agent",
    version,
    max_term_width = 110,
    after_help = "Example:\n  milkrun-agent --coordinator https://milkrun.example:7411 --node node-a --tls certs/agent-node-a\n\nIt stops in order on SIGTERM: what it was doing goes on elsewhere. It holds no credential of the store."
)]
pub(crate) struct Args {
    /// The coordinator; where several stand by for each other, each of them
    #[arg(long, value_name = "URL", env = "MILKRUN_COORDINATOR", required = true, value_delimiter = ',')]
    pub(crate) coordinator: Vec<CoordinatorUrl>,
    /// This node's name, as the certificate and the inventory have it
    #[arg(long, value_name = "NAME", env = "MILKRUN_NODE")]
    pub(crate) node: NodeName,
    /// The folder with ca.crt, tls.crt and tls.key, as `milkrun certs agent` makes it
    #[arg(long, value_name = "DIR", env = "MILKRUN_TLS")]
    pub(crate) tls: PathBuf,
    /// In a cluster: the file of the ServiceAccount token that is shown to the coordinator. The certificate that it gives for it
    /// goes into the folder of --tls, which need not exist
    #[arg(long, value_name = "FILE", requires = "authority")]
    pub(crate) token: Option<PathBuf>,
    /// In a cluster: the certificate of the coordinator's authority
    #[arg(long, value_name = "FILE", requires = "token")]
    pub(crate) authority: Option<PathBuf>,
    /// Open block volumes of pods below this folder of the kubelet, and nothing else; freeze file systems below it, and no others
    #[arg(long, value_name = "DIR")]
    pub(crate) kubelet: Option<PathBuf>,
    /// Freeze file systems of pods while their snapshots are cut, if a backup says so. What is frozen is noted in this folder, so that
    /// the next process thaws what this one left; it must outlive the process, but not the machine's start
    #[arg(long, value_name = "DIR")]
    pub(crate) freeze_notes: Option<PathBuf>,
    /// Bytes in flight at most, for all volumes together
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = units::size)]
    pub(crate) memory: u64,
    /// Threads for CPU work [default: as many as there are cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Volumes at once [default: as the inventory says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) volumes: Option<u32>,
    /// Upload at most so many bytes per second
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(crate) limit_upload: Option<u64>,
    /// Make the target of a restore durable after so many bytes (and every 30 seconds), in steps of 512 MiB of the volume: what
    /// is durable is not done again after an interruption
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = units::size)]
    pub(crate) sync_every: u64,
    /// A private CA of the store in PEM, trusted besides the system's (also: AWS_CA_BUNDLE)
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// The directory of a file:// repository that is mounted here under the same path; of several, each
    #[arg(long, value_name = "DIR")]
    pub(crate) repository_directory: Vec<PathBuf>,
    /// How the log is written
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log: LogFormat,
    /// Serve /metrics, /healthz and /readyz here, without TLS
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,
}
