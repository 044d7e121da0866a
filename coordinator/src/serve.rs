//! The process: opens the repository, listens, and stops in order.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use milkrun_coordinator::inventory::InventoryError;
use milkrun_coordinator::inventory::file::InventoryFile;
use milkrun_coordinator::leader::{Leadership, StoreLease};
use milkrun_coordinator::rpc::transport::accept::accept;
use milkrun_coordinator::rpc::transport::connections::Connections;
use milkrun_coordinator::rpc::transport::limits::Limits;
use milkrun_coordinator::secret::{self, SecretError};
use milkrun_coordinator::{Coordinator, rpc};
use milkrun_identity::tls::{Credentials, TlsError};
use milkrun_observe::http::{self, HttpError};
use milkrun_observe::signals::{SignalError, Stop};
use milkrun_repository::index::IndexCache;
use milkrun_repository::point::catalog::chain;
use milkrun_repository::repository::{Credential, OpenError};
use milkrun_repository::store::Failure;
use milkrun_repository::store::connect::{ConnectError, Way};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::args::Args;

/// How long giving way to the next coordinator may take.
const RELEASE_LIMIT: Duration = Duration::from_secs(5);

/// Why the coordinator can't run.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("no password: set MILKRUN_PASSWORD_FILE or MILKRUN_PASSWORD")]
    NoSecret,
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
    #[error("serving failed")]
    Serve(#[from] tonic::transport::Error),
}

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
    let credentials = Credentials::new(&args.tls);
    credentials.check()?;
    let inventory = InventoryFile::open(&args.inventory)?;
    let password = secret::from_environment()?.ok_or(ServeError::NoSecret)?;
    let way = Way { ca_file: args.ca_file, limit_upload: args.limit_upload, addressing: args.s3_addressing.into() };
    let place = way.with_ca_of_environment().connect(&args.repository).await?;
    let repository =
        Arc::new(milkrun_repository::repository::open(place.store, Credential::Password(&password)).await?);
    drop(password);
    let cache = IndexCache::new(IndexCache::folder(args.cache).as_deref(), &repository.config.id, &repository.ring);
    if let Err(e) = cache.witness().stands_at(&repository.store.address()) {
        // In a disaster it may be all there is: it is served, and backups are refused.
        tracing::error!("{e}");
    }
    let listener = TcpListener::bind(args.listen).await.map_err(|e| ServeError::Listen(args.listen, e))?;
    let address = listener.local_addr().map_err(|e| ServeError::Listen(args.listen, e))?;
    let stop = Stop::on_signal()?;
    let (leads, ready) = watch::channel(false);
    if let Some(address) = args.metrics {
        http::serve(address, ready).await?;
    }
    let name = nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok()).unwrap_or_default();
    let leadership: Arc<dyn Leadership> = Arc::new(StoreLease::new(repository.clone(), name, args.take_over_after));
    let epoch = tokio::select! {
        epoch = leadership.campaign() => epoch?,
        () = stop.wanted() => return Ok(()),
    };
    let coordinator = Coordinator::leading(repository, cache, inventory, epoch, leadership.clone());
    tracing::info!(repository = %args.repository, %address, epoch, "serving");
    let serving = async {
        coordinator.take_over().await?;
        leads.send_replace(true);
        let accepted = accept(listener, credentials, Connections::new(Limits::of_process()));
        rpc::serve_all(coordinator, accepted).await.map_err(ServeError::from)
    };
    tokio::select! {
        served = serving => served?,
        // At once: runs are left as they are, and their journals say how far they came. What ends in order here would only
        // look to them as if their agents failed.
        () = stop.wanted() => {}
        // Whoever leads now goes on with the runs; what this process does from here on counts nowhere.
        why = leadership.hold(epoch) => return Err(ServeError::Superseded(why)),
    }
    tracing::info!("stopping; the next coordinator goes on with what is under way");
    // Else the next one waits a little.
    let _ = tokio::time::timeout(RELEASE_LIMIT, leadership.release(epoch)).await;
    Ok(())
}
