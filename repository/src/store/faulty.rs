//! A decorator that makes a store, or a redeemer of its grants, fail as a script says.
//!
//! Each call is numbered and given to a script, which may answer with a [`Fault`]. There are [crash points](crate::crash) before
//! and after each call, so that a test can stop the process at every one of them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::directory::object::LocalObject;
use super::grant::{GetGrant, PutGrant, PutTerms, Redeem};
use super::listing::{Mark, Page};
use super::{
    Capabilities, CreateError, DeleteError, Failure, GetError, Happened, Head, Key, Listed, Lock, Operation, Store,
    Trouble, Version,
};
use crate::crash;

/// What goes wrong with one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails, and nothing happened.
    Before(Trouble),
    /// The operation happens, but the call fails with an unknown outcome.
    After(Trouble),
    /// The call succeeds, but nothing happened (writes only).
    Lie,
    /// The body is shorter by a byte (reads only).
    Truncate,
    /// A bit of the body is flipped (reads only).
    Flip,
    /// The call answers after this time.
    Stall(Duration),
}

/// Decides about the n-th call, counted from 1.
pub type Script = Arc<dyn Fn(u64, Operation, &str) -> Option<Fault> + Send + Sync>;

/// The decorator. Around a [`Store`] it is a store; around a [`Redeem`] it redeems grants. Clones share the count.
pub struct Faulty<T> {
    inner: T,
    script: Script,
    calls: Arc<AtomicU64>,
}

impl<T> Faulty<T> {
    /// Decorates `inner`.
    pub fn new(inner: T, script: Script) -> Self {
        Self { inner, script, calls: Arc::default() }
    }

    /// Adds only the crash points.
    pub fn crash_points(inner: T) -> Self {
        Self::new(inner, Arc::new(|_, _, _| None))
    }

    /// Shares the count of calls with another decorator, for a script that sees both.
    #[must_use]
    pub fn counting_with<U>(mut self, other: &Faulty<U>) -> Self {
        self.calls = other.calls.clone();
        self
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    async fn before(&self, operation: Operation, key: &str) -> Result<Option<Fault>, Failure> {
        let n = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let fault = (self.script)(n, operation, key);
        match fault {
            Some(Fault::Before(trouble)) => return Err(Failure::new(operation, key, trouble).because("injected")),
            Some(Fault::Stall(time)) => tokio::time::sleep(time).await,
            _ => {}
        }
        crash::point(&format!("before {operation} {key}"));
        Ok(fault)
    }

    fn after(&self, fault: Option<Fault>, operation: Operation, key: &str) -> Result<(), Failure> {
        crash::point(&format!("after {operation} {key}"));
        match fault {
            Some(Fault::After(trouble)) => {
                Err(Failure { happened: Happened::Maybe, ..Failure::new(operation, key, trouble).because("injected") })
            }
            _ => Ok(()),
        }
    }
}

fn spoil(fault: Option<Fault>, body: Bytes) -> Bytes {
    match fault {
        Some(Fault::Truncate) if !body.is_empty() => body.slice(..body.len() - 1),
        Some(Fault::Flip) if !body.is_empty() => {
            let mut bytes = body.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            bytes.into()
        }
        _ => body,
    }
}

#[async_trait]
impl<S: Store> Store for Faulty<S> {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn address(&self) -> String {
        self.inner.address()
    }

    async fn capabilities(&self) -> Result<Capabilities, Failure> {
        let fault = self.before(Operation::Inspect, "").await?;
        let out = self.inner.capabilities().await?;
        self.after(fault, Operation::Inspect, "")?;
        Ok(out)
    }

    async fn identity(&self) -> Result<String, Failure> {
        self.inner.identity().await
    }

    async fn create(&self, key: &Key, body: Bytes, lock: Option<Lock>) -> Result<Version, CreateError> {
        let fault = self.before(Operation::Create, key.as_str()).await?;
        if fault == Some(Fault::Lie) {
            return Ok(Version("lie".into()));
        }
        let out = self.inner.create(key, body, lock).await?;
        self.after(fault, Operation::Create, key.as_str())?;
        Ok(out)
    }

    async fn get(&self, key: &Key, version: Option<&Version>, range: Option<Range<u64>>) -> Result<Bytes, GetError> {
        let fault = self.before(Operation::Get, key.as_str()).await?;
        let out = self.inner.get(key, version, range).await?;
        self.after(fault, Operation::Get, key.as_str())?;
        Ok(spoil(fault, out))
    }

    async fn head(&self, key: &Key, version: Option<&Version>) -> Result<Head, GetError> {
        let fault = self.before(Operation::Head, key.as_str()).await?;
        let out = self.inner.head(key, version).await?;
        self.after(fault, Operation::Head, key.as_str())?;
        Ok(out)
    }

    async fn lock_of(&self, key: &Key, version: &Version) -> Result<Option<Lock>, GetError> {
        let fault = self.before(Operation::Head, key.as_str()).await?;
        let out = self.inner.lock_of(key, version).await?;
        self.after(fault, Operation::Head, key.as_str())?;
        Ok(out)
    }

    async fn versions_page(&self, prefix: &str, from: Option<&Mark>) -> Result<Page<Listed>, Failure> {
        let fault = self.before(Operation::List, prefix).await?;
        let out = self.inner.versions_page(prefix, from).await?;
        self.after(fault, Operation::List, prefix)?;
        Ok(out)
    }

    async fn keys_page(&self, prefix: &str, from: Option<&Mark>) -> Result<Page<Key>, Failure> {
        let fault = self.before(Operation::List, prefix).await?;
        let out = self.inner.keys_page(prefix, from).await?;
        self.after(fault, Operation::List, prefix)?;
        Ok(out)
    }

    async fn extend_lock(&self, key: &Key, version: &Version, lock: Lock) -> Result<(), GetError> {
        let fault = self.before(Operation::ExtendLock, key.as_str()).await?;
        if fault == Some(Fault::Lie) {
            return Ok(());
        }
        self.inner.extend_lock(key, version, lock).await?;
        Ok(self.after(fault, Operation::ExtendLock, key.as_str())?)
    }

    async fn delete(&self, key: &Key, version: &Version) -> Result<(), DeleteError> {
        let fault = self.before(Operation::Delete, key.as_str()).await?;
        if fault == Some(Fault::Lie) {
            return Ok(());
        }
        self.inner.delete(key, version).await?;
        Ok(self.after(fault, Operation::Delete, key.as_str())?)
    }

    async fn grant_put(&self, terms: &PutTerms) -> Result<PutGrant, Failure> {
        let fault = self.before(Operation::Grant, terms.key.as_str()).await?;
        let out = self.inner.grant_put(terms).await?;
        self.after(fault, Operation::Grant, terms.key.as_str())?;
        Ok(out)
    }

    async fn grant_get(&self, key: &Key, version: &Version) -> Result<GetGrant, Failure> {
        let fault = self.before(Operation::Grant, key.as_str()).await?;
        let out = self.inner.grant_get(key, version).await?;
        self.after(fault, Operation::Grant, key.as_str())?;
        Ok(out)
    }
}

fn put_name(grant: &PutGrant) -> &str {
    match grant {
        PutGrant::File { key, .. } => key.as_str(),
        PutGrant::Presigned { url, .. } => url,
    }
}

fn get_name(grant: &GetGrant) -> &str {
    match grant {
        GetGrant::File { key, .. } => key.as_str(),
        GetGrant::Presigned { url, .. } => url,
    }
}

#[async_trait]
impl<R: Redeem> Redeem for Faulty<R> {
    async fn put(&self, grant: &PutGrant, body: Bytes) -> Result<Option<Version>, CreateError> {
        let fault = self.before(Operation::Create, put_name(grant)).await?;
        if fault == Some(Fault::Lie) {
            return Ok(None);
        }
        let version = self.inner.put(grant, body).await?;
        self.after(fault, Operation::Create, put_name(grant))?;
        Ok(version)
    }

    async fn get(&self, grant: &GetGrant, range: Range<u64>, out: &mut Vec<u8>) -> Result<(), GetError> {
        let fault = self.before(Operation::Get, get_name(grant)).await?;
        self.inner.get(grant, range, out).await?;
        self.after(fault, Operation::Get, get_name(grant))?;
        if fault == Some(Fault::Truncate) {
            return Err(Failure::new(Operation::Get, get_name(grant), Trouble::Garbled).into());
        }
        *out = spoil(fault, std::mem::take(out).into()).into();
        Ok(())
    }

    async fn open(&self, grant: &GetGrant, range: Range<u64>) -> Result<Option<LocalObject>, GetError> {
        let fault = self.before(Operation::Get, get_name(grant)).await?;
        if matches!(fault, Some(Fault::Truncate | Fault::Flip)) {
            // Later reads of an opened object bypass us and can't be spoiled. Without one the caller uses `get`.
            return Ok(None);
        }
        let out = self.inner.open(grant, range).await?;
        self.after(fault, Operation::Get, get_name(grant))?;
        Ok(out)
    }
}

// A shared store can be decorated, and can decorate, like an owned one.
#[async_trait]
impl Store for Arc<dyn Store> {
    fn describe(&self) -> String {
        (**self).describe()
    }
    fn address(&self) -> String {
        (**self).address()
    }
    async fn capabilities(&self) -> Result<Capabilities, Failure> {
        (**self).capabilities().await
    }
    async fn identity(&self) -> Result<String, Failure> {
        (**self).identity().await
    }
    async fn create(&self, key: &Key, body: Bytes, lock: Option<Lock>) -> Result<Version, CreateError> {
        (**self).create(key, body, lock).await
    }
    async fn get(&self, key: &Key, version: Option<&Version>, range: Option<Range<u64>>) -> Result<Bytes, GetError> {
        (**self).get(key, version, range).await
    }
    async fn head(&self, key: &Key, version: Option<&Version>) -> Result<Head, GetError> {
        (**self).head(key, version).await
    }
    async fn lock_of(&self, key: &Key, version: &Version) -> Result<Option<Lock>, GetError> {
        (**self).lock_of(key, version).await
    }
    async fn versions_page(&self, prefix: &str, from: Option<&Mark>) -> Result<Page<Listed>, Failure> {
        (**self).versions_page(prefix, from).await
    }
    async fn keys_page(&self, prefix: &str, from: Option<&Mark>) -> Result<Page<Key>, Failure> {
        (**self).keys_page(prefix, from).await
    }
    async fn extend_lock(&self, key: &Key, version: &Version, lock: Lock) -> Result<(), GetError> {
        (**self).extend_lock(key, version, lock).await
    }
    async fn delete(&self, key: &Key, version: &Version) -> Result<(), DeleteError> {
        (**self).delete(key, version).await
    }
    async fn grant_put(&self, terms: &PutTerms) -> Result<PutGrant, Failure> {
        (**self).grant_put(terms).await
    }
    async fn grant_get(&self, key: &Key, version: &Version) -> Result<GetGrant, Failure> {
        (**self).grant_get(key, version).await
    }
}

#[async_trait]
impl Redeem for Arc<dyn Redeem> {
    async fn put(&self, grant: &PutGrant, body: Bytes) -> Result<Option<Version>, CreateError> {
        (**self).put(grant, body).await
    }
    async fn get(&self, grant: &GetGrant, range: Range<u64>, out: &mut Vec<u8>) -> Result<(), GetError> {
        (**self).get(grant, range, out).await
    }
    async fn open(&self, grant: &GetGrant, range: Range<u64>) -> Result<Option<LocalObject>, GetError> {
        (**self).open(grant, range).await
    }
}
