//! Sets up the client of a bucket: its settings, TLS, credentials and endpoint.

use std::path::PathBuf;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    IdentityCache, Region, RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::tls::{self, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder as HttpBuilder, Connector, proxy::ProxyConfig};

use super::S3;
use super::access::{S3Access, S3Credentials};
use crate::store::grant::PUT_LIFETIME;
use crate::store::throttle::Throttle;

/// How a bucket is addressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addressing {
    /// Path style if an endpoint is set, else virtual host.
    #[default]
    Auto,
    /// `https://endpoint/bucket/key`
    Path,
    /// `https://bucket.endpoint/key`
    VirtualHost,
}

/// Settings that the SDK's chain does not have.
#[derive(Clone, Default)]
pub struct S3Options {
    /// How the bucket is addressed.
    pub addressing: Addressing,
    /// A private CA in PEM, trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    /// A bound on upload bandwidth.
    pub throttle: Throttle,
    /// How long a grant to store may be used; `None`: [`PUT_LIFETIME`].
    pub put_lifetime: Option<Duration>,
    /// The profile of the AWS configuration to use; `None`: as the environment says.
    pub profile: Option<String>,
    /// Credentials, region and endpoint as they are given; nothing of the environment counts then.
    pub access: Option<S3Access>,
}

/// The client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum S3SetupError {
    /// The file of the private CA can't be read.
    #[error("can't read the CA file {path:?}")]
    CaFile {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// TLS could not be set up.
    #[error("can't set up TLS")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl S3 {
    /// Connects lazily: nothing is sent yet.
    ///
    /// # Errors
    /// [`S3SetupError`] for a CA file that can't be used.
    pub async fn new(bucket: &str, prefix: &str, options: S3Options) -> Result<Self, S3SetupError> {
        let mut roots = TrustStore::default().with_native_roots(true);
        let ca_file = options.ca_file.clone().or_else(|| std::env::var_os("AWS_CA_BUNDLE").map(PathBuf::from));
        if let Some(path) = ca_file {
            let pem = std::fs::read(&path).map_err(|source| S3SetupError::CaFile { path, source })?;
            roots = roots.with_pem_certificate(pem);
        }
        let context = TlsContext::builder().with_trust_store(roots).build().map_err(|e| S3SetupError::Tls(e.into()))?;
        let http = HttpBuilder::new().build_with_connector_fn(move |settings, components| {
            let mut connector = Connector::builder()
                .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
                .tls_context(context.clone())
                .proxy_config(ProxyConfig::from_env());
            connector.set_connector_settings(settings.cloned());
            connector.set_sleep_impl(components.and_then(|c| c.sleep_impl()));
            connector.build()
        });
        let shared = match &options.access {
            Some(access) => {
                let mut config = aws_config::SdkConfig::builder()
                    .behavior_version(aws_config::BehaviorVersion::latest())
                    .http_client(http.clone())
                    .credentials_provider(access.provider(&http))
                    .region(access.region.clone().map(Region::new));
                config.set_endpoint_url(access.endpoint.clone());
                config.build()
            }
            None => {
                let mut loader = aws_config::defaults(aws_config::BehaviorVersion::latest()).http_client(http);
                if let Some(profile) = &options.profile {
                    // Not the credentials of the environment, which belong to another repository.
                    let credentials =
                        aws_config::profile::ProfileFileCredentialsProvider::builder().profile_name(profile).build();
                    loader = loader.profile_name(profile).credentials_provider(credentials);
                }
                loader.load().await
            }
        };
        let variable = |name| std::env::var(name).ok().filter(|_| options.access.is_none());
        let endpoint = variable("AWS_ENDPOINT_URL_S3").or_else(|| shared.endpoint_url().map(str::to_owned));
        let endpoint = endpoint.or_else(|| variable("AWS_ENDPOINT_URL")).unwrap_or_default();
        let path_style = match options.addressing {
            Addressing::Auto => !endpoint.is_empty(),
            Addressing::Path => true,
            Addressing::VirtualHost => false,
        };
        let region = shared.region().cloned().unwrap_or_else(|| Region::new("us-east-1"));
        let config = aws_sdk_s3::config::Builder::from(&shared)
            .region(region)
            .force_path_style(path_style)
            .retry_config(RetryConfig::disabled())
            .identity_cache(match &options.access {
                // A role keeps its own: it renews them before they end, and nobody waits for that.
                Some(S3Access { credentials: S3Credentials::Role(_), .. }) => IdentityCache::no_cache(),
                _ => IdentityCache::lazy().build(),
            })
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(Duration::from_secs(10))
                    .read_timeout(Duration::from_secs(60))
                    .build(),
            )
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .build();
        Ok(Self {
            client: Client::from_conf(config),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            bucket: bucket.to_owned(),
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            throttle: options.throttle,
            put_lifetime: options.put_lifetime.unwrap_or(PUT_LIFETIME),
        })
    }
}
