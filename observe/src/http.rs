//! `/metrics`, `/healthz`, `/readyz`: plain HTTP, nothing secret. Anybody may reach this port, so a connection that
//! sends nothing is closed, and the number of connections is limited.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

/// The largest number of connections at once. Further ones are closed.
const CONNECTIONS: usize = 64;
/// How long a connection may take in all.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Why metrics can't be served.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address is in use, or is not an address of this host.
    #[error("can't listen on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// Metrics are collected already.
    #[error("can't collect metrics")]
    Metrics(#[from] BuildError),
}

/// Collects and serves metrics. Also serves whether the process is alive (it answers) and ready (it can do its work).
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
    tokio::spawn(accept(listener, router));
    Ok(())
}

async fn accept(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(e) => {
                // Mostly there are too many open files, which is transient.
                tracing::warn!(error = %e, "metrics: can't accept a connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let router = router.clone();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(TIME_LIMIT, answer(connection, router)).await;
            drop(place);
        });
    }
}

/// Serves one request.
async fn answer(connection: TcpStream, router: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(TIME_LIMIT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(connection), TowerToHyperService::new(router));
    if let Err(e) = served.await {
        tracing::debug!(error = %e, "metrics: a connection broke off");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Silent connections keep others out for a while, but not for ever.
    #[tokio::test]
    async fn a_silent_connection_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(accept(listener, Router::new().route("/healthz", get(|| std::future::ready("alive\n")))));
        let ask = || async {
            let mut connection = TcpStream::connect(address).await?;
            connection.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await?;
            let mut answer = String::new();
            connection.read_to_string(&mut answer).await.map(|_| answer)
        };
        assert!(ask().await.unwrap().ends_with("alive\n"));
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS + 20 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        tokio::time::sleep(TIME_LIMIT + Duration::from_millis(500)).await;
        assert!(ask().await.unwrap().ends_with("alive\n"), "their places are free");
        let mut first = silent.swap_remove(0);
        assert_eq!(first.read(&mut [0]).await.unwrap(), 0, "it is closed");
    }
}
