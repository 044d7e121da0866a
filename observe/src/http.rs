//! `/metrics`, `/healthz`, `/readyz`: plain HTTP, nothing secret. Whoever connects and says nothing is cut off, and no more than a few are
//! served at once: anybody may reach this port.

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

/// Connections at once; those beyond are closed.
const CONNECTIONS: usize = 64;
/// How long one may take to ask, and to take its answer.
const TIME: Duration = Duration::from_secs(10);

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
    tokio::spawn(accept(listener, router));
    Ok(())
}

async fn accept(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(e) => {
                // Too many open files, mostly: it passes.
                tracing::warn!(error = %e, "metrics: can't accept a connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let router = router.clone();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(TIME, answer(connection, router)).await;
            drop(place);
        });
    }
}

/// One question, one answer.
async fn answer(connection: TcpStream, router: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(TIME)
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

    /// Connections that say nothing hold the places of others for a while, and not for ever.
    #[tokio::test]
    async fn who_says_nothing_is_cut_off() {
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
        tokio::time::sleep(TIME + Duration::from_millis(500)).await;
        assert!(ask().await.unwrap().ends_with("alive\n"), "their places are free");
        let mut first = silent.swap_remove(0);
        assert_eq!(first.read(&mut [0]).await.unwrap(), 0, "it is closed");
    }
}
