//! The coordinator, as the operator asks it.

use std::collections::BTreeMap;
use std::time::Duration;

use milkrun_identity::channel::{CoordinatorUrl, DialError, dial};
use milkrun_identity::tls::Credentials;
use milkrun_proto::MESSAGE_BYTES_MAX;
use milkrun_proto::control::v1 as control;
use milkrun_proto::control::v1::control_client::ControlClient;
use tokio::sync::Mutex;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// How long a run is followed before the cluster is looked at again: somebody may have deleted what belongs to it.
const FOLLOW_MAX: Duration = Duration::from_secs(2);

/// The coordinator. The connection is made when it is needed, and again when it is lost.
pub struct Coordinator {
    url: CoordinatorUrl,
    credentials: Credentials,
    channel: Mutex<Option<Channel>>,
}

/// Why the coordinator gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It can't be reached now.
    #[error("the coordinator can't be reached: {0}")]
    Away(String),
    /// It refuses, and would do so again.
    #[error("{0}")]
    Refused(String),
}

impl From<Status> for AskError {
    fn from(status: Status) -> Self {
        let text = status.message().to_owned();
        match status.code() {
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Aborted | Code::ResourceExhausted => {
                Self::Away(text)
            }
            // A connection that broke.
            Code::Unknown if status.metadata().is_empty() => Self::Away(text),
            _ => Self::Refused(text),
        }
    }
}

/// A run as it is now.
pub type Run = control::Run;

impl Coordinator {
    /// The coordinator at this URL.
    #[must_use]
    pub fn new(url: CoordinatorUrl, credentials: Credentials) -> Self {
        Self { url, credentials, channel: Mutex::new(None) }
    }

    async fn client(&self) -> Result<ControlClient<Channel>, AskError> {
        let mut channel = self.channel.lock().await;
        let open = match &*channel {
            Some(open) => open.clone(),
            None => {
                let away = |e: DialError| AskError::Away(milkrun_repository::point::catalog::chain(&e));
                channel.insert(dial(&self.credentials, &self.url).await.map_err(away)?).clone()
            }
        };
        Ok(ControlClient::new(open).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Opens a run, or finds the one of the same request.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn open(&self, request: control::OpenRunRequest) -> Result<Run, AskError> {
        Ok(self.client().await?.open_run(request).await?.into_inner())
    }

    /// Adds a volume to a backup.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn add_source(&self, request: control::AddSourceRequest) -> Result<(), AskError> {
        Ok(self.client().await?.add_source(request).await.map(drop)?)
    }

    /// Adds a target to a restore.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn add_target(&self, request: control::AddTargetRequest) -> Result<(), AskError> {
        Ok(self.client().await?.add_target(request).await.map(drop)?)
    }

    /// Freezes mounted file systems, for at most so many seconds: all of them, or none.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn freeze(&self, run: Vec<u8>, mounts: Vec<control::Place>, seconds: u32) -> Result<(), AskError> {
        let request = control::FreezeRequest { run: run.into(), mounts, limit_ms: seconds.saturating_mul(1000) };
        Ok(self.client().await?.freeze(request).await.map(drop)?)
    }

    /// Thaws them. Returns how each of them ended.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn thaw(&self, run: Vec<u8>, mounts: Vec<control::Place>) -> Result<Vec<control::Thawed>, AskError> {
        let request = control::ThawRequest { run: run.into(), mounts };
        Ok(self.client().await?.thaw(request).await?.into_inner().mounts)
    }

    /// Says that nothing more is added.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn finish(&self, order: control::FinishOrder) -> Result<(), AskError> {
        let message = control::finish_run_request::Message::Order(order);
        let request = control::FinishRunRequest { message: Some(message) };
        Ok(self.client().await?.finish(tokio_stream::once(request)).await.map(drop)?)
    }

    /// Follows a run until it is over, or another volume of it is done, or for two seconds. Returns whether it could be followed.
    pub async fn follow(&self, run: Vec<u8>) -> bool {
        let following = async {
            let request = control::WatchRunRequest { run: run.into() };
            let mut states = self.client().await?.watch_run(request).await?.into_inner();
            let mut before = None;
            while let Some(state) = states.message().await? {
                let done = state.volumes.iter().filter(|volume| volume.done).count();
                if state.state() != control::run::State::Running || done > *before.get_or_insert(done) {
                    break;
                }
            }
            Ok::<(), AskError>(())
        };
        // Nothing that matters happened: that is no failure.
        tokio::time::timeout(FOLLOW_MAX, following).await.unwrap_or(Ok(())).is_ok()
    }

    /// Stops a run.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn cancel(&self, run: Vec<u8>) -> Result<(), AskError> {
        let request = control::CancelRequest { run: run.into() };
        Ok(self.client().await?.cancel(request).await.map(drop)?)
    }

    /// The nodes whose agents are connected.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn nodes(&self) -> Result<Vec<String>, AskError> {
        let reply = self.client().await?.list_agents(control::ListAgentsRequest {}).await?.into_inner();
        Ok(reply.agents.into_iter().filter(|agent| agent.connected).map(|agent| agent.node).collect())
    }

    /// The repositories that can be used.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn repositories(&self) -> Result<Vec<String>, AskError> {
        let reply = self.client().await?.list_repositories(control::ListRepositoriesRequest {}).await?.into_inner();
        Ok(reply.repositories.into_iter().filter(|r| r.ready).map(|r| r.name).collect())
    }

    /// The restore points of a repository.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn points(&self, repository: &str) -> Result<Vec<control::Point>, AskError> {
        let request = control::ListPointsRequest { repository: repository.to_owned(), ..Default::default() };
        let mut pieces = self.client().await?.list_points(request).await?.into_inner();
        let mut points = Vec::new();
        while let Some(piece) = pieces.message().await? {
            points.extend(piece.points);
        }
        Ok(points)
    }

    /// What a point holds.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn show(&self, request: control::ShowPointRequest) -> Result<control::PointDetail, AskError> {
        let mut pieces = self.client().await?.show_point(request).await?.into_inner();
        let first = pieces.message().await?;
        first.and_then(|reply| reply.detail).ok_or_else(|| AskError::Away("the answer is empty".into()))
    }
}

/// How far each volume of a run is, by name.
#[must_use]
pub fn progress(run: &Run) -> BTreeMap<String, (i64, i64)> {
    let whole = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let of = |volume: &control::VolumeState| {
        let progress = volume.progress.clone().unwrap_or_default();
        (volume.name.clone(), (whole(progress.done_bytes), whole(progress.total_bytes)))
    };
    run.volumes.iter().map(of).collect()
}
