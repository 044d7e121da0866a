//! From a URL to a store and to a redeemer of its grants, both with retries.

use std::path::PathBuf;
use std::sync::Arc;

use super::directory::Directory;
use super::grant::Redeem;
use super::redeem::{HttpSetupError, Redeemer};
use super::retry::{Patience, Retrying};
use super::s3::{Addressing, S3, S3Access, S3Options, S3SetupError};
use super::throttle::Throttle;
use super::{SharedStore, Store, StoreUrl};

/// A store, and a redeemer of its grants.
#[derive(Clone)]
pub struct OpenedStore {
    /// The store.
    pub store: SharedStore,
    /// Uses grants.
    pub redeem: Arc<dyn Redeem>,
}

/// The options of a connection.
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    /// A private CA in PEM, trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    /// The most bytes per second that are uploaded.
    pub limit_upload: Option<u64>,
    /// How buckets are addressed.
    pub addressing: Addressing,
    /// The profile of the AWS configuration that gives credentials, region and endpoint; `None`: as the environment says.
    pub profile: Option<String>,
    /// Credentials, region and endpoint as they are given; nothing of the environment counts then.
    pub access: Option<S3Access>,
}

/// Why no store can be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// HTTP can't be set up.
    #[error(transparent)]
    Http(#[from] HttpSetupError),
    /// S3 can't be set up.
    #[error(transparent)]
    S3(#[from] S3SetupError),
}

impl ConnectOptions {
    /// Adds the private CA from the AWS SDK's variable, if no CA is given.
    #[must_use]
    pub fn with_ca_of_environment(mut self) -> Self {
        self.ca_file = self.ca_file.or_else(|| std::env::var_os("AWS_CA_BUNDLE").map(PathBuf::from));
        self
    }

    fn throttle(&self) -> Throttle {
        self.limit_upload.map_or_else(Throttle::none, Throttle::new)
    }

    /// Connects (lazily) to where the URL points.
    ///
    /// # Errors
    /// [`ConnectError`] for problems that are known without asking the store.
    pub async fn connect(&self, url: &StoreUrl) -> Result<OpenedStore, ConnectError> {
        let throttle = self.throttle();
        let redeemer = Redeemer::new(self.ca_file.as_deref(), throttle.clone())?;
        match url {
            StoreUrl::Directory(path) => Ok(place(Directory::new(path, throttle), redeemer)),
            StoreUrl::S3 { bucket, prefix } => {
                let options = S3Options {
                    addressing: self.addressing,
                    ca_file: self.ca_file.clone(),
                    throttle,
                    put_lifetime: None,
                    profile: self.profile.clone(),
                    access: self.access.clone(),
                };
                Ok(place(S3::new(bucket, prefix, options).await?, redeemer))
            }
        }
    }

    /// A redeemer of grants without a store. This is what an agent needs.
    ///
    /// # Errors
    /// [`ConnectError::Http`].
    pub fn redeemer(&self) -> Result<Redeemer, ConnectError> {
        Ok(Redeemer::new(self.ca_file.as_deref(), self.throttle())?)
    }
}

/// Adds our retries.
pub fn patient(redeem: impl Redeem) -> Arc<dyn Redeem> {
    #[cfg(feature = "faults")]
    let redeem = super::faulty::Faulty::crash_points(redeem);
    Arc::new(Retrying::new(redeem, Patience::DEFAULT))
}

fn place(store: impl Store, redeem: impl Redeem) -> OpenedStore {
    #[cfg(feature = "faults")]
    let store = super::faulty::Faulty::crash_points(store);
    OpenedStore { store: Arc::new(Retrying::new(store, Patience::DEFAULT)), redeem: patient(redeem) }
}
