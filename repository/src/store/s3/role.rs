//! Credentials of a role: a token that somebody signed, a Kubernetes cluster say, is shown to the store's token service, which answers
//! with keys for an hour or so (AWS STS, `AssumeRoleWithWebIdentity`).

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use aws_sdk_s3::config::SharedHttpClient;
use aws_sdk_sts::config::retry::RetryConfig;
use aws_sdk_sts::config::timeout::TimeoutConfig;
use aws_sdk_sts::config::{BehaviorVersion, Region};
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};

use crate::clock::Moment;

/// The longest wait for an answer of the token service.
const PATIENCE: Duration = Duration::from_secs(15);
/// How soon a token service that did not answer is asked again, while the credentials of before are good.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// A role, and how we may take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Role {
    /// Its ARN.
    pub arn: String,
    /// How the session is called in the logs of the store.
    pub session: String,
    /// The file that holds the token. It is read each time: who signs tokens replaces it before it expires.
    pub token: PathBuf,
    /// The token service; `None`: the endpoint of the bucket or, without one, Amazon's in its region.
    pub endpoint: Option<String>,
}

/// Why a role can't be taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum RoleError {
    #[error("can't read the token {path:?}")]
    Token {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the token service lets nobody with our token take the role {role}: HTTP {status} {code}: {message}")]
    Refused { role: String, status: u16, code: String, message: String },
    #[error("the token service can't be asked for the role {role}")]
    Unreachable {
        role: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl RoleError {
    /// Whether asking again may help.
    pub(super) fn passes(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// The one that an error of the SDK was caused by, if it was.
    pub(super) fn within<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        std::iter::successors(Some(error), |e| e.source()).find_map(|e| e.downcast_ref())
    }
}

/// Whether a token service that answers so may give the role a moment later.
fn passes(status: u16, code: &str) -> bool {
    let busy = ["Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout", "IDPCommunicationError"];
    status >= 500 || matches!(status, 408 | 429) || busy.contains(&code)
}

/// Gives the credentials of a role, and renews them in time. Nobody waits for that as long as those of before are good: a lease that is
/// renewed must not depend on a token service.
#[derive(Clone, Debug)]
pub(super) struct TakenRole(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    role: S3Role,
    service: aws_sdk_sts::Client,
    held: Mutex<Option<Held>>,
    /// Whoever asks the service has this.
    asking: tokio::sync::Mutex<()>,
}

/// Credentials, and their time.
#[derive(Clone, Debug)]
struct Held {
    credentials: Credentials,
    renew_at: Moment,
    end: Moment,
}

impl Held {
    fn is_good(&self, now: Moment) -> bool {
        now < self.end
    }
}

impl TakenRole {
    /// `region`, `endpoint`: the bucket's.
    pub(super) fn new(role: &S3Role, region: Option<&str>, endpoint: Option<&str>, http: SharedHttpClient) -> Self {
        let region = region.unwrap_or("us-east-1").to_owned();
        let timeouts = TimeoutConfig::builder().connect_timeout(PATIENCE / 3).operation_timeout(PATIENCE).build();
        let mut config = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http)
            .region(Region::new(region))
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts);
        config.set_endpoint_url(role.endpoint.clone().or_else(|| endpoint.map(str::to_owned)));
        let service = aws_sdk_sts::Client::from_conf(config.build());
        Self(Arc::new(Inner {
            role: role.clone(),
            service,
            held: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        }))
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take(&self) -> Result<Held, RoleError> {
        let (path, role) = (&self.0.role.token, &self.0.role.arn);
        let token = tokio::fs::read_to_string(path).await;
        let token = token.map_err(|source| RoleError::Token { path: path.clone(), source })?;
        let request = self.0.service.assume_role_with_web_identity().role_arn(role);
        let request = request.role_session_name(&self.0.role.session).web_identity_token(token.trim());
        let given = request.send().await.map_err(|e| {
            let status = e.raw_response().map_or(0, |answer| answer.status().as_u16());
            let code = e.code().unwrap_or_default().to_owned();
            match &e {
                SdkError::ServiceError(_) if !passes(status, &code) => RoleError::Refused {
                    role: role.clone(),
                    status,
                    code,
                    message: e.message().unwrap_or_default().to_owned(),
                },
                _ => RoleError::Unreachable { role: role.clone(), source: Box::new(e) },
            }
        })?;
        let none = || RoleError::Unreachable { role: role.clone(), source: "its answer holds no credentials".into() };
        let given = given.credentials().ok_or_else(none)?;
        let end = Moment::from_millis(given.expiration().to_millis().map_err(|_| none())?);
        let session = Some(given.session_token().to_owned());
        let credentials =
            Credentials::new(given.access_key_id(), given.secret_access_key(), session, Some(end.into()), "role");
        Ok(Held { credentials, renew_at: renew_at(Moment::now(), end), end })
    }

    /// Those that are good; else new ones, for which all wait together.
    async fn provide(&self) -> Result<Credentials, RoleError> {
        let now = Moment::now();
        let good = |held: &Option<Held>| held.clone().filter(|held| held.is_good(now));
        let held = good(&self.held());
        if let Some(held) = held {
            if now >= held.renew_at {
                let this = self.clone();
                tokio::spawn(async move { this.renew().await });
            }
            return Ok(held.credentials);
        }
        let _one = self.0.asking.lock().await;
        let held = good(&self.held());
        if let Some(held) = held {
            return Ok(held.credentials);
        }
        let taken = self.take().await?;
        *self.held() = Some(taken.clone());
        Ok(taken.credentials)
    }

    /// Replaces those that are still good, unless somebody does so already.
    async fn renew(&self) {
        let Ok(_one) = self.0.asking.try_lock() else { return };
        let taken = self.take().await;
        let mut held = self.held();
        match (taken, held.as_mut()) {
            (Ok(taken), _) => *held = Some(taken),
            (Err(e), Some(before)) => {
                let why: &(dyn std::error::Error + 'static) = &e;
                tracing::warn!(role = self.0.role.arn, why, end = %before.end, "the credentials of before are used");
                before.renew_at = Moment::now().plus(ASK_AGAIN);
            }
            (Err(_), None) => {}
        }
    }
}

/// When credentials are asked for anew: in the middle of their time. A grant ends with the credentials that signed it, whatever it says
/// of itself; so each has at least half of that time.
fn renew_at(now: Moment, end: Moment) -> Moment {
    now.plus(end.since(now) / 2)
}

impl ProvideCredentials for TakenRole {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async move { self.provide().await.map_err(CredentialsError::provider_error) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_renewed_in_the_middle_of_their_time() {
        let at = |seconds: i64| Moment::from_millis(seconds * 1000);
        assert_eq!(renew_at(at(1000), at(4600)), at(2800));
        // A clock that is fast: at once.
        assert_eq!(renew_at(at(1000), at(995)), at(1000));
    }

    #[test]
    fn who_is_busy_may_give_a_role_later_and_who_refuses_will_not() {
        for (status, code) in
            [(500, ""), (429, ""), (400, "Throttling"), (400, "IDPCommunicationError"), (503, "SlowDown")]
        {
            assert!(passes(status, code), "{status} {code}");
        }
        for (status, code) in
            [(403, "AccessDenied"), (400, "InvalidIdentityToken"), (400, "ExpiredTokenException"), (404, "")]
        {
            assert!(!passes(status, code), "{status} {code}");
        }
    }
}
