//! The command line of `milkrun-coordinator`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use milkrun_observe::logs::LogFormat;
use milkrun_repository::store::StoreUrl;
use milkrun_repository::store::s3;
use milkrun_repository::units;

/// Coordinates the agents of many nodes over one repository: gives assignments and grants, writes maps, commits once.
#[derive(Debug, Parser)]
#[command(
    name = "milkrun-coordinator",
    version,
    max_term_width = 110,
    after_help = "Example:\n  milkrun-coordinator -r s3://backups/prod --inventory inventory.yaml --tls certs/coordinator-milkrun.example\n\nThe repository's secret comes from MILKRUN_PASSWORD_FILE or MILKRUN_PASSWORD, S3 credentials from the AWS SDK's chain."
)]
pub(crate) struct Args {
    /// The repository: file:///path or s3://bucket/prefix
    #[arg(long, short, env = "MILKRUN_REPOSITORY", value_name = "URL")]
    pub(crate) repository: StoreUrl,
    /// Nodes, applications, volumes and where they are, in YAML
    #[arg(long, value_name = "FILE", env = "MILKRUN_INVENTORY")]
    pub(crate) inventory: PathBuf,
    /// The folder with ca.crt, tls.crt and tls.key, as `milkrun certs coordinator` makes it
    #[arg(long, value_name = "DIR", env = "MILKRUN_TLS")]
    pub(crate) tls: PathBuf,
    /// Where agents and people connect
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:7411")]
    pub(crate) listen: SocketAddr,
    /// Where opened index segments are cached [default: $XDG_CACHE_HOME/milkrun or ~/.cache/milkrun]
    #[arg(long, value_name = "DIR", env = "MILKRUN_CACHE")]
    pub(crate) cache: Option<PathBuf>,
    /// A private CA of the store in PEM, trusted besides the system's (also: AWS_CA_BUNDLE)
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// How an S3 bucket is addressed: by path when an endpoint is set, else by host
    #[arg(long, value_enum, default_value_t = Addressing::Auto)]
    pub(crate) s3_addressing: Addressing,
    /// Upload at most so many bytes of maps and manifests per second (agents have a bound of their own)
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(crate) limit_upload: Option<u64>,
    /// How the log is written
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log: LogFormat,
    /// Lead in place of a coordinator of which nothing was heard for so long
    #[arg(long, value_name = "TIME", default_value = "16s", value_parser = units::duration)]
    pub(crate) take_over_after: Duration,
    /// Serve /metrics, /healthz and /readyz here, without TLS
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,
}

/// How a bucket is addressed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Addressing {
    Auto,
    Path,
    Host,
}

impl From<Addressing> for s3::Addressing {
    fn from(a: Addressing) -> Self {
        match a {
            Addressing::Auto => Self::Auto,
            Addressing::Path => Self::Path,
            Addressing::Host => Self::VirtualHost,
        }
    }
}
