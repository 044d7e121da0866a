//! A store in memory that behaves like a versioned bucket with Object Lock and a clock that a test sets.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::grant::{GetGrant, PutGrant, PutTerms, Redeem};
use super::listing::{Mark, Page};
use super::{
    Capabilities, CreateError, DeleteError, Failure, GetError, Head, Key, Listed, Lock, Operation, Store, Trouble,
    Version,
};
use crate::clock::Moment;

struct Object {
    version: u64,
    body: Option<Bytes>,
    modified: Moment,
    lock: Option<Lock>,
}

#[derive(Default)]
struct State {
    /// Versions in the order in which they were made.
    objects: BTreeMap<String, Vec<Object>>,
    counter: u64,
    pages_listed: usize,
    left_out: HashSet<Key>,
    clock: Option<Moment>,
}

/// The store.
#[derive(Default)]
pub struct Memory {
    state: Mutex<State>,
    /// How many versions a page has; `None`: all.
    page: Option<usize>,
}

impl Memory {
    /// An empty store on the system's clock.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many versions a page has.
    #[must_use]
    pub fn paged(mut self, page: usize) -> Self {
        self.page = Some(page);
        self
    }

    /// How many pages of listings were answered.
    pub fn pages_listed(&self) -> usize {
        self.state().pages_listed
    }

    /// Leaves a key out of all listings of versions, except for the listing of the key itself.
    pub fn leave_out(&self, key: &Key) {
        self.state().left_out.insert(key.clone());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the store's clock.
    pub fn set_clock(&self, now: Moment) {
        self.state().clock = Some(now);
    }

    /// Moves the store's clock on.
    pub fn advance(&self, by: Duration) {
        let mut s = self.state();
        s.clock = Some(s.now().plus(by));
    }

    /// Puts a delete marker on a key, as a DELETE without a version does.
    pub fn hide(&self, key: &Key) {
        self.state().push(key, None, None);
    }

    /// Puts another version on a key, as somebody with write access could.
    pub fn overwrite(&self, key: &Key, body: impl Into<Bytes>, lock: Option<Lock>) {
        self.state().push(key, Some(body.into()), lock);
    }

    /// Alters the newest body in place, as bit rot does.
    pub fn corrupt(&self, key: &Key, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        if let Some(object) = state.objects.get_mut(key.as_str()).and_then(|v| v.last_mut())
            && let Some(body) = &object.body
        {
            let mut bytes = body.to_vec();
            change(&mut bytes);
            object.body = Some(bytes.into());
        }
    }

    /// Removes every version, locked or not, as a lost disk does.
    pub fn lose(&self, key: &Key) {
        self.state().objects.remove(key.as_str());
    }

    /// All keys that have a visible object.
    pub fn keys(&self) -> Vec<Key> {
        let state = self.state();
        let visible = state.objects.iter().filter(|(_, v)| v.last().is_some_and(|o| o.body.is_some()));
        visible.map(|(k, _)| Key::new(k.clone())).collect()
    }
}

impl State {
    fn now(&self) -> Moment {
        self.clock.unwrap_or_else(Moment::now)
    }

    fn push(&mut self, key: &Key, body: Option<Bytes>, lock: Option<Lock>) -> Version {
        self.counter += 1;
        let object = Object { version: self.counter, body, modified: self.now(), lock };
        self.objects.entry(key.as_str().to_owned()).or_default().push(object);
        Version(self.counter.to_string())
    }

    fn find(&self, key: &Key, version: Option<&Version>) -> Result<&Object, GetError> {
        let found = self.objects.get(key.as_str()).and_then(|versions| match version {
            None => versions.last(),
            Some(v) => versions.iter().find(|o| o.version.to_string() == v.0),
        });
        found.filter(|o| o.body.is_some()).ok_or_else(|| GetError::NotFound(key.to_string()))
    }
}

#[async_trait]
impl Store for Memory {
    fn describe(&self) -> String {
        "memory".into()
    }

    async fn capabilities(&self) -> Result<Capabilities, Failure> {
        Ok(Capabilities { locks: true, enforced: true, checksums: true, versions: true, default_retention: false })
    }

    async fn identity(&self) -> Result<String, Failure> {
        Ok(self.describe())
    }

    async fn create(&self, key: &Key, body: Bytes, lock: Option<Lock>) -> Result<Version, CreateError> {
        let mut state = self.state();
        if state.find(key, None).is_ok() {
            return Err(CreateError::Exists(key.to_string()));
        }
        Ok(state.push(key, Some(body), lock))
    }

    async fn get(&self, key: &Key, version: Option<&Version>, range: Option<Range<u64>>) -> Result<Bytes, GetError> {
        let state = self.state();
        let body = state.find(key, version)?.body.clone().unwrap_or_default();
        let range = range.unwrap_or(0..body.len() as u64);
        let end = usize::try_from(range.end).unwrap_or(usize::MAX).min(body.len());
        let start = usize::try_from(range.start).unwrap_or(usize::MAX).min(end);
        Ok(body.slice(start..end))
    }

    async fn head(&self, key: &Key, version: Option<&Version>) -> Result<Head, GetError> {
        let state = self.state();
        let object = state.find(key, version)?;
        let body = object.body.as_deref().unwrap_or_default();
        Ok(Head {
            version: Version(object.version.to_string()),
            length: body.len() as u64,
            modified: object.modified,
            lock: object.lock,
            crc32: Some(crc32fast::hash(body)),
        })
    }

    async fn lock_of(&self, key: &Key, version: &Version) -> Result<Option<Lock>, GetError> {
        Ok(self.state().find(key, Some(version))?.lock)
    }

    async fn versions_page(&self, prefix: &str, from: Option<&Mark>) -> Result<Page<Listed>, Failure> {
        let mut state = self.state();
        state.pages_listed += 1;
        let mut out = Vec::new();
        for (key, versions) in state.objects.range(prefix.to_owned()..).take_while(|(k, _)| k.starts_with(prefix)) {
            if key != prefix && state.left_out.contains(&Key::new(key.clone())) {
                continue;
            }
            for (i, object) in versions.iter().enumerate().rev() {
                out.push(Listed {
                    key: Key::new(key.clone()),
                    version: Version(object.version.to_string()),
                    length: object.body.as_ref().map_or(0, |b| b.len() as u64),
                    modified: object.modified,
                    delete_marker: object.body.is_none(),
                    latest: i + 1 == versions.len(),
                });
            }
        }
        let begin = from.map_or(0, |m| m.key.parse().unwrap_or(usize::MAX));
        let end = self.page.map_or(out.len(), |page| out.len().min(begin.saturating_add(page)));
        let next = (end < out.len()).then(|| Mark { key: end.to_string(), version: None });
        Ok(Page { items: out.drain(begin..end).collect(), next })
    }

    async fn keys_page(&self, prefix: &str, _: Option<&Mark>) -> Result<Page<Key>, Failure> {
        let visible = self.keys().into_iter().filter(|k| k.as_str().starts_with(prefix));
        Ok(Page::whole(visible.collect()))
    }

    async fn extend_lock(&self, key: &Key, version: &Version, lock: Lock) -> Result<(), GetError> {
        let mut state = self.state();
        state.find(key, Some(version))?;
        let object = state
            .objects
            .get_mut(key.as_str())
            .and_then(|v| v.iter_mut().find(|o| o.version.to_string() == version.0))
            .ok_or_else(|| GetError::NotFound(key.to_string()))?;
        if object.lock.is_some_and(|old| old.until > lock.until) {
            return Err(Failure::new(Operation::ExtendLock, key, Trouble::Denied).into());
        }
        object.lock = Some(lock);
        Ok(())
    }

    async fn delete(&self, key: &Key, version: &Version) -> Result<(), DeleteError> {
        let mut state = self.state();
        let now = state.now();
        let Some(versions) = state.objects.get_mut(key.as_str()) else { return Ok(()) };
        if versions.iter().any(|o| o.version.to_string() == version.0 && o.lock.is_some_and(|l| l.until > now)) {
            return Err(DeleteError::Locked(key.to_string()));
        }
        versions.retain(|o| o.version.to_string() != version.0);
        if versions.is_empty() {
            state.objects.remove(key.as_str());
        }
        Ok(())
    }

    async fn grant_put(&self, terms: &PutTerms) -> Result<PutGrant, Failure> {
        Ok(PutGrant::File { root: PathBuf::from("memory"), key: terms.key.clone(), lock: terms.lock })
    }

    async fn grant_get(&self, key: &Key, version: &Version) -> Result<GetGrant, Failure> {
        // The version travels in the root, since a file grant has no field for it.
        Ok(GetGrant::File { root: PathBuf::from(&version.0), key: key.clone() })
    }
}

#[async_trait]
impl Redeem for Memory {
    async fn put(&self, grant: &PutGrant, body: Bytes) -> Result<Option<Version>, CreateError> {
        match grant {
            PutGrant::File { key, lock, .. } => self.create(key, body, *lock).await.map(Some),
            PutGrant::Presigned { url, .. } => Err(Failure::new(Operation::Create, url, Trouble::Refused).into()),
        }
    }

    async fn get(&self, grant: &GetGrant, range: Range<u64>, out: &mut Vec<u8>) -> Result<(), GetError> {
        match grant {
            GetGrant::File { root, key } => {
                let version = Version(root.display().to_string());
                let body = Store::get(self, key, Some(&version), Some(range.clone())).await?;
                if body.len() as u64 == range.end - range.start {
                    out.clear();
                    out.extend_from_slice(&body);
                    Ok(())
                } else {
                    Err(Failure::new(Operation::Get, key, Trouble::Short).into())
                }
            }
            GetGrant::Presigned { url, .. } => Err(Failure::new(Operation::Get, url, Trouble::Refused).into()),
        }
    }
}
