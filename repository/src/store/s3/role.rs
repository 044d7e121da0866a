//! Credentials of a role: a token that somebody signed, a Kubernetes cluster say, is shown to the store's token service, which answers
//! with keys for an hour or so (AWS STS, `AssumeRoleWithWebIdentity`).

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
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

/// Gives the credentials of a role. The SDK keeps them until they say that they expire.
#[derive(Debug)]
pub(super) struct TakenRole {
    role: S3Role,
    service: aws_sdk_sts::Client,
    /// What the service gave last.
    last: Mutex<Option<Given>>,
}

/// Credentials, and when they end.
#[derive(Clone, Debug)]
struct Given {
    credentials: Credentials,
    end: Moment,
}

impl Given {
    /// The credentials, to be asked for anew at that moment.
    fn until(mut self, again: Moment) -> Credentials {
        *self.credentials.expiry_mut() = Some(again.into());
        self.credentials
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
        Self { role: role.clone(), service: aws_sdk_sts::Client::from_conf(config.build()), last: Mutex::default() }
    }

    async fn take(&self) -> Result<Given, RoleError> {
        let (path, role) = (&self.role.token, &self.role.arn);
        let token = tokio::fs::read_to_string(path).await;
        let token = token.map_err(|source| RoleError::Token { path: path.clone(), source })?;
        let request = self.service.assume_role_with_web_identity().role_arn(role);
        let request = request.role_session_name(&self.role.session).web_identity_token(token.trim());
        let given = request.send().await.map_err(|e| match &e {
            SdkError::ServiceError(answer) if answer.raw().status().as_u16() < 500 => RoleError::Refused {
                role: role.clone(),
                status: answer.raw().status().as_u16(),
                code: e.code().unwrap_or_default().to_owned(),
                message: e.message().unwrap_or_default().to_owned(),
            },
            _ => RoleError::Unreachable { role: role.clone(), source: Box::new(e) },
        })?;
        let none = || RoleError::Unreachable { role: role.clone(), source: "its answer holds no credentials".into() };
        let given = given.credentials().ok_or_else(none)?;
        let end = Moment::from_millis(given.expiration().to_millis().map_err(|_| none())?);
        let session = Some(given.session_token().to_owned());
        let credentials =
            Credentials::new(given.access_key_id(), given.secret_access_key(), session, Some(end.into()), "role");
        Ok(Given { credentials, end })
    }

    /// New credentials; or those of before as long as they are good for something, if the service can't be asked.
    async fn provide(&self) -> Result<Credentials, RoleError> {
        let taken = self.take().await;
        let now = Moment::now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let e = match taken {
            Ok(given) => {
                *last = Some(given.clone());
                let again = renew_at(now, given.end);
                return Ok(given.until(again));
            }
            Err(e) => e,
        };
        let before = last.clone().filter(|_| e.passes());
        let before = before.and_then(|given| ask_again_at(now, given.end).map(|again| (given, again)));
        let Some((given, again)) = before else { return Err(e) };
        let why: &(dyn std::error::Error + 'static) = &e;
        tracing::warn!(role = self.role.arn, why, end = %given.end, "the credentials of before are used");
        Ok(given.until(again))
    }
}

/// When credentials are asked for anew: in the middle of their time. A grant ends with the credentials that signed it, whatever it says
/// of itself; so each has at least half of that time.
fn renew_at(now: Moment, end: Moment) -> Moment {
    now.plus(end.since(now) / 2)
}

/// When a service that can't be asked now is asked again, if the credentials of before do until then.
fn ask_again_at(now: Moment, end: Moment) -> Option<Moment> {
    let again = now.plus(ASK_AGAIN);
    (again < end).then_some(again)
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
        // While the service is away, they are used to their end.
        assert_eq!(ask_again_at(at(1000), at(2800)), Some(at(1060)));
        assert_eq!(ask_again_at(at(1000), at(1050)), None);
    }
}
