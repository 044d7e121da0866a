//! Listings of a bucket, a page at a time.

use super::outcome::judge;
use super::{S3, moment, version};
use crate::store::listing::{Mark, Page};
use crate::store::{Failure, Key, Listed, Operation, Trouble};

/// Where the next page begins.
fn next(prefix: &str, truncated: Option<bool>, mark: Option<Mark>) -> Result<Option<Mark>, Failure> {
    if !truncated.unwrap_or(false) {
        return Ok(None);
    }
    if mark.is_none() {
        let why = "the listing is cut short without a way to go on";
        return Err(Failure::new(Operation::List, prefix, Trouble::Garbled).because(why));
    }
    Ok(mark)
}

impl S3 {
    fn key_of(&self, name: Option<&str>) -> Option<Key> {
        name.and_then(|k| k.strip_prefix(&self.prefix)).map(|k| Key::new(k.to_owned()))
    }

    pub(super) async fn list_versions(&self, prefix: &str, from: Option<&Mark>) -> Result<Page<Listed>, Failure> {
        Operation::List.count();
        let answer = self
            .client
            .list_object_versions()
            .bucket(&self.bucket)
            .prefix(format!("{}{prefix}", self.prefix))
            .set_key_marker(from.map(|m| m.key.clone()))
            .set_version_id_marker(from.and_then(|m| m.version.clone()))
            .send()
            .await
            .map_err(|e| judge(Operation::List, prefix, e).failure)?;
        let versions = answer.versions().iter().filter_map(|v| {
            Some(Listed {
                key: self.key_of(v.key())?,
                version: version(v.version_id()),
                length: v.size().and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
                modified: moment(v.last_modified()),
                delete_marker: false,
                latest: v.is_latest().unwrap_or(false),
            })
        });
        let markers = answer.delete_markers().iter().filter_map(|m| {
            Some(Listed {
                key: self.key_of(m.key())?,
                version: version(m.version_id()),
                length: 0,
                modified: moment(m.last_modified()),
                delete_marker: true,
                latest: m.is_latest().unwrap_or(false),
            })
        });
        let items = versions.chain(markers).collect();
        let version = answer.next_version_id_marker().map(str::to_owned);
        let mark = answer.next_key_marker().map(|key| Mark { key: key.to_owned(), version });
        Ok(Page { items, next: next(prefix, answer.is_truncated(), mark)? })
    }

    pub(super) async fn list_keys(&self, prefix: &str, from: Option<&Mark>) -> Result<Page<Key>, Failure> {
        Operation::List.count();
        let answer = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(format!("{}{prefix}", self.prefix))
            .set_continuation_token(from.map(|m| m.key.clone()))
            .send()
            .await
            .map_err(|e| judge(Operation::List, prefix, e).failure)?;
        let items = answer.contents().iter().filter_map(|o| self.key_of(o.key())).collect();
        let mark = answer.next_continuation_token().map(|token| Mark { key: token.to_owned(), version: None });
        Ok(Page { items, next: next(prefix, answer.is_truncated(), mark)? })
    }
}
