//! What a person can type.

mod backup;
mod certs;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use milkrun_identity::NodeName;
use milkrun_identity::channel::CoordinatorUrl;
use milkrun_repository::id::{AppName, ClusterId, Namespace, RunId};
use milkrun_repository::store::StoreUrl;

use crate::output::CliError;
use crate::units;
pub(crate) use backup::Backup;
pub(crate) use certs::{Certs, Issue};
pub(crate) use values::Named;
use values::named;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 damage found, 4 could not ask (the store does not answer, so nothing is known).";

/// Backs up whole applications: volumes and manifests as one restore point, in a directory or in object-locked S3.
#[derive(Debug, Parser)]
#[command(name = "milkrun", version, after_help = EXIT_CODES, max_term_width = 110)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "For all commands")]
pub(crate) struct Global {
    /// Print one JSON document on standard output
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print no progress
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Threads for CPU work [default: as many as there are cores]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Bytes in flight at most
    #[arg(long, global = true, value_name = "SIZE", default_value = "256MiB", value_parser = units::size)]
    pub(crate) memory: u64,
    /// Upload at most so many bytes per second
    #[arg(long, global = true, value_name = "SIZE", value_parser = units::size)]
    pub(crate) limit_upload: Option<u64>,
    /// A private CA in PEM, trusted besides the system's (also: AWS_CA_BUNDLE)
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// How an S3 bucket is addressed: by path when an endpoint is set, else by host
    #[arg(long, global = true, value_enum, default_value_t = Addressing::Auto)]
    pub(crate) s3_addressing: Addressing,
    /// Open the repository with its recovery key, as `init` printed it, from this file
    #[arg(long, global = true, value_name = "FILE", env = "MILKRUN_RECOVERY_KEY_FILE")]
    pub(crate) recovery_key_file: Option<PathBuf>,
    /// Where opened index segments are cached [default: $XDG_CACHE_HOME/milkrun or ~/.cache/milkrun]
    #[arg(long, global = true, value_name = "DIR", env = "MILKRUN_CACHE")]
    pub(crate) cache: Option<PathBuf>,
    /// Drive this coordinator and its agents instead of working on this machine: https://host:port
    #[arg(long, global = true, value_name = "URL", env = "MILKRUN_COORDINATOR")]
    pub(crate) coordinator: Option<CoordinatorUrl>,
    /// Which of the coordinator's repositories is meant; not needed where it has one
    #[arg(long, global = true, value_name = "NAME", env = "MILKRUN_REPOSITORY_NAME")]
    pub(crate) repository_name: Option<String>,
    /// Who you are to the coordinator: a folder with ca.crt, tls.crt and tls.key, as `milkrun certs user` makes it
    #[arg(long, global = true, value_name = "DIR", env = "MILKRUN_TLS")]
    pub(crate) tls: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Addressing {
    Auto,
    Path,
    Host,
}

#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Repository {
    /// The repository: a folder, file:///path or s3://bucket/prefix
    #[arg(long, short, env = "MILKRUN_REPOSITORY", value_name = "URL")]
    pub(crate) repository: Option<StoreUrl>,
}

impl Repository {
    /// Where it is, for a command that can't do without.
    pub(crate) fn url(&self) -> Result<&StoreUrl, CliError> {
        let missing =
            || CliError::usage("which repository? -r URL (or MILKRUN_REPOSITORY): file:///path or s3://bucket/prefix");
        self.repository.as_ref().ok_or_else(missing)
    }
}

/// Whose application is meant. Several clusters may share a repository.
#[derive(Clone, Debug, Default, ClapArgs)]
pub(crate) struct Whose {
    /// The cluster that the application belongs to [default: local; with --coordinator: the coordinator's own]
    #[arg(long, value_name = "ID", env = "MILKRUN_CLUSTER_ID")]
    pub(crate) cluster_id: Option<ClusterId>,
    /// The namespace that the application belongs to [default: none]
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: Option<Namespace>,
}

impl Whose {
    /// As the wire has it.
    pub(crate) fn to_wire(&self) -> (String, String) {
        let text = |text: Option<String>| text.unwrap_or_default();
        (
            text(self.cluster_id.as_ref().map(ToString::to_string)),
            text(self.namespace.as_ref().map(ToString::to_string)),
        )
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a repository
    #[command(
        after_help = "Examples:\n  milkrun init -r file:///srv/backups\n  milkrun init -r s3://backups/shop --lock compliance --lock-for 30d --write-public-key shop.pub\n\nThe secret comes from MILKRUN_PASSWORD_FILE, MILKRUN_PASSWORD, or a prompt. Without it nothing can ever be restored."
    )]
    Init(Init),
    /// Back up an application as one restore point
    #[command(
        after_help = "Examples:\n  milkrun backup -r file:///srv/backups shop --volume data=/dev/vg/shop-snap --manifests k8s/\n  milkrun backup -r s3://backups/shop shop --stream-command dump='pg_dump shop'"
    )]
    Backup(Backup),
    /// List restore points
    #[command(
        after_help = "Examples:\n  milkrun points -r file:///srv/backups\n  milkrun points -r s3://backups/shop shop --json"
    )]
    Points(Points),
    /// Show what a restore point holds
    #[command(
        after_help = "Examples:\n  milkrun show -r file:///srv/backups shop@latest\n  milkrun show -r file:///srv/backups rp-20261122t143000z-0123456789abcdef --json"
    )]
    Show(Show),
    /// Restore volumes, streams and manifests
    #[command(
        after_help = "Examples:\n  milkrun restore -r file:///srv/backups shop                               (says which volumes there are)\n  milkrun restore -r file:///srv/backups shop --volume data=/dev/vg/new --manifests out/\n  milkrun restore -r file:///srv/backups shop@2026-11-22T14:30:00Z --volume data=data.img\n  milkrun restore -r file:///srv/backups shop --stream dump=- | psql shop"
    )]
    Restore(Restore),
    /// Prove that restore points are whole
    #[command(
        after_help = "Examples:\n  milkrun verify -r file:///srv/backups                  structure and locks of everything\n  milkrun verify -r file:///srv/backups shop --data=10   and read a tenth of the data\n  milkrun verify -r s3://backups/shop --public-key shop.pub   every stored byte, without the secret"
    )]
    Verify(Verify),
    /// Try it on a sample application, or (read-only) on your own devices and files
    #[command(
        after_help = "Examples:\n  milkrun try\n  milkrun try /dev/vg/shop-snap disk.img --folder /srv/milkrun-try"
    )]
    Try(Try),
    /// Find out whether volumes of a storage class of your Kubernetes cluster can be backed up and restored
    #[command(
        after_help = "Examples:\n  milkrun doctor --try-class fast\n  milkrun doctor --try-class fast --repository-name prod --size 4Gi --json\n\nIt takes two small volumes of the class through everything, in a namespace of its own that it removes: makes and writes them, backs them up, restores, mounts and compares. It uses your kubeconfig. Its point stays in the repository, as application milkrun-trial, locked for a day."
    )]
    Doctor(Doctor),
    /// Make certificates: an authority, then one for each coordinator, agent and user
    #[command(
        after_help = "Examples:\n  milkrun certs authority --folder certs\n  milkrun certs coordinator --folder certs milkrun.example 10.0.0.7\n  milkrun certs agent --folder certs node-a\n  milkrun certs user --folder certs ann --role backup:shop --role restore:shop\n\nKeep certs/ca.key where no node is: whoever has it can be anybody."
    )]
    Certs {
        #[command(subcommand)]
        what: Certs,
    },
    /// List a coordinator's runs
    #[command(after_help = "Examples:\n  milkrun --coordinator https://milkrun.example --tls certs/user-ann runs")]
    Runs,
    /// Follow a run to its end
    #[command(
        after_help = "Examples:\n  milkrun --coordinator https://milkrun.example --tls certs/user-ann watch 0123456789abcdef"
    )]
    Watch {
        /// Its id, as `runs` shows it
        #[arg(value_name = "RUN")]
        run: RunId,
    },
    /// Stop a run; it leaves nothing that is listed
    #[command(
        after_help = "Examples:\n  milkrun --coordinator https://milkrun.example --tls certs/user-ann cancel 0123456789abcdef"
    )]
    Cancel {
        /// Its id, as `runs` shows it
        #[arg(value_name = "RUN")]
        run: RunId,
    },
    /// List a coordinator's repositories, and how each of them is
    #[command(
        after_help = "Examples:\n  milkrun --coordinator https://milkrun.example --tls certs/user-ann repositories --json"
    )]
    Repositories,
    /// List a coordinator's nodes and their agents
    #[command(
        after_help = "Examples:\n  milkrun --coordinator https://milkrun.example --tls certs/user-ann agents --json"
    )]
    Agents,
    /// Take a node out of work; what it does goes on elsewhere
    #[command(
        after_help = "Examples:\n  milkrun --coordinator https://milkrun.example --tls certs/user-ann drain node-a\n  milkrun --coordinator https://milkrun.example --tls certs/user-ann drain node-a --back"
    )]
    Drain {
        /// The node
        #[arg(value_name = "NODE")]
        node: NodeName,
        /// It takes work again
        #[arg(long)]
        back: bool,
    },
    /// Print a completion script for your shell
    #[command(after_help = "Examples:\n  milkrun completion bash > /etc/bash_completion.d/milkrun")]
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Lock {
    /// Nothing is locked
    None,
    /// Locked; a principal with the bypass right may still delete
    Governance,
    /// Locked; nobody may delete before the time
    Compliance,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Init {
    #[command(flatten)]
    pub(crate) repository: Repository,
    /// Whether and how objects are locked
    #[arg(long, value_enum, default_value_t = Lock::None)]
    pub(crate) lock: Lock,
    /// How long restore points stay locked unless a backup says otherwise
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = units::duration)]
    pub(crate) lock_for: Duration,
    /// Write the public key to this file; keep it outside of the bucket
    #[arg(long, value_name = "FILE")]
    pub(crate) write_public_key: Option<PathBuf>,
    /// Write the recovery key to this file instead of printing it; keep it where neither the repository nor its password is
    #[arg(long, value_name = "FILE")]
    pub(crate) write_recovery_key: Option<PathBuf>,
    /// Accept a lock beyond a year without asking
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Points {
    #[command(flatten)]
    pub(crate) repository: Repository,
    #[command(flatten)]
    pub(crate) whose: Whose,
    /// Only of this application
    #[arg(value_name = "APP")]
    pub(crate) application: Option<AppName>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Show {
    #[command(flatten)]
    pub(crate) repository: Repository,
    #[command(flatten)]
    pub(crate) whose: Whose,
    /// POINT, APP, APP@latest or APP@TIME
    #[arg(value_name = "POINT")]
    pub(crate) point: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Restore {
    #[command(flatten)]
    pub(crate) repository: Repository,
    #[command(flatten)]
    pub(crate) whose: Whose,
    /// POINT, APP, APP@latest or APP@TIME (the last point at or before it)
    #[arg(value_name = "POINT|APP[@TIME]")]
    pub(crate) point: String,
    /// Restore a volume to a block device or image file; with --coordinator: NAME=NODE:PATH
    #[arg(long, value_name = "NAME=PATH", value_parser = named)]
    pub(crate) volume: Vec<Named>,
    /// Restore in order, to a file, a pipe, or - for standard output
    #[arg(long, value_name = "NAME=PATH|-", value_parser = named)]
    pub(crate) stream: Vec<Named>,
    /// Write the manifests here, a file for each object
    #[arg(long, value_name = "DIR")]
    pub(crate) manifests: Option<PathBuf>,
    /// Write over what is there: devices that are mounted or not empty, existing files
    #[arg(long)]
    pub(crate) force: bool,
    /// Zero what a larger target has beyond the volume
    #[arg(long)]
    pub(crate) discard_rest: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Verify {
    #[command(flatten)]
    pub(crate) repository: Repository,
    #[command(flatten)]
    pub(crate) whose: Whose,
    /// Only these points or applications
    #[arg(value_name = "POINT|APP")]
    pub(crate) which: Vec<String>,
    /// Read and open all data, or a share of it
    #[arg(long, value_name = "PERCENT", num_args = 0..=1, require_equals = true, default_missing_value = "100", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) data: Option<u8>,
    /// Set packs aside that are found damaged or missing: later backups store what was in them again, where the source still has
    /// it, and refer to them no more. Points that need them are not mended. It writes a note to the repository
    #[arg(long)]
    pub(crate) set_aside: bool,
    /// Prove every stored byte with the public key alone, without the secret
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "set_aside"])]
    pub(crate) public_key: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Doctor {
    /// The storage class to try
    #[arg(long, value_name = "NAME")]
    pub(crate) try_class: String,
    /// The size of the volumes that are made, as Kubernetes writes sizes
    #[arg(long, value_name = "SIZE", default_value = "1Gi")]
    pub(crate) size: String,
    /// The namespace that milkrun is installed in
    #[arg(long, value_name = "NAME", default_value = "milkrun")]
    pub(crate) milkrun_namespace: String,
    /// How long each step may take
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = units::duration)]
    pub(crate) step_timeout: Duration,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Try {
    /// Devices or image files to try it on; they are only read
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// Work here instead of in a new temporary folder
    #[arg(long, value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
}
