//! The process: opens the repository, listens, and stops in order.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use milkrun_coordinator::inventory::InventoryError;
use milkrun_coordinator::inventory::file::InventoryFile;
use milkrun_coordinator::secret::{self, SecretError};
use milkrun_coordinator::{Coordinator, rpc};
use milkrun_identity::tls::{Credentials, TlsError};
use milkrun_repository::index::{CacheError, IndexCache};
use milkrun_repository::point::catalog::chain;
use milkrun_repository::repository::OpenError;
use milkrun_repository::store::connect::{ConnectError, Way};
use tokio::net::TcpListener;

use crate::args::{Args, LogFormat};

/// How long connections may take to end once the process is told to stop.
const STOP_LIMIT: Duration = Duration::from_secs(10);

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
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error("can't listen on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
    #[error("can't listen for signals")]
    Signals(#[source] std::io::Error),
    #[error("serving failed")]
    Serve(#[from] tonic::transport::Error),
}

pub(crate) fn run(args: Args) -> ExitCode {
    log_to_stderr(args.log);
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

fn log_to_stderr(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MILKRUN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let log = log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

async fn serve(args: Args) -> Result<(), ServeError> {
    let credentials = Credentials::new(&args.tls);
    credentials.check()?;
    let inventory = InventoryFile::open(&args.inventory)?;
    let password = secret::from_environment()?.ok_or(ServeError::NoSecret)?;
    let way = Way { ca_file: args.ca_file, limit_upload: args.limit_upload, addressing: args.s3_addressing.into() };
    let place = way.with_ca_of_environment().connect(&args.repository).await?;
    let repository = milkrun_repository::repository::open(place.store, &password).await?;
    drop(password);
    let cache = IndexCache::new(&IndexCache::folder(args.cache), &repository.config.id)?;
    let listener = TcpListener::bind(args.listen).await.map_err(|e| ServeError::Listen(args.listen, e))?;
    let address = listener.local_addr().map_err(|e| ServeError::Listen(args.listen, e))?;
    let coordinator = Coordinator::new(repository, cache, inventory);
    tracing::info!(repository = %args.repository, %address, "serving");
    let mut stopped = stop_on_signal()?;
    let mut stop = stopped.clone();
    let served = rpc::serve_all(coordinator, rpc::connection::accept(listener, credentials), async move {
        // Whoever could say so is gone: nobody stops us.
        if stop.wait_for(|&stop| stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    });
    let bound = async move {
        if stopped.wait_for(|&stop| stop).await.is_err() {
            std::future::pending::<()>().await;
        }
        tracing::info!("stopping");
        tokio::time::sleep(STOP_LIMIT).await;
    };
    tokio::select! {
        served = served => Ok(served?),
        // Agents stay connected for as long as they can.
        () = bound => Ok(()),
    }
}

/// Becomes true at SIGTERM or Ctrl-C; the second one ends the process at once.
fn stop_on_signal() -> Result<tokio::sync::watch::Receiver<bool>, ServeError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        loop {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            if stop.send_replace(true) {
                std::process::exit(1);
            }
        }
    });
    Ok(stopped)
}
