//! The coordinator process: opens the repositories, listens, and stops in order.

use std::process::ExitCode;
use std::time::Duration;

use milkrun_coordinator::inventory::file::InventoryFile;
use milkrun_coordinator::repositories::Repositories;
use milkrun_coordinator::rpc::transport::accept::accept;
use milkrun_coordinator::rpc::transport::connections::Connections;
use milkrun_coordinator::rpc::transport::limits::Limits;
use milkrun_coordinator::{Shared, rpc};
use milkrun_identity::tls::Credentials;
use milkrun_observe::http;
use milkrun_observe::signals::Stop;
use milkrun_repository::point::catalog::chain;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::args::Args;
use crate::cluster;
use crate::error::ServeError;
use crate::led_repositories::LedRepositories;

/// How long giving up the leases may take.
const RELEASE_LIMIT: Duration = Duration::from_secs(5);

pub(crate) fn run(args: Args) -> ExitCode {
    milkrun_observe::logs::begin(args.log);
    let result = match tokio::runtime::Runtime::new() {
        Ok(runtime) => {
            let result = runtime.block_on(serve(args));
            runtime.shutdown_timeout(Duration::from_secs(1));
            result.map_err(|e| chain(&e))
        }
        Err(e) => Err(format!("can't start: {e}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tracing::error!("{why}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(args: Args) -> Result<(), ServeError> {
    if args.in_cluster {
        return cluster::serve(args).await;
    }
    args.check().map_err(ServeError::Args)?;
    let needed = |option: &str| ServeError::Args(format!("{option} is missing"));
    let credentials = Credentials::new(args.tls.as_ref().ok_or_else(|| needed("--tls"))?);
    credentials.check()?;
    let inventory = InventoryFile::open(args.inventory.as_ref().ok_or_else(|| needed("--inventory"))?)?;
    let repositories = Repositories::new(Shared::new(inventory, args.cluster_id.clone()));
    let leading = LedRepositories::open(&args, repositories.clone()).await?;
    let listener = TcpListener::bind(args.listen).await.map_err(|e| ServeError::Listen(args.listen, e))?;
    let address = listener.local_addr().map_err(|e| ServeError::Listen(args.listen, e))?;
    let stop = Stop::on_signal()?;
    let (leads, ready) = watch::channel(false);
    if let Some(address) = args.metrics {
        http::serve(address, ready).await?;
    }
    let leading = tokio::select! {
        leading = leading.campaign() => leading?,
        () = stop.wanted() => return Ok(()),
    };
    for led in leading.led() {
        tracing::info!(repository = led.name(), url = %led.url(), %address, epoch = led.epoch(), "serving");
    }
    let serving = async {
        leading.take_over().await?;
        leads.send_replace(true);
        let accepted = accept(listener, credentials, Connections::new(Limits::of_process()));
        rpc::serve_all(repositories, accepted).await.map_err(ServeError::from)
    };
    tokio::select! {
        served = serving => served?,
        // The process stops at once: runs are left as they are, and their journals say how far they came. Ending the sessions in
        // order here would only look to the runs as if their agents failed.
        () = stop.wanted() => {}
        // The new leader goes on with the runs; nothing that this process does from here on counts.
        why = leading.hold() => return Err(ServeError::Superseded(why)),
    }
    tracing::info!("stopping; the next coordinator goes on with what is under way");
    // If this fails, the next leader waits a little.
    let _ = tokio::time::timeout(RELEASE_LIMIT, leading.release()).await;
    Ok(())
}
