//! Makes our failures of the errors of S3.

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::http::Response;

use super::role::RoleError;
use crate::store::grant::trouble_of;
use crate::store::{Failure, GetError, Key, Operation, Trouble};

/// What an answer that is no success means.
pub(super) struct Outcome {
    pub(super) failure: Failure,
    pub(super) status: u16,
    pub(super) code: String,
}

pub(super) fn judge<E>(operation: Operation, key: &str, error: SdkError<E, Response>) -> Outcome
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    let (status, code) = match &error {
        SdkError::ServiceError(e) => (e.raw().status().as_u16(), e.err().code().unwrap_or_default().to_owned()),
        SdkError::ResponseError(e) => (e.raw().status().as_u16(), String::new()),
        _ => (0, String::new()),
    };
    let (trouble, maybe) = match &error {
        SdkError::ConstructionFailure(_) => (Trouble::Refused, false),
        SdkError::TimeoutError(_) => (Trouble::Unreachable, true),
        SdkError::DispatchFailure(_) => (Trouble::Unreachable, true),
        SdkError::ResponseError(_) => (Trouble::Garbled, true),
        _ => (trouble_of(status, &code), status >= 500),
    };
    // Without credentials nothing was sent.
    let (trouble, maybe) = match RoleError::within(&error) {
        Some(e) if e.passes() => (Trouble::Unreachable, false),
        Some(_) => (Trouble::NoCredentials, false),
        None => (trouble, maybe),
    };
    let failure = Failure::new(operation, key, trouble);
    let failure = if maybe { failure.maybe() } else { failure };
    let failure = failure.because(match &error {
        SdkError::ServiceError(e) => {
            let text = format!("HTTP {status} {code}: {}", e.err().message().unwrap_or_default());
            Box::<dyn std::error::Error + Send + Sync>::from(text)
        }
        _ => Box::new(error),
    });
    Outcome { failure, status, code }
}

impl Outcome {
    pub(super) fn get(self, key: &Key) -> GetError {
        if self.status == 404 && self.code != "NoSuchBucket" {
            return GetError::NotFound(key.to_string());
        }
        // Some stores answer 400 for a version id that never existed.
        if self.status == 400 && self.code.contains("Version") {
            return GetError::NotFound(key.to_string());
        }
        GetError::Failed(self.failure)
    }
}
