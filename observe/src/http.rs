//! `/metrics`, `/healthz`, `/readyz`: plain HTTP, nothing secret.

use std::net::SocketAddr;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Why nobody can look.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address is taken, or none of ours.
    #[error("can't listen on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// Metrics are collected already.
    #[error("can't collect metrics")]
    Metrics(#[from] BuildError),
}

/// Collects metrics and serves them, and whether the process is alive (it answers) and ready (it can do its work).
///
/// # Errors
/// [`HttpError`].
pub async fn serve(address: SocketAddr, ready: watch::Receiver<bool>) -> Result<(), HttpError> {
    let metrics = PrometheusBuilder::new().install_recorder()?;
    let listener = TcpListener::bind(address).await.map_err(|e| HttpError::Listen(address, e))?;
    let is_ready = move || {
        let ready = *ready.borrow();
        async move {
            match ready {
                true => (StatusCode::OK, "ready\n"),
                false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            }
        }
    };
    let router = Router::new()
        .route("/metrics", get(move || std::future::ready(metrics.render())))
        .route("/healthz", get(|| std::future::ready("alive\n")))
        .route("/readyz", get(is_ready));
    tokio::spawn(async move {
        if let Err(e) = axum::serve(listener, router).await {
            tracing::error!(error = %e, "metrics are served no longer");
        }
    });
    Ok(())
}
