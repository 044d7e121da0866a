//! Why the coordinator can't run.

use std::net::SocketAddr;

use milkrun_coordinator::inventory::InventoryError;
use milkrun_coordinator::secret::SecretError;
use milkrun_identity::tls::TlsError;
use milkrun_observe::http::HttpError;
use milkrun_observe::signals::SignalError;
use milkrun_repository::repository::OpenError;
use milkrun_repository::store::Failure;
use milkrun_repository::store::connect::ConnectError;

use crate::cluster::error::ClusterError;

/// Why the coordinator can't run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("{0}")]
    Args(String),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("no password: set MILKRUN_PASSWORD_FILE or MILKRUN_PASSWORD")]
    NoSecret,
    #[error("none of the repositories can be used: {0}")]
    NoRepository(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("can't open the repository")]
    Open(#[from] OpenError),
    #[error("can't listen on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
    #[error(transparent)]
    Signals(#[from] SignalError),
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("this coordinator leads no longer: {0}")]
    Superseded(String),
    #[error("can't ask the store who leads")]
    Store(#[from] Failure),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("serving failed")]
    Serve(#[from] tonic::transport::Error),
}
