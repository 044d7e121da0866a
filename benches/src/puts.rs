//! `puts`: a bare loop of parallel PUTs, for comparison with an agent's uploads. The PUTs are presigned, have checksum
//! and lock headers, and are of equal size; as many are in flight. Everything else is left out.
//!
//! ```text
//! puts s3://bucket/prefix BYTES-EACH COUNT IN-FLIGHT      prints the bytes per second
//! ```

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt;
use milkrun_repository::id::PackId;
use milkrun_repository::store::connect::ConnectOptions;
use milkrun_repository::store::grant::PutTerms;
use milkrun_repository::store::{Key, StoreUrl};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [url, each, count, in_flight] = &args[..] else { return Err("puts URL BYTES-EACH COUNT IN-FLIGHT".into()) };
    let url: StoreUrl = url.parse()?;
    let (each, count, in_flight): (usize, usize, usize) = (each.parse()?, count.parse()?, in_flight.parse()?);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(run(&url, each, count, in_flight))
}

async fn run(url: &StoreUrl, each: usize, count: usize, in_flight: usize) -> Result<(), Box<dyn Error>> {
    let place = ConnectOptions::default().with_ca_of_environment().connect(url).await?;
    let mut body = vec![0; each];
    blake3::Hasher::new().finalize_xof().fill(&mut body);
    let crc32 = crc32fast::hash(&body);
    let (body, place) = (Bytes::from(body), Arc::new(place));
    let began = Instant::now();
    let puts = (0..count).map(|_| {
        let (place, body) = (place.clone(), body.clone());
        async move {
            let terms = PutTerms { key: Key::pack(&PackId::random()), length: each as u64, crc32, lock: None };
            let grant = place.store.grant_put(&terms).await.map_err(|e| e.to_string())?;
            place.redeem.put(&grant, body).await.map(drop).map_err(|e| e.to_string())
        }
    });
    let mut puts = futures::stream::iter(puts).buffer_unordered(in_flight);
    while let Some(done) = puts.next().await {
        done?;
    }
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let rate = (each * count) as f64 / began.elapsed().as_secs_f64();
    Ok(writeln!(std::io::stdout().lock(), "{rate:.0}")?)
}
