//! `init_cut`: makes a repository with another average length of chunks, for `benches/sizes`.
//!
//! ```text
//! MILKRUN_PASSWORD=bench init_cut file:///dev/shm/repository 64       KiB, a power of two
//! ```

use std::error::Error;

use milkrun_repository::chunk::page_cutter::PageCutter;
use milkrun_repository::chunk::stream_cutter::StreamCutter;
use milkrun_repository::config::LockPolicy;
use milkrun_repository::keys::wrapped::Cost;
use milkrun_repository::repository::{InitOptions, init};
use milkrun_repository::store::StoreUrl;
use milkrun_repository::store::connect::ConnectOptions;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [url, average] = &args[..] else { return Err("init_cut URL KIB".into()) };
    let avg_pages = average.parse::<u32>()? / 4;
    // The proportions are those of the default.
    let pages =
        PageCutter { min_pages: (avg_pages / 4).max(1), avg_pages, max_pages: avg_pages * 4, ..PageCutter::DEFAULT };
    pages.check()?;
    let password = std::env::var("MILKRUN_PASSWORD")?;
    let options = InitOptions { lock: LockPolicy::NONE, pages, streams: StreamCutter::DEFAULT, cost: Cost::TEST };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let place = ConnectOptions::default().with_ca_of_environment().connect(&url.parse::<StoreUrl>()?).await?;
        init(place.store, password.as_bytes(), options).await?;
        Ok(())
    })
}
