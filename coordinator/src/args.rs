//! The command line of `milkrun-coordinator`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use milkrun_observe::logs::LogFormat;
use milkrun_repository::id::ClusterId;
use milkrun_repository::store::StoreUrl;
use milkrun_repository::store::connect::ConnectOptions;
use milkrun_repository::store::s3;
use milkrun_repository::units;

/// Coordinates the agents of many nodes over one repository: gives assignments and grants, writes maps, commits once.
#[derive(Debug, Parser)]
#[command(
    name = "milkrun-coordinator",
    version,
    max_term_width = 110,
    after_help = "Example:\n  milkrun-coordinator -r s3://backups/prod --inventory inventory.yaml --tls certs/coordinator-milkrun.example\n\nThe repository's secret comes from MILKRUN_PASSWORD_FILE or MILKRUN_PASSWORD (of one called dr among several: MILKRUN_PASSWORD_FILE_DR), S3 credentials from the AWS SDK's chain."
)]
pub(crate) struct Args {
    /// The repository: file:///path or s3://bucket/prefix. Several, each with a name: -r prod=URL -r dr=URL
    #[arg(long, short, env = "MILKRUN_REPOSITORY", value_name = "[NAME=]URL", required_unless_present = "in_cluster", value_parser = named_repository)]
    pub(crate) repository: Vec<NamedRepository>,
    /// The profile of the AWS configuration that a repository's credentials, region and endpoint come from
    #[arg(long, value_name = "[NAME=]PROFILE", value_parser = profile)]
    pub(crate) s3_profile: Vec<(String, String)>,
    /// The cluster whose applications the inventory lists. Several clusters may share a repository
    #[arg(long, value_name = "ID", env = "MILKRUN_CLUSTER_ID", default_value_t)]
    pub(crate) cluster_id: ClusterId,
    /// Nodes, applications, volumes and where they are, in YAML
    #[arg(long, value_name = "FILE", env = "MILKRUN_INVENTORY", required_unless_present = "in_cluster")]
    pub(crate) inventory: Option<PathBuf>,
    /// The folder with ca.crt, tls.crt and tls.key, as `milkrun certs coordinator` makes it
    #[arg(long, value_name = "DIR", env = "MILKRUN_TLS", required_unless_present = "in_cluster")]
    pub(crate) tls: Option<PathBuf>,
    /// Run in a Kubernetes cluster: repositories come from `Repository` objects of this namespace, agents and the operator show
    /// their ServiceAccount tokens, and one process of several leads by a Lease
    #[arg(long, env = "MILKRUN_IN_CLUSTER", conflicts_with_all = ["repository", "inventory", "tls", "s3_profile"])]
    pub(crate) in_cluster: bool,
    /// In a cluster: the name of the Service at which the others find the coordinator
    #[arg(long, value_name = "NAME", default_value = "milkrun-coordinator")]
    pub(crate) service: String,
    /// In a cluster: who makes the authority of all certificates, the Secret milkrun-authority
    #[arg(long, value_enum, default_value_t = AuthorityOf::Own)]
    pub(crate) authority: AuthorityOf,
    /// In a cluster: a file with a token of this process for the audience of a store's token service. Repositories with an
    /// identity need one
    #[arg(long, value_name = "AUDIENCE=FILE", requires = "in_cluster", value_parser = store_token)]
    pub(crate) store_token: Vec<StoreToken>,
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

/// A repository, and how people name it; an empty name, where there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedRepository {
    pub(crate) name: String,
    pub(crate) url: StoreUrl,
}

/// A token for a store's token service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoreToken {
    pub(crate) audience: String,
    pub(crate) file: PathBuf,
}

fn store_token(text: &str) -> Result<StoreToken, String> {
    // An audience may be a URL, whose query may hold a `=`.
    match text.rsplit_once('=') {
        Some((audience, file)) if !audience.is_empty() && file.starts_with('/') => {
            Ok(StoreToken { audience: audience.to_owned(), file: file.into() })
        }
        _ => Err("write AUDIENCE=/path/of/the/token".into()),
    }
}

fn is_name(text: &str) -> bool {
    let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty() && text.len() <= 63 && text.chars().all(sound)
}

fn named_repository(text: &str) -> Result<NamedRepository, String> {
    let (name, url) = match text.split_once('=') {
        Some((name, url)) if is_name(name) => (name, url),
        // A name may not look like the beginning of a URL.
        Some((name, _)) if !name.contains(['/', ':', '.']) => {
            return Err(format!("{name:?} is no name: lower-case letters, digits and -, at most 63"));
        }
        _ => ("", text),
    };
    Ok(NamedRepository { name: name.to_owned(), url: url.parse().map_err(|e| format!("{e}"))? })
}

fn profile(text: &str) -> Result<(String, String), String> {
    let (name, profile) = text.split_once('=').unwrap_or(("", text));
    if profile.is_empty() { Err("write NAME=PROFILE".into()) } else { Ok((name.to_owned(), profile.to_owned())) }
}

impl Args {
    /// Whether each repository has a name of its own, where there are several.
    ///
    /// # Errors
    /// What to write instead.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut names = std::collections::BTreeSet::new();
        for NamedRepository { name, url } in &self.repository {
            if name.is_empty() && self.repository.len() > 1 {
                return Err(format!("there are several repositories, and {url} has no name: -r NAME={url}"));
            }
            if !names.insert(name.as_str()) {
                return Err(format!("two repositories are called {name}"));
            }
        }
        match self.s3_profile.iter().find(|(name, _)| !names.contains(name.as_str())) {
            Some((name, _)) => Err(format!("--s3-profile: there is no repository {name:?}")),
            None => Ok(()),
        }
    }

    /// How to get to a repository.
    pub(crate) fn way(&self, name: &str) -> ConnectOptions {
        let profile = self.s3_profile.iter().find(|(of, _)| of == name).map(|(_, profile)| profile.clone());
        let (ca_file, limit_upload, addressing) = (self.ca_file.clone(), self.limit_upload, self.s3_addressing.into());
        ConnectOptions { ca_file, limit_upload, addressing, profile, access: None }.with_ca_of_environment()
    }
}

/// Who makes the authority of a cluster's certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AuthorityOf {
    /// The coordinator makes it if there is none, and renews it
    Own,
    /// Somebody else makes and renews it (cert-manager, say); the coordinator waits for it
    Given,
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
