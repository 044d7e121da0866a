//! One file per command. Each does its work and prints the result.

mod agents;
pub(crate) mod backup;
mod certs;
mod doctor;
mod init;
mod points;
mod repositories;
pub(crate) mod restore;
mod runs;
mod show;
mod try_it;
pub(crate) mod verify;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::CommandFactory;
use milkrun_observe::start::{check_threads, ignores_hangup};
use milkrun_proto::control::v1::{CancelRequest, control_client::ControlClient};
use tonic::transport::Channel;

use crate::args::{self, Args, Command, Global};
use crate::driver::Driver;
use crate::output::{self, CliError, Exit};
use crate::{embedded, place};

/// The largest number of threads that a command starts, with those of tokio and the agent's for devices.
const THREADS: usize = 24;
/// Threads that wait for the network. CPU work has its own threads.
const ASYNC_THREADS: usize = 2;

pub(crate) fn run(args: Args) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MILKRUN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
    if let Command::Completion { shell } = args.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Args::command(), "milkrun", &mut script);
        output::print(&String::from_utf8_lossy(&script));
        return output::end(Exit::Done);
    }
    if let Err(e) = check_threads(THREADS) {
        return output::fail(&CliError::from_error(&e), args.global.json);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(ASYNC_THREADS).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return output::fail(&CliError::failed(format!("can't start: {e}")), args.global.json),
    };
    let json = args.global.json;
    let result = runtime.block_on(dispatch(args));
    // Threads that still wait for a pipe must not keep the process alive.
    runtime.shutdown_background();
    match result {
        Ok(exit) => output::end(exit),
        Err(e) => output::fail(&e, json),
    }
}

async fn dispatch(args: Args) -> Result<Exit, CliError> {
    let global = args.global;
    match args.command {
        Command::Init(a) => init::run(a, &global).await,
        Command::Backup(a) => backup::run(a, &global).await,
        Command::Points(a) => points::run(a, &global).await,
        Command::Show(a) => show::run(a, &global).await,
        Command::Restore(a) => restore::run(a, &global).await,
        Command::Verify(a) => verify::run(a, &global).await,
        Command::Try(a) => try_it::run(a, &global).await,
        Command::Certs { what } => certs::run(what, &global),
        Command::Doctor(a) => doctor::run(a, &global).await,
        Command::Runs => runs::list(&global).await,
        Command::Watch { run } => runs::watch(run, &global).await,
        Command::Cancel { run } => runs::cancel(run, &global).await,
        Command::Repositories => repositories::list(&global).await,
        Command::Agents => agents::list(&global).await,
        Command::Drain { node, back } => agents::drain(&node, back, &global).await,
        Command::Completion { .. } => Ok(Exit::Done),
    }
}

/// The coordinator that a command asks which only reads: the remote one, or one in this process. And the name of the repository that is
/// meant there.
async fn reader(repository: &args::Repository, global: &Global) -> Result<(Driver, String), CliError> {
    if let Some(url) = &global.coordinator {
        return Ok((Driver::connect(url, global).await?, global.repository_name.clone().unwrap_or_default()));
    }
    let (repository, _) = place::open(repository.url()?, global).await?;
    place::check_address(&repository, false, global)?;
    Ok((embedded::start_reader(repository, global).await?, String::new()))
}

/// Stops a run cleanly at the first Ctrl-C, and at once at the second. Dropping this ends it.
struct Interrupt(tokio::task::JoinHandle<()>);

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Interrupt {
    /// If the coordinator is `remote`, its run goes on: only this command ends.
    fn watch(control: ControlClient<Channel>, run: tokio::sync::watch::Receiver<Vec<u8>>, remote: bool) -> Self {
        Self(tokio::spawn(async move {
            let Ok(mut signals) = Signals::new() else { return };
            signals.next().await;
            if remote {
                let run = run.borrow().iter().map(|b| format!("{b:02x}")).collect::<String>();
                output::note(&format!(
                    "milkrun: the run goes on; `milkrun watch {run}` follows it, `milkrun cancel {run}` stops it"
                ));
                std::process::exit(Exit::Failed as i32);
            }
            output::note("milkrun: stopping; once more to stop at once");
            let run = run.borrow().clone();
            if run.is_empty() {
                // No run has begun that could be stopped cleanly.
                std::process::exit(Exit::Failed as i32);
            }
            let mut control = control;
            // This is not awaited, so that a second signal counts even if nobody answers. If the run has just ended,
            // the call fails, which does not matter.
            tokio::spawn(async move { control.cancel(CancelRequest { run: run.into() }).await });
            // A wrapper may pass on a signal that the terminal sends to us, too: both are one request.
            tokio::time::sleep(SAME_REQUEST).await;
            signals.forget();
            if tokio::time::timeout(STOP_LIMIT, signals.next()).await.is_err() {
                let limit = STOP_LIMIT.as_secs();
                output::note(&format!(
                    "milkrun: the run did not stop within {limit} s (does the store answer?), and is left as it is: \
                     nothing of it is listed"
                ));
            }
            std::process::exit(Exit::Failed as i32);
        }))
    }
}

/// How long a run may take to stop cleanly. Most supervisors send SIGKILL 30 s after SIGTERM.
const STOP_LIMIT: std::time::Duration = std::time::Duration::from_secs(20);

/// Signals that come within this time are one request.
const SAME_REQUEST: std::time::Duration = std::time::Duration::from_millis(300);

/// Ctrl-C, SIGTERM, or a terminal that is closed. One listener is kept for each, so that a signal between two waits
/// counts.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// `None` if it is to be ignored.
    hangup: Option<tokio::signal::unix::Signal>,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: if ignores_hangup() { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    /// Drops the signals that came since the last wait.
    fn forget(&mut self) {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        for signal in [&mut self.interrupt, &mut self.terminate].into_iter().chain(&mut self.hangup) {
            while signal.poll_recv(&mut context).is_ready() {}
        }
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            Some(_) = async { self.hangup.as_mut()?.recv().await } => {}
        }
    }
}

/// Identifies a device or file: two paths of the same one give the same text.
fn identity(path: &str) -> String {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    match std::fs::metadata(path) {
        Ok(m) if m.file_type().is_block_device() => format!("device {}", m.rdev()),
        Ok(m) => format!("file {} {}", m.dev(), m.ino()),
        Err(_) => path.to_owned(),
    }
}

/// Asks a yes-or-no question at the terminal; without one the answer is no.
fn confirm(question: &str) -> bool {
    if !std::io::stdin().is_terminal() {
        return false;
    }
    output::note(&format!("{question} [y/N]"));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// Asks for confirmation of a lock that is longer than a year: a compliance lock can't be taken back.
fn check_lock_for(lock_for: std::time::Duration, yes: bool) -> Result<(), CliError> {
    const YEAR: u64 = 365 * 86400;
    if lock_for.as_secs() <= YEAR || yes {
        return Ok(());
    }
    let time = crate::units::time(lock_for);
    if confirm(&format!("Lock for {time}? A compliance lock can't be taken back by anybody.")) {
        return Ok(());
    }
    Err(CliError::usage(format!("a lock of {time} is beyond a year: pass --yes if you mean it")))
}
