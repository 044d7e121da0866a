//! S3-compatible object storage.
//!
//! HTTP/1.1 with a pool, and one PUT per object. We compute the CRC-32. The SDK's retries are off (see [`super::retry`]). Its
//! stalled-stream protection is off, since it kills busy uploads. Checksums are sent only where asked for, since the SDK's
//! defaults break presigned PUTs. Credentials, region and endpoint come from the SDK's own chain.

mod list;

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{
    BucketVersioningStatus, ChecksumMode, ObjectLockEnabled, ObjectLockMode, ObjectLockRetention,
    ObjectLockRetentionMode,
};
use aws_smithy_http_client::tls::{self, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder as HttpBuilder, Connector, proxy::ProxyConfig};
use aws_smithy_runtime_api::http::Response;
use aws_smithy_types::base64;
use bytes::Bytes;

use super::grant::{GET_LIFETIME, GetGrant, PUT_LIFETIME, PutGrant, PutTerms, trouble_of};
use super::listing::{Mark, Page};
use super::throttle::Throttle;
use super::{
    Capabilities, CreateError, DeleteError, Failure, Firmness, GetError, Head, Key, Listed, Lock, Operation, Store,
    Trouble, Version,
};
use crate::clock::Moment;

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
}

/// A bucket and prefix.
pub struct S3 {
    client: Client,
    /// The endpoint of the bucket; empty: Amazon's.
    endpoint: String,
    bucket: String,
    prefix: String,
    throttle: Throttle,
    put_lifetime: Duration,
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
        let mut loader = aws_config::defaults(aws_config::BehaviorVersion::latest()).http_client(http);
        if let Some(profile) = &options.profile {
            // Not the credentials of the environment, which belong to another repository.
            let credentials =
                aws_config::profile::ProfileFileCredentialsProvider::builder().profile_name(profile).build();
            loader = loader.profile_name(profile).credentials_provider(credentials);
        }
        let shared = loader.load().await;
        let variable = |name| std::env::var(name).ok();
        let endpoint = variable("AWS_ENDPOINT_URL_S3").or_else(|| shared.endpoint_url().map(str::to_owned));
        let endpoint = endpoint.or_else(|| variable("AWS_ENDPOINT_URL")).unwrap_or_default();
        let path_style = match options.addressing {
            Addressing::Auto => {
                shared.endpoint_url().is_some()
                    || std::env::var_os("AWS_ENDPOINT_URL_S3").is_some()
                    || std::env::var_os("AWS_ENDPOINT_URL").is_some()
            }
            Addressing::Path => true,
            Addressing::VirtualHost => false,
        };
        let region = shared.region().cloned().unwrap_or_else(|| aws_sdk_s3::config::Region::new("us-east-1"));
        let config = aws_sdk_s3::config::Builder::from(&shared)
            .region(region)
            .force_path_style(path_style)
            .retry_config(RetryConfig::disabled())
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

    fn name(&self, key: &Key) -> String {
        format!("{}{key}", self.prefix)
    }

    fn put(&self, key: &Key, crc32: u32, lock: Option<Lock>) -> PutObjectFluentBuilder {
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.name(key))
            .if_none_match("*")
            .checksum_crc32(base64::encode(crc32.to_be_bytes()));
        match lock {
            None => request,
            Some(lock) => request
                .object_lock_mode(match lock.firmness {
                    Firmness::Governance => ObjectLockMode::Governance,
                    Firmness::Compliance => ObjectLockMode::Compliance,
                })
                .object_lock_retain_until_date(date(lock.until)),
        }
    }
}

// Rounded up to whole seconds: S3 keeps no fractions, and a lock that is rounded down would be too short.
fn date(m: Moment) -> DateTime {
    DateTime::from_secs(m.ceil(Duration::from_secs(1)).seconds())
}

fn moment(d: Option<&DateTime>) -> Moment {
    Moment::from_millis(d.and_then(|d| d.to_millis().ok()).unwrap_or(0))
}

struct Outcome {
    failure: Failure,
    status: u16,
    code: String,
}

fn judge<E>(operation: Operation, key: &str, error: SdkError<E, Response>) -> Outcome
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
    fn get(self, key: &Key) -> GetError {
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

/// The lock in a store's answer that the SDK could not read.
fn stated_lock<E>(error: &SdkError<E, Response>) -> Option<Lock> {
    let raw = match error {
        SdkError::ServiceError(e) => e.raw(),
        SdkError::ResponseError(e) => e.raw(),
        _ => return None,
    };
    if raw.status().as_u16() != 200 {
        return None;
    }
    let text = std::str::from_utf8(raw.body().bytes()?).ok()?;
    let field = |name: &str| {
        let rest = text.split_once(&format!("<{name}>"))?.1;
        Some(rest.split_once(&format!("</{name}>"))?.0.trim())
    };
    let firmness = match field("Mode")? {
        "COMPLIANCE" => Firmness::Compliance,
        "GOVERNANCE" => Firmness::Governance,
        _ => return None,
    };
    Some(Lock { firmness, until: Moment::parse(field("RetainUntilDate")?).ok()? })
}

fn crc32_of(text: Option<&str>) -> Option<u32> {
    let bytes = base64::decode(text?).ok()?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn version(v: Option<&str>) -> Version {
    Version(v.unwrap_or("null").to_owned())
}

#[async_trait]
impl Store for S3 {
    fn describe(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix.trim_end_matches('/'))
    }

    fn address(&self) -> String {
        format!("{} {}", self.describe(), self.endpoint).trim_end().to_owned()
    }

    async fn capabilities(&self) -> Result<Capabilities, Failure> {
        Operation::Inspect.count();
        let versioning = self
            .client
            .get_bucket_versioning()
            .bucket(&self.bucket)
            .send()
            .await
            .map_err(|e| judge(Operation::Inspect, &self.bucket, e).failure)?;
        Operation::Inspect.count();
        let lock = match self.client.get_object_lock_configuration().bucket(&self.bucket).send().await {
            Ok(answer) => answer.object_lock_configuration,
            Err(e) => {
                let outcome = judge(Operation::Inspect, &self.bucket, e);
                // "There is none" is an answer; "not allowed to ask" and "no answer" are not.
                let none = outcome.code == "ObjectLockConfigurationNotFoundError"
                    || outcome.status == 404 && outcome.code != "NoSuchBucket"
                    || outcome.status == 501;
                if !none {
                    return Err(outcome.failure);
                }
                None
            }
        };
        let locks = lock.as_ref().is_some_and(|l| l.object_lock_enabled == Some(ObjectLockEnabled::Enabled));
        Ok(Capabilities {
            locks,
            enforced: true,
            checksums: true,
            versions: versioning.status == Some(BucketVersioningStatus::Enabled),
            default_retention: lock
                .and_then(|l| l.rule)
                .and_then(|r| r.default_retention)
                .is_some_and(|d| d.mode.is_some() || d.days.is_some() || d.years.is_some()),
        })
    }

    /// A bucket is identified by its name. Another bucket of that name lacks the stored versions, and each of those is asked for.
    async fn identity(&self) -> Result<String, Failure> {
        Ok(self.address())
    }

    async fn create(&self, key: &Key, body: Bytes, lock: Option<Lock>) -> Result<Version, CreateError> {
        self.throttle.take(body.len()).await;
        let request = self.put(key, crc32fast::hash(&body), lock).body(ByteStream::from(body));
        Operation::Create.count();
        match request.send().await {
            Ok(answer) => Ok(version(answer.version_id())),
            Err(e) => {
                let outcome = judge(Operation::Create, key.as_str(), e);
                match outcome.status {
                    412 => Err(CreateError::Exists(key.to_string())),
                    // Another conditional PUT of the same key is under way: try again.
                    409 => Err(Failure { trouble: Trouble::Busy, ..outcome.failure }.into()),
                    _ => Err(outcome.failure.into()),
                }
            }
        }
    }

    async fn get(&self, key: &Key, version: Option<&Version>, range: Option<Range<u64>>) -> Result<Bytes, GetError> {
        let mut request = self.client.get_object().bucket(&self.bucket).key(self.name(key));
        if let Some(v) = version {
            request = request.version_id(&v.0);
        }
        if let Some(r) = &range {
            if r.is_empty() {
                return Ok(Bytes::new());
            }
            request = request.range(format!("bytes={}-{}", r.start, r.end - 1));
        }
        Operation::Get.count();
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(e) => {
                let outcome = judge(Operation::Get, key.as_str(), e);
                return if outcome.status == 416 { Ok(Bytes::new()) } else { Err(outcome.get(key)) };
            }
        };
        let stated = answer.content_length().and_then(|n| usize::try_from(n).ok());
        let ranged = answer.content_range().is_some();
        let garbled = |why: String| Failure::new(Operation::Get, key, Trouble::Garbled).because(why);
        let mut body = answer.body.collect().await.map_err(|e| garbled(e.to_string()))?.into_bytes();
        if let (Some(r), false) = (&range, ranged) {
            let end = usize::try_from(r.end).unwrap_or(usize::MAX).min(body.len());
            let start = usize::try_from(r.start).unwrap_or(usize::MAX).min(end);
            body = body.slice(start..end);
        } else if stated.is_some_and(|n| n != body.len()) {
            return Err(garbled(format!("{} bytes instead of {stated:?}", body.len())).into());
        }
        Ok(body)
    }

    async fn head(&self, key: &Key, v: Option<&Version>) -> Result<Head, GetError> {
        let mut request =
            self.client.head_object().bucket(&self.bucket).key(self.name(key)).checksum_mode(ChecksumMode::Enabled);
        if let Some(v) = v {
            request = request.version_id(&v.0);
        }
        Operation::Head.count();
        let answer = request.send().await.map_err(|e| judge(Operation::Head, key.as_str(), e).get(key))?;
        let firmness = match answer.object_lock_mode() {
            Some(ObjectLockMode::Compliance) => Some(Firmness::Compliance),
            Some(ObjectLockMode::Governance) => Some(Firmness::Governance),
            _ => None,
        };
        let until = answer.object_lock_retain_until_date().map(|d| moment(Some(d)));
        Ok(Head {
            version: version(answer.version_id()),
            length: answer.content_length().and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
            modified: moment(answer.last_modified()),
            lock: firmness.zip(until).map(|(firmness, until)| Lock { firmness, until }),
            crc32: crc32_of(answer.checksum_crc32()),
        })
    }

    async fn lock_of(&self, key: &Key, version: &Version) -> Result<Option<Lock>, GetError> {
        Operation::Head.count();
        let request = self.client.get_object_retention().bucket(&self.bucket).key(self.name(key));
        let found = match request.version_id(&version.0).send().await {
            Ok(answer) => answer.retention,
            Err(e) => {
                // Some stores name the root element of the answer differently than S3 does, and the SDK refuses it. The content
                // is the same.
                if let Some(lock) = stated_lock(&e) {
                    return Ok(Some(lock));
                }
                let outcome = judge(Operation::Head, key.as_str(), e);
                // Stores use different codes and names to say that a version has no lock. The codes for a missing object are not
                // among them.
                let missing =
                    ["NoSuchKey", "NoSuchVersion", "NoSuchBucket", "NotFound"].contains(&outcome.code.as_str());
                if missing || !matches!(outcome.status, 400 | 404 | 501) {
                    return Err(outcome.get(key));
                }
                None
            }
        };
        Ok(found.and_then(|r| {
            let firmness = match r.mode? {
                ObjectLockRetentionMode::Compliance => Firmness::Compliance,
                ObjectLockRetentionMode::Governance => Firmness::Governance,
                _ => return None,
            };
            Some(Lock { firmness, until: moment(Some(&r.retain_until_date?)) })
        }))
    }

    async fn versions_page(&self, prefix: &str, from: Option<&Mark>) -> Result<Page<Listed>, Failure> {
        self.list_versions(prefix, from).await
    }

    async fn keys_page(&self, prefix: &str, from: Option<&Mark>) -> Result<Page<Key>, Failure> {
        self.list_keys(prefix, from).await
    }

    async fn extend_lock(&self, key: &Key, version: &Version, lock: Lock) -> Result<(), GetError> {
        let retention = ObjectLockRetention::builder()
            .mode(match lock.firmness {
                Firmness::Governance => ObjectLockRetentionMode::Governance,
                Firmness::Compliance => ObjectLockRetentionMode::Compliance,
            })
            .retain_until_date(date(lock.until))
            .build();
        Operation::ExtendLock.count();
        self.client
            .put_object_retention()
            .bucket(&self.bucket)
            .key(self.name(key))
            .version_id(&version.0)
            .retention(retention)
            .send()
            .await
            .map(drop)
            .map_err(|e| judge(Operation::ExtendLock, key.as_str(), e).get(key))
    }

    async fn delete(&self, key: &Key, version: &Version) -> Result<(), DeleteError> {
        let request = self.client.delete_object().bucket(&self.bucket).key(self.name(key)).version_id(&version.0);
        Operation::Delete.count();
        match request.send().await {
            Ok(_) => Ok(()),
            Err(e) => {
                let outcome = judge(Operation::Delete, key.as_str(), e);
                match outcome.status {
                    404 if outcome.code != "NoSuchBucket" => Ok(()),
                    // S3 answers AccessDenied both for a locked version and for a missing right.
                    403 if self.is_locked(key, version).await => Err(DeleteError::Locked(key.to_string())),
                    _ => Err(outcome.failure.into()),
                }
            }
        }
    }

    async fn grant_put(&self, terms: &PutTerms) -> Result<PutGrant, Failure> {
        let length = i64::try_from(terms.length).unwrap_or(i64::MAX);
        let request = self.put(&terms.key, terms.crc32, terms.lock).content_length(length);
        let signed = request
            .presigned(presigning(&terms.key, self.put_lifetime)?)
            .await
            .map_err(|e| judge(Operation::Grant, terms.key.as_str(), e).failure)?;
        let headers = signed.headers().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        Ok(PutGrant::Presigned { url: signed.uri().to_owned(), headers })
    }

    async fn grant_get(&self, key: &Key, version: &Version) -> Result<GetGrant, Failure> {
        let request = self.client.get_object().bucket(&self.bucket).key(self.name(key)).version_id(&version.0);
        let signed = request
            .presigned(presigning(key, GET_LIFETIME)?)
            .await
            .map_err(|e| judge(Operation::Grant, key.as_str(), e).failure)?;
        let headers = signed.headers().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        Ok(GetGrant::Presigned { url: signed.uri().to_owned(), headers })
    }
}

impl S3 {
    async fn is_locked(&self, key: &Key, version: &Version) -> bool {
        self.head(key, Some(version)).await.is_ok_and(|h| h.lock.is_some_and(|l| l.until > Moment::now()))
    }
}

fn presigning(key: &Key, lifetime: Duration) -> Result<PresigningConfig, Failure> {
    PresigningConfig::expires_in(lifetime).map_err(|e| Failure::new(Operation::Grant, key, Trouble::Refused).because(e))
}
