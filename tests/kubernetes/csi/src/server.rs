//! Serves all services on the driver's socket.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::Args;
use crate::csi::controller_server::ControllerServer;
use crate::csi::group_controller_server::GroupControllerServer;
use crate::csi::identity_server::IdentityServer;
use crate::csi::node_server::NodeServer;
use crate::csi::snapshot_metadata_server::SnapshotMetadataServer;
use crate::state::State;

/// The driver: what all services share.
#[derive(Debug, Clone)]
pub(crate) struct Driver {
    pub(crate) args: Arc<Args>,
    pub(crate) state: Arc<State>,
}

pub(crate) async fn serve(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    let state = Arc::new(State::open(&args.disk, &args.cluster)?);
    let driver = Driver { args: Arc::new(args), state };
    let socket = listen(&driver.args.socket)?;
    Server::builder()
        .add_service(IdentityServer::new(driver.clone()))
        .add_service(ControllerServer::new(driver.clone()))
        .add_service(GroupControllerServer::new(driver.clone()))
        .add_service(SnapshotMetadataServer::new(driver.clone()))
        .add_service(NodeServer::new(driver))
        .serve_with_incoming(socket)
        .await?;
    Ok(())
}

fn listen(socket: &Path) -> std::io::Result<UnixListenerStream> {
    // One that was killed left its socket.
    match fs::remove_file(socket) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    UnixListener::bind(socket).map(UnixListenerStream::new)
}
