//! Coordinator and agent in this process, with a store that fails as a script says, and scripted devices.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use hyper_util::rt::TokioIo;
use milkrun_agent::device::{Source, scripted::Scripted};
use milkrun_agent::{Agent, AgentOptions};
use milkrun_coordinator::repositories::Repositories;
use milkrun_coordinator::rpc::transport::connection::Connection;
use milkrun_coordinator::{Coordinator, Shared, inventory, rpc};
use milkrun_proto::control::v1 as control;
use milkrun_proto::control::v1::control_client::ControlClient;
use milkrun_repository::Repository;
use milkrun_repository::chunk::page_cutter::PageCutter;
use milkrun_repository::chunk::stream_cutter::StreamCutter;
use milkrun_repository::config::LockPolicy;
use milkrun_repository::id::ClusterId;
use milkrun_repository::index::IndexCache;
use milkrun_repository::keys::wrapped::Cost;
use milkrun_repository::repository::{InitOptions, init};
use milkrun_repository::store::faulty::{Faulty, Script};
use milkrun_repository::store::grant::Redeem;
use milkrun_repository::store::memory::Memory;
use milkrun_repository::store::retry::{Patience, Retrying};
use milkrun_repository::store::{Operation, SharedStore};
use milkrun_repository::verify::{Options, Report, verify};
use tonic::transport::{Channel, Endpoint};

/// A repository, in memory by default, and scripted devices by path.
pub struct World {
    store: SharedStore,
    redeem: Arc<dyn Redeem>,
    repository: Repository,
    folder: tempfile::TempDir,
    /// The device that is read at each path.
    pub devices: Arc<Mutex<HashMap<String, Scripted>>>,
}

/// A script without faults.
pub fn sound() -> Script {
    Arc::new(|_: u64, _: Operation, _: &str| None)
}

#[expect(clippy::expect_used, reason = "a test helper")]
impl World {
    /// A fresh repository in memory with these locks.
    ///
    /// # Panics
    /// If it can't be made.
    pub async fn new(lock: LockPolicy) -> Self {
        let memory = Arc::new(Memory::new());
        Self::over(memory.clone(), memory, lock).await
    }

    /// A fresh repository in `store`, whose grants `redeem` uses.
    ///
    /// # Panics
    /// If it can't be made.
    pub async fn over(store: SharedStore, redeem: Arc<dyn Redeem>, lock: LockPolicy) -> Self {
        let options =
            InitOptions { lock, pages: PageCutter::DEFAULT, streams: StreamCutter::DEFAULT, cost: Cost::TEST };
        let made = init(store.clone(), b"password", options).await.expect("a repository");
        let folder = tempfile::tempdir().expect("a folder");
        Self { store, redeem, repository: made.repository, folder, devices: Arc::default() }
    }

    /// Sets the device that is read at `path` from now on.
    ///
    /// # Panics
    /// Never, but for a poisoned lock.
    pub fn device(&self, path: &str, device: Scripted) {
        self.devices.lock().expect("not poisoned").insert(path.into(), device);
    }

    /// Sets a device of these bytes, without faults.
    pub fn content(&self, path: &str, content: Vec<u8>) {
        self.device(path, Scripted { content: Arc::new(content), mishap: None, size_at_end: None });
    }

    /// Backs up `paths` as volumes of the same name, with the store failing as the script says.
    ///
    /// # Errors
    /// What the coordinator answers.
    ///
    /// # Panics
    /// If coordinator and agent can't be started.
    pub async fn back_up(&self, paths: &[&str], script: Script) -> Result<control::BackupDone, tonic::Status> {
        let mut control = self.start(script).await;
        let source = |p: &&str| control::Source { name: (*p).into(), path: (*p).into(), ..Default::default() };
        let order = control::BackupOrder {
            application: "shop".into(),
            sources: paths.iter().map(source).collect(),
            parent: "auto".into(),
            level: 3,
            host: "test".into(),
            ..Default::default()
        };
        let first = control::BackupRequest { message: Some(control::backup_request::Message::Order(order)) };
        let mut events = control.backup(tokio_stream::iter([first])).await?.into_inner();
        while let Some(event) = events.message().await? {
            if let Some(control::backup_event::Event::Done(done)) = event.event {
                return Ok(done);
            }
        }
        Err(tonic::Status::internal("no result"))
    }

    /// Restores volumes to files in the world's folder.
    ///
    /// # Errors
    /// What the coordinator answers.
    ///
    /// # Panics
    /// If coordinator and agent can't be started.
    pub async fn restore(&self, names: &[&str], script: Script) -> Result<control::RestoreDone, tonic::Status> {
        let mut control = self.start(script).await;
        let target = |n: &&str| control::Target {
            name: (*n).into(),
            path: self.target(n).display().to_string(),
            ..Default::default()
        };
        let request = control::RestoreRequest {
            selector: "shop".into(),
            targets: names.iter().map(target).collect(),
            force: true,
            ..Default::default()
        };
        let mut events = control.restore(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            if let Some(control::restore_event::Event::Done(done)) = event.event {
                return Ok(done);
            }
        }
        Err(tonic::Status::internal("no result"))
    }

    /// Where a volume is restored to.
    pub fn target(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(format!("{name}.restored"))
    }

    /// The repository, for tests that act as somebody who has its secret.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// How many points are listed.
    ///
    /// # Panics
    /// If they can't be listed.
    pub async fn points(&self) -> usize {
        self.repository.catalog().list(None).await.expect("a listing").points.len()
    }

    /// Verifies everything.
    ///
    /// # Panics
    /// If the store can't be asked.
    pub async fn verify(&self) -> Report {
        let options = Options { data_percent: 100, parallel: 4, ..Options::default() };
        verify(&self.repository, &self.cache(), &options).await.expect("a report")
    }

    fn cache(&self) -> IndexCache {
        IndexCache::new(Some(self.folder.path()), &self.repository.config.id, &self.repository.ring)
    }

    async fn start(&self, script: Script) -> ControlClient<Channel> {
        let store = Faulty::new(self.store.clone(), script.clone());
        let redeem = Faulty::new(self.redeem.clone(), script).counting_with(&store);
        let store: SharedStore = Arc::new(Retrying::new(store, Patience::TEST));
        let redeem: Arc<dyn Redeem> = Arc::new(Retrying::new(redeem, Patience::TEST));
        let repository = self.repository.over(store);
        let shared = Shared::new(inventory::Embedded, ClusterId::default());
        let repositories = Repositories::of_one(Coordinator::new(shared, repository, self.cache()));
        let mut options = AgentOptions::new("test", redeem);
        options.threads = 2;
        options.memory = 64 << 20;
        let devices = self.devices.clone();
        options.open.volume = Arc::new(move |path: &Path, _| {
            let devices = devices.lock().expect("not poisoned");
            let device = devices.get(path.to_str().unwrap_or_default()).expect("a scripted device");
            Ok(Box::new(device.clone()) as Box<dyn Source>)
        });
        let (agents, agent_channel) = pipe();
        let (controls, control_channel) = pipe();
        tokio::spawn(rpc::serve_agents(repositories.clone(), agents));
        tokio::spawn(rpc::serve_control(repositories, controls));
        let agent = Agent::new(options).expect("an agent");
        let channel = agent_channel.await;
        tokio::spawn(async move {
            let (_never, stop) = tokio::sync::watch::channel(false);
            agent.run(channel, stop).await
        });
        ControlClient::new(control_channel.await)
    }
}

type Accept = tokio_stream::wrappers::ReceiverStream<Result<Connection<tokio::io::DuplexStream>, std::io::Error>>;

#[expect(clippy::expect_used, reason = "a test helper")]
fn pipe() -> (Accept, impl Future<Output = Channel>) {
    let (dial, accept) = tokio::sync::mpsc::channel(4);
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let dial = dial.clone();
        async move {
            let (ours, theirs) = tokio::io::duplex(1 << 20);
            dial.send(Ok(Connection::local(theirs))).await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(ours))
        }
    });
    let channel = async move {
        Endpoint::from_static("http://in-memory").connect_with_connector(connector).await.expect("a channel")
    };
    (accept.into_stream(), channel)
}

trait IntoStream {
    fn into_stream(self) -> Accept;
}

impl IntoStream for tokio::sync::mpsc::Receiver<Result<Connection<tokio::io::DuplexStream>, std::io::Error>> {
    fn into_stream(self) -> Accept {
        Accept::new(self)
    }
}
