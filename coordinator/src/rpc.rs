//! The services, and the one place where errors become gRPC statuses.

mod answers;
pub mod control;
pub mod convert;
pub mod download;
mod run_events;
pub mod session;
pub mod status;
pub mod transport;
pub mod upload;

use milkrun_proto::agent::v1::download_server::DownloadServer;
use milkrun_proto::agent::v1::session_server::SessionServer;
use milkrun_proto::agent::v1::upload_server::UploadServer;
use milkrun_proto::control::v1::control_server::ControlServer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_stream::Stream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tower::layer::util::{Identity, Stack};

use crate::repositories::Repositories;
use transport::gate::GateLayer;
use transport::limits::{CONNECTION_WINDOW, REQUEST_BYTES_MAX, SESSION_MESSAGE_BYTES_MAX, STREAM_WINDOW, STREAMS_MAX};

/// Serves agents on these connections until they end.
///
/// # Errors
/// When the transport fails.
pub async fn serve_agents<I, IO>(repositories: Repositories, connections: I) -> Result<(), tonic::transport::Error>
where
    I: Stream<Item = std::io::Result<IO>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let (session, upload, download) = agent_services(&repositories);
    server().add_service(session).add_service(upload).add_service(download).serve_with_incoming(connections).await
}

/// Serves clients on these connections. Agents are not served here.
///
/// # Errors
/// When the transport fails.
pub async fn serve_control<I, IO>(repositories: Repositories, connections: I) -> Result<(), tonic::transport::Error>
where
    I: Stream<Item = std::io::Result<IO>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let control = ControlServer::new(control::Service(repositories)).max_decoding_message_size(REQUEST_BYTES_MAX);
    server().add_service(control).serve_with_incoming(connections).await
}

/// Serves agents and clients on these connections. Their certificates say who may do what.
///
/// # Errors
/// When the transport fails.
pub async fn serve_all<I, IO>(repositories: Repositories, connections: I) -> Result<(), tonic::transport::Error>
where
    I: Stream<Item = std::io::Result<IO>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let (session, upload, download) = agent_services(&repositories);
    let control = ControlServer::new(control::Service(repositories)).max_decoding_message_size(REQUEST_BYTES_MAX);
    let services = server().add_service(session).add_service(upload).add_service(download).add_service(control);
    services.serve_with_incoming(connections).await
}

type AgentServices =
    (SessionServer<session::Service>, UploadServer<upload::Service>, DownloadServer<download::Service>);

fn agent_services(repositories: &Repositories) -> AgentServices {
    let session =
        SessionServer::new(session::Service(repositories.clone())).max_decoding_message_size(SESSION_MESSAGE_BYTES_MAX);
    let upload = UploadServer::new(upload::Service::new(repositories.shared().clone()))
        .max_decoding_message_size(REQUEST_BYTES_MAX);
    let download = DownloadServer::new(download::Service::new(repositories.shared().clone()))
        .max_decoding_message_size(REQUEST_BYTES_MAX);
    (session, upload, download)
}

/// A peer that vanished is noticed after about this time.
const KEEPALIVE: std::time::Duration = std::time::Duration::from_secs(10);

fn server() -> Server<Stack<GateLayer, Identity>> {
    Server::builder()
        .layer(GateLayer)
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
}
