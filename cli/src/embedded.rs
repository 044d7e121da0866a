//! Coordinator and agent in one process. They use the same gRPC services, over an in-memory stream.

use std::collections::HashMap;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use milkrun_agent::device::{open_stream, run_command};
use milkrun_agent::{Agent, AgentOptions};
use milkrun_coordinator::repositories::Repositories;
use milkrun_coordinator::rpc::transport::connection::Connection;
use milkrun_coordinator::{Coordinator, Shared, inventory, rpc};
use milkrun_identity::channel::{CONNECTION_WINDOW, STREAM_WINDOW};
use milkrun_repository::Repository;
use milkrun_repository::id::ClusterId;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::args::{Global, Named};
use crate::driver::Driver;
use crate::output::CliError;
use crate::place::{self, OpenedStore};

/// The size of the pipe between both sides.
const PIPE_BYTES: usize = 4 << 20;

/// The path that stands for a command in an order. The agent is in this process and knows the command itself.
pub(crate) fn path_of(command: &Named) -> String {
    format!("command:{}", command.name)
}

/// Starts coordinator and agent. The agent reads the output of `commands` as streams.
pub(crate) async fn start(
    repository: Repository,
    place: &OpenedStore,
    commands: &[Named],
    global: &Global,
) -> Result<Driver, CliError> {
    let cache = place::cache(&repository, global);
    let shared = Shared::new(inventory::Embedded, ClusterId::default());
    let repositories = Repositories::of_one(Coordinator::new(shared, repository, cache));
    let (agent_dial, agent_accept) = pipe();
    let (control_dial, control_accept) = pipe();
    tokio::spawn(rpc::serve_agents(repositories.clone(), agent_accept));
    tokio::spawn(rpc::serve_control(repositories, control_accept));
    let mut options = AgentOptions::new(host(), place.redeem.clone());
    options.memory = global.memory;
    if let Some(threads) = global.threads {
        options.threads = threads.into();
    }
    let commands: HashMap<String, String> = commands.iter().map(|c| (path_of(c), c.path.clone())).collect();
    options.open.stream = Arc::new(move |path, allowed| match commands.get(path) {
        Some(command) => run_command(command),
        None => open_stream(path, allowed),
    });
    let agent = Agent::new(options).map_err(|e| CliError::from_error(&e))?;
    let channel = dial(agent_dial).await?;
    tokio::spawn(async move {
        // Both end with the process.
        let (_never, stop) = tokio::sync::watch::channel(false);
        if let Err(e) = agent.run(channel, stop).await {
            tracing::debug!(error = %e, "the agent ended");
        }
    });
    Ok(Driver::over(dial(control_dial).await?, false))
}

/// Starts a coordinator without an agent, for commands that read the repository alone.
pub(crate) async fn start_reader(repository: Repository, global: &Global) -> Result<Driver, CliError> {
    let cache = place::cache(&repository, global);
    let shared = Shared::new(inventory::Embedded, ClusterId::default());
    let repositories = Repositories::of_one(Coordinator::new(shared, repository, cache));
    let (control_dial, control_accept) = pipe();
    tokio::spawn(rpc::serve_control(repositories, control_accept));
    Ok(Driver::over(dial(control_dial).await?, false))
}

/// This host's name, which is recorded in restore points for people.
pub(crate) fn host() -> String {
    nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok()).unwrap_or_else(|| "unknown".into())
}

type Dial = mpsc::Sender<Result<Connection<DuplexStream>, std::io::Error>>;
type Accept = ReceiverStream<Result<Connection<DuplexStream>, std::io::Error>>;

/// A pair of ends: one makes connections, the other accepts them.
fn pipe() -> (Dial, Accept) {
    let (dial, accept) = mpsc::channel(4);
    (dial, ReceiverStream::new(accept))
}

async fn dial(dial: Dial) -> Result<Channel, CliError> {
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let dial = dial.clone();
        async move {
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            dial.send(Ok(Connection::local(theirs)))
                .await
                .map_err(|_| std::io::Error::other("the other side ended"))?;
            Ok::<_, std::io::Error>(TokioIo::new(ours))
        }
    });
    Endpoint::from_static("http://in-memory")
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect_with_connector(connector)
        .await
        .map_err(|e| CliError::from_error(&e))
}
