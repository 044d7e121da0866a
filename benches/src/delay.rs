//! `delay`: a TCP proxy that delays each byte in each direction, as a long line does. It does not limit the rate.
//!
//! ```text
//! cargo run --release -p milkrun-benches --bin delay -- 127.0.0.1:9001 127.0.0.1:8333 20
//! ```
//! It listens at the first address and forwards to the second. 20 ms in each direction make a round trip of 40 ms.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Pieces in flight in one direction of a connection: 64 KiB each, so 64 MiB.
const IN_FLIGHT: usize = 1024;
const PIECE: usize = 64 << 10;

async fn carry(
    mut from: impl AsyncReadExt + Unpin + Send + 'static,
    mut to: impl AsyncWriteExt + Unpin,
    delay: Duration,
) {
    let (sender, mut waiting) = mpsc::channel::<(Instant, Bytes)>(IN_FLIGHT);
    tokio::spawn(async move {
        let mut buffer = vec![0; PIECE];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            if sender.send((Instant::now() + delay, Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
                return;
            }
        }
    });
    while let Some((due, bytes)) = waiting.recv().await {
        tokio::time::sleep_until(due).await;
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [listen, server, ms] = args.as_slice() else { return Err("usage: delay LISTEN SERVER MILLISECONDS".into()) };
    let delay = Duration::from_millis(ms.parse()?);
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (client, _) = listener.accept().await?;
        let server = server.clone();
        tokio::spawn(async move {
            let Ok(upstream) = TcpStream::connect(&server).await else { return };
            let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), upstream.into_split());
            tokio::join!(carry(from_client, to_server, delay), carry(from_server, to_client, delay));
        });
    }
}
