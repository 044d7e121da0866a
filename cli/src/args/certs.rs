//! The arguments of `certs`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};
use milkrun_identity::{NodeName, Role};

use crate::units;

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
