//! Locks of objects as S3 has them: retention modes and dates.

use std::time::Duration;

use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockMode, ObjectLockRetention, ObjectLockRetentionMode};
use aws_smithy_runtime_api::http::Response;

use super::outcome::judge;
use super::{S3, moment};
use crate::clock::Moment;
use crate::store::{Firmness, GetError, Key, Lock, Operation, Version};

// Rounded up to whole seconds: S3 keeps no fractions, and a lock that is rounded down would be too short.
pub(super) fn date(m: Moment) -> DateTime {
    DateTime::from_secs(m.ceil(Duration::from_secs(1)).seconds())
}

/// The mode of a lock in a PUT.
pub(super) fn mode(firmness: Firmness) -> ObjectLockMode {
    match firmness {
        Firmness::Governance => ObjectLockMode::Governance,
        Firmness::Compliance => ObjectLockMode::Compliance,
    }
}

/// The lock in the answer to a HEAD.
pub(super) fn of_head(mode: Option<&ObjectLockMode>, until: Option<&DateTime>) -> Option<Lock> {
    let firmness = match mode? {
        ObjectLockMode::Compliance => Firmness::Compliance,
        ObjectLockMode::Governance => Firmness::Governance,
        _ => return None,
    };
    Some(Lock { firmness, until: moment(Some(until?)) })
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

impl S3 {
    /// Asks for the lock of a version.
    pub(super) async fn retention(&self, key: &Key, version: &Version) -> Result<Option<Lock>, GetError> {
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

    /// Sets the lock of a version.
    pub(super) async fn set_retention(&self, key: &Key, version: &Version, lock: Lock) -> Result<(), GetError> {
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
}
