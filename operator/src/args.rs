//! The command line of `milkrun-operator`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use milkrun_identity::channel::CoordinatorUrl;
use milkrun_observe::logs::LogFormat;

/// Turns `Backup` and `Restore` objects into snapshots, volumes, and runs of the coordinator.
#[derive(Debug, Parser)]
#[command(name = "milkrun-operator", version, max_term_width = 110)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the operator; of several, one works
    Run(Box<Run>),
    /// Hold a volume on its node until told to stop: what holder pods run
    Hold,
    /// Write bytes that can be found again, or compare: what `milkrun doctor --try-class` runs in pods
    #[command(hide = true)]
    Probe {
        /// What to do
        what: Probe,
        /// Files or devices
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// Print the definitions of milkrun's resources, as YAML
    Definitions,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Probe {
    Write,
    Check,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// The coordinator
    #[arg(long, value_name = "URL", env = "MILKRUN_COORDINATOR")]
    pub(crate) coordinator: CoordinatorUrl,
    /// The file of the ServiceAccount token that is shown to the coordinator
    #[arg(long, value_name = "FILE")]
    pub(crate) token: PathBuf,
    /// The certificate of the coordinator's authority
    #[arg(long, value_name = "FILE")]
    pub(crate) authority: PathBuf,
    /// Where the own certificate goes
    #[arg(long, value_name = "DIR", default_value = "/run/milkrun")]
    pub(crate) tls: PathBuf,
    /// The namespace in which holders, claims and copies of snapshots are made
    #[arg(long, value_name = "NAME", default_value = "milkrun-work")]
    pub(crate) work_namespace: String,
    /// The image of holder pods: milkrun's own
    #[arg(long, value_name = "IMAGE", env = "MILKRUN_IMAGE")]
    pub(crate) image: String,
    /// The kubelet's folder on the nodes
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    pub(crate) kubelet: String,
    /// Volumes of snapshots that are offered to agents at once, for all backups together: each takes a slot of a node
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) exposed_max: u16,
    /// How the log is written
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log: LogFormat,
    /// Serve /metrics, /healthz and /readyz here, without TLS
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,
}
