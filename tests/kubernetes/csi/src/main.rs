//! A CSI driver for tests. Each volume is one image file on a file system with reflinks, offered by a loop device; a
//! snapshot is a reflink copy. It needs attaching. What real drivers do badly is a switch.

use std::path::PathBuf;

use clap::Parser;

mod capabilities;
mod changed_blocks;
mod commands;
mod controller;
mod file_systems;
mod group;
mod identity;
mod layer;
mod loops;
mod node;
mod pages;
mod register;
mod server;
mod snapshots;
mod state;
mod switches;
mod volumes;

/// The driver's name.
pub(crate) const NAME: &str = "csi.milkrun.test";

/// The messages and services of the Container Storage Interface.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated")]
pub(crate) mod csi {
    tonic::include_proto!("csi.v1");
}

/// What the driver is started with.
#[derive(Debug, Clone, Parser)]
pub(crate) struct Args {
    /// The socket to serve.
    #[arg(long)]
    pub(crate) socket: PathBuf,
    /// The file system that holds volumes and snapshots. All nodes of a cluster share it.
    #[arg(long)]
    pub(crate) disk: PathBuf,
    /// The cluster's name. Files of volumes begin with it.
    #[arg(long)]
    pub(crate) cluster: String,
    /// The node's name.
    #[arg(long)]
    pub(crate) node: String,
    /// The node's zone.
    #[arg(long)]
    pub(crate) zone: String,
}

#[tokio::main]
#[expect(clippy::print_stderr, reason = "its log")]
async fn main() -> std::process::ExitCode {
    let ended = if std::env::args().nth(1).as_deref() == Some("register") {
        register::follow(&register::Args::parse_from(std::env::args().skip(1))).map_err(Into::into)
    } else {
        server::serve(Args::parse()).await
    };
    match ended {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("csi driver: {why}");
            std::process::ExitCode::FAILURE
        }
    }
}
