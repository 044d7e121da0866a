//! What a person can type.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use milkrun_identity::channel::CoordinatorUrl;
use milkrun_identity::{NodeName, Role};
use milkrun_repository::chunk::codec;
use milkrun_repository::clock::Moment;
use milkrun_repository::id::{AppName, ClusterId, Namespace, RunId, VolumeName};
use milkrun_repository::point::root::Class;
use milkrun_repository::store::StoreUrl;

use crate::output::CliError;
use crate::units;

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

/// Where certificates go, and how long they are valid.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Issue {
    /// The authority's folder
    #[arg(long, value_name = "DIR", default_value = "certs")]
    pub(crate) folder: PathBuf,
    /// How long it is valid
    #[arg(long = "for", value_name = "TIME", default_value = "1y", value_parser = units::duration)]
    pub(crate) valid: Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Certs {
    /// The authority that all others are of
    Authority {
        /// Where it is made
        #[arg(long, value_name = "DIR", default_value = "certs")]
        folder: PathBuf,
        /// How long it is valid
        #[arg(long = "for", value_name = "TIME", default_value = "10y", value_parser = units::duration)]
        valid: Duration,
    },
    /// A coordinator's
    Coordinator {
        #[command(flatten)]
        issue: Issue,
        /// Names and addresses at which agents and people reach it
        #[arg(value_name = "HOST", required = true)]
        hosts: Vec<String>,
    },
    /// The agent's of one node
    Agent {
        #[command(flatten)]
        issue: Issue,
        /// The node, as the inventory has it
        #[arg(value_name = "NODE")]
        node: NodeName,
    },
    /// Ends a certificate before its time: coordinators refuse it, and end its connections within seconds
    ///
    /// The list of revoked certificates, ca.crl, is written beside the authority and into the folders of coordinators there. Bring it to
    /// coordinators elsewhere by hand: it lies beside their ca.crt.
    Revoke {
        /// The authority's folder
        #[arg(long, value_name = "DIR", default_value = "certs")]
        folder: PathBuf,
        /// Its folder, its file, or its serial number, as coordinators log it
        #[arg(value_name = "CERTIFICATE")]
        certificate: String,
    },
    /// A person's, or a program's
    User {
        #[command(flatten)]
        issue: Issue,
        /// A name, for logs
        #[arg(value_name = "NAME")]
        name: String,
        /// What it may do: view, backup or restore, of all applications or of one (backup:shop), operate (drain nodes), or operator (open runs and name what they read and write)
        #[arg(long, value_name = "ROLE", required = true)]
        role: Vec<Role>,
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

/// `NAME=PATH`
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) name: VolumeName,
    pub(crate) path: String,
}

fn named(text: &str) -> Result<Named, String> {
    let (name, path) = text.split_once('=').ok_or("write NAME=PATH")?;
    if path.is_empty() {
        return Err("the path is missing; write NAME=PATH".into());
    }
    Ok(Named { name: name.parse().map_err(|e: milkrun_repository::id::NameError| e.to_string())?, path: path.into() })
}

/// `NAME=TIME`
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub(crate) name: VolumeName,
    pub(crate) moment: Moment,
}

fn taken(text: &str) -> Result<Taken, String> {
    let Named { name, path } = named(text).map_err(|e| e.replace("PATH", "TIME"))?;
    let moment =
        Moment::parse(&path).map_err(|_| format!("{path:?} is no time: write it like 2026-11-22T14:30:00Z"))?;
    Ok(Taken { name, moment })
}

/// How hard to compress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Level {
    pub(crate) from: i32,
    /// Harder where that costs no time.
    pub(crate) adapts: bool,
}

fn level(text: &str) -> Result<Level, String> {
    let default = codec::Level::DEFAULT.get();
    if text == "auto" {
        return Ok(Level { from: default, adapts: true });
    }
    let number = text.parse().map_err(|_| "write a number from -7 to 19, or auto".to_owned())?;
    codec::Level::new(number).map_err(|e| e.to_string())?;
    Ok(Level { from: number, adapts: false })
}

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
    pub(crate) taken: Vec<Taken>,
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
pub(crate) struct Try {
    /// Devices or image files to try it on; they are only read
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// Work here instead of in a new temporary folder
    #[arg(long, value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
}
