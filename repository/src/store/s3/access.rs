//! The credentials of a bucket as they are given, and where the bucket is. Nothing of the environment counts beside them.

use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider, SharedHttpClient};
use zeroize::Zeroizing;

use super::role::{S3Role, TakenRole};

/// The credentials of a bucket, and where it is.
#[derive(Clone, Debug)]
pub struct S3Access {
    /// Who we are there.
    pub credentials: S3Credentials,
    /// The region; `None`: `us-east-1`.
    pub region: Option<String>,
    /// The endpoint; `None`: Amazon's.
    pub endpoint: Option<String>,
}

/// Who we are at a store.
#[derive(Clone)]
pub enum S3Credentials {
    /// Whoever has this key.
    Key {
        /// The id of the key.
        id: String,
        /// The key.
        secret: Zeroizing<String>,
    },
    /// A role, for a token.
    Role(S3Role),
}

impl std::fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Key { id, .. } => f.debug_struct("Key").field("id", id).finish_non_exhaustive(),
            Self::Role(role) => role.fmt(f),
        }
    }
}

impl S3Access {
    pub(super) fn provider(&self, http: &SharedHttpClient) -> SharedCredentialsProvider {
        match &self.credentials {
            S3Credentials::Key { id, secret } => {
                SharedCredentialsProvider::new(Credentials::new(id, secret.as_str(), None, None, "given"))
            }
            S3Credentials::Role(role) => {
                let (region, endpoint) = (self.region.as_deref(), self.endpoint.as_deref());
                SharedCredentialsProvider::new(TakenRole::new(role, region, endpoint, http.clone()))
            }
        }
    }
}
