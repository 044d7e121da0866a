//! S3-compatible object storage.
//!
//! HTTP/1.1 with a pool, and one PUT per object. We compute the CRC-32. The SDK's retries are off (see [`super::retry`]). Its
//! stalled-stream protection is off, since it kills busy uploads. Checksums are sent only where asked for, since the SDK's
//! defaults break presigned PUTs. Credentials, region and endpoint come from the SDK's own chain.

mod access;
mod list;
mod outcome;
mod retention;
mod role;
mod setup;

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{BucketVersioningStatus, ChecksumMode, ObjectLockEnabled};
use aws_smithy_types::base64;
use bytes::Bytes;

use super::grant::{GET_LIFETIME, GetGrant, PutGrant, PutTerms};
use super::listing::{Mark, Page};
use super::throttle::Throttle;
use super::{
    Capabilities, CreateError, DeleteError, Failure, GetError, Head, Key, Listed, Lock, Operation, Store, Trouble,
    Version,
};
use crate::clock::Moment;
pub use access::{S3Access, S3Credentials};
use outcome::judge;
pub use role::S3Role;
pub use setup::{Addressing, S3Options, S3SetupError};

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

impl S3 {
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
                .object_lock_mode(retention::mode(lock.firmness))
                .object_lock_retain_until_date(retention::date(lock.until)),
        }
    }
}

fn moment(d: Option<&DateTime>) -> Moment {
    Moment::from_millis(d.and_then(|d| d.to_millis().ok()).unwrap_or(0))
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
        Ok(Head {
            version: version(answer.version_id()),
            length: answer.content_length().and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
            modified: moment(answer.last_modified()),
            lock: retention::of_head(answer.object_lock_mode(), answer.object_lock_retain_until_date()),
            crc32: crc32_of(answer.checksum_crc32()),
        })
    }

    async fn lock_of(&self, key: &Key, version: &Version) -> Result<Option<Lock>, GetError> {
        self.retention(key, version).await
    }

    async fn versions_page(&self, prefix: &str, from: Option<&Mark>) -> Result<Page<Listed>, Failure> {
        self.list_versions(prefix, from).await
    }

    async fn keys_page(&self, prefix: &str, from: Option<&Mark>) -> Result<Page<Key>, Failure> {
        self.list_keys(prefix, from).await
    }

    async fn extend_lock(&self, key: &Key, version: &Version, lock: Lock) -> Result<(), GetError> {
        self.set_retention(key, version, lock).await
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
