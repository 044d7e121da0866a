//! The agent's process: connects to a coordinator, serves, and connects again until it is told to stop.

use std::process::ExitCode;
use std::time::Duration;

use milkrun_agent::device::allowed::AllowedPaths;
use milkrun_agent::freeze::Freezer;
use milkrun_agent::session::SessionError;
use milkrun_agent::{Agent, AgentOptions};
use milkrun_identity::channel::{CoordinatorUrl, DialError, dial};
use milkrun_identity::enrollment::{Enrollment, EnrollmentError};
use milkrun_identity::tls::Credentials;
use milkrun_observe::http::{self, HttpError};
use milkrun_observe::signals::{SignalError, Stop};
use milkrun_repository::point::catalog::chain;
use milkrun_repository::store::connect::{ConnectError, ConnectOptions, patient};
use tokio_util::task::AbortOnDropHandle;

use crate::args::Args;

/// Threads that wait for the network. CPU work and devices have their own threads.
const ASYNC_THREADS: usize = 2;
/// The pause before the first attempt to connect again. It doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// How long a process that is told to stop waits for its file systems to be thawed.
const THAW_LIMIT: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Why the agent can't run.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Tls(#[from] milkrun_identity::tls::TlsError),
    #[error(transparent)]
    Store(#[from] ConnectError),
    #[error(transparent)]
    Threads(#[from] milkrun_agent::workers::StartError),
    #[error(transparent)]
    Signals(#[from] SignalError),
    #[error(transparent)]
    Http(#[from] HttpError),
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionLost {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Session(#[from] SessionError),
}

pub(crate) fn run(args: Args) -> ExitCode {
    milkrun_observe::logs::begin(args.log);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(ASYNC_THREADS).enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(serve(args));
            // Threads that still wait for a device must not keep the process alive.
            runtime.shutdown_background();
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

/// How this agent gets its certificate, where nobody hands it one.
fn enrollment(args: &Args) -> Option<Enrollment> {
    let (token, authority) = (args.token.clone()?, args.authority.clone()?);
    let url = args.coordinator.first()?.clone();
    Some(Enrollment { url, authority, token, folder: args.tls.clone() })
}

fn not_enrolled(e: &EnrollmentError) {
    tracing::warn!(why = chain(e), "no certificate yet; trying again");
}

async fn serve(args: Args) -> Result<(), ServeError> {
    // Before anything that may wait: writers wait for what an earlier process left frozen.
    let allowed = args.kubelet.clone().map_or(AllowedPaths::Any, AllowedPaths::Kubelet);
    let freezer = Freezer::new(allowed.clone(), args.freeze_notes.clone());
    let stop = Stop::on_signal()?;
    // At once, and not when all other work is given back.
    let (early, mut stopped) = (freezer.clone(), stop.watch());
    let thawing = tokio::spawn(async move {
        if stopped.wait_for(|stop| *stop).await.is_ok() {
            close(early).await;
        }
    });
    let served = connect(args, allowed, freezer.clone(), &stop).await;
    close(freezer).await;
    thawing.abort();
    served
}

/// Thaws what is frozen, before the process ends.
async fn close(freezer: Freezer) {
    // A device that hangs must not keep the process alive; its note stays for the next one.
    let closed = tokio::task::spawn_blocking(move || freezer.close());
    let _ = tokio::time::timeout(THAW_LIMIT, closed).await;
}

async fn connect(args: Args, allowed: AllowedPaths, freezer: Freezer, stop: &Stop) -> Result<(), ServeError> {
    let enrollment = enrollment(&args);
    let credentials = match &enrollment {
        Some(enrollment) => tokio::select! {
            credentials = enrollment.enroll_at_last(not_enrolled) => credentials,
            () = stop.wanted() => return Ok(()),
        },
        None => Credentials::new(&args.tls),
    };
    credentials.check()?;
    let _renewing =
        enrollment.map(|e| AbortOnDropHandle::new(tokio::spawn(async move { e.renew(not_enrolled).await })));
    let way = ConnectOptions { ca_file: args.ca_file, limit_upload: args.limit_upload, ..ConnectOptions::default() };
    let redeemer = way.with_ca_of_environment().redeemer()?.files_only_in(args.repository_directory);
    let mut options = AgentOptions::new(args.node.as_str(), patient(redeemer));
    options.memory = args.memory;
    options.volumes = args.volumes.unwrap_or(0);
    options.sync_every = args.sync_every;
    if let Some(threads) = args.threads {
        options.threads = threads.into();
    }
    options.allowed = allowed;
    options.freezer = freezer;
    let agent = Agent::new(options)?;
    let connected = agent.connected();
    if let Some(address) = args.metrics {
        http::serve(address, connected).await?;
    }
    sessions(&agent, &credentials, &args.coordinator, stop).await;
    Ok(())
}

/// Keeps a session with the coordinator, or with one after the other, until this process is told to stop.
async fn sessions(agent: &Agent, credentials: &Credentials, coordinators: &[CoordinatorUrl], stop: &Stop) {
    let mut pause = FIRST_PAUSE;
    for url in coordinators.iter().cycle() {
        let session = async {
            let channel = dial(credentials, url).await?;
            Ok::<_, SessionLost>(agent.run(channel, stop.watch()).await?)
        };
        let mut connection = agent.connected();
        connection.mark_unchanged();
        let ended = session.await;
        if connection.has_changed().unwrap_or(false) {
            // There was a session: a coordinator that led a moment ago may be back soon.
            pause = FIRST_PAUSE;
        }
        if stop.is_wanted() {
            return;
        }
        let why = ended.map_or_else(|e| chain(&e), |()| "the coordinator ended it".into());
        tracing::warn!(coordinator = %url, why, "no session; trying again in {:.1} s", pause.as_secs_f64());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.wanted() => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
