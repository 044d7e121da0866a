//! Makes a repository that an object asks to be made.

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use milkrun_repository::chunk::page_cutter::PageCutter;
use milkrun_repository::chunk::stream_cutter::StreamCutter;
use milkrun_repository::config::{LockMode, LockPolicy};
use milkrun_repository::keys::wrapped::Cost;
use milkrun_repository::repository::{InitError, InitOptions, init};
use milkrun_repository::store::connect::ConnectError;
use milkrun_resources::repository::{Lock, LockMode as WantedMode};

use super::open::Opening;

/// Why none was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Init(#[from] InitError),
    #[error(
        "the repository was made, and its recovery key could not be kept in the Secret {secret}. Nobody has the key: \
         make another repository if you want one"
    )]
    RecoveryKey {
        secret: String,
        #[source]
        source: Box<kube::Error>,
    },
}

fn policy(lock: Option<&Lock>) -> LockPolicy {
    lock.map_or(LockPolicy::NONE, |lock| LockPolicy {
        mode: match lock.mode {
            WantedMode::Compliance => LockMode::Compliance,
            WantedMode::Governance => LockMode::Governance,
        },
        period: Duration::from_secs(u64::from(lock.days.unsigned_abs()) * 86_400),
    })
}

/// Makes a repository, if there is none. The recovery key goes into a Secret, which a person should move out of the cluster.
pub(crate) async fn create(
    name: &str,
    opening: &Opening,
    lock: Option<&Lock>,
    secrets: &Api<Secret>,
) -> Result<(), CreateError> {
    let place = opening.options.connect(&opening.url).await?;
    let options = InitOptions {
        lock: policy(lock),
        pages: PageCutter::DEFAULT,
        streams: StreamCutter::DEFAULT,
        cost: Cost::RECOMMENDED,
    };
    let made = match init(place.store, &opening.password, options).await {
        Ok(made) => made,
        Err(InitError::Exists(_)) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let secret = format!("{name}-recovery-key");
    let data = [("recoveryKey".to_owned(), ByteString(made.recovery_key.as_bytes().to_vec()))];
    let metadata = ObjectMeta { name: Some(secret.clone()), ..ObjectMeta::default() };
    let object = Secret { metadata, data: Some(data.into()), ..Secret::default() };
    let kept = secrets.create(&PostParams::default(), &object).await;
    kept.map_err(|source| CreateError::RecoveryKey { secret: secret.clone(), source: Box::new(source) })?;
    tracing::info!(repository = name, secret, "a repository was made: move its recovery key out of the cluster");
    Ok(())
}
