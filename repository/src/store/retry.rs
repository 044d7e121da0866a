//! Bounded retries with back-off, and reading back unknown outcomes.
//!
//! The SDK's own retries are off: their shared token bucket runs dry when many uploads meet one burst of SlowDown. Here each call
//! has its own bound, and a SlowDown makes *all* callers pause, so that the load goes down.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::directory::object::LocalObject;
use super::grant::{GetGrant, PutGrant, PutTerms, Redeem};
use super::listing::{Mark, Page};
use super::{
    Capabilities, CreateError, DeleteError, Failure, GetError, Happened, Head, Key, Listed, Lock, Store, Trouble,
    Version,
};
use crate::clock::entropy;

/// How often a call is tried, and how long it waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Calls in all, the first included.
    pub attempts: u32,
    /// The pause after the first failure; doubles each time.
    pub first_pause: Duration,
    /// No pause is longer.
    pub longest_pause: Duration,
    /// A single call that takes longer counts as failed with an unknown outcome.
    pub call_limit: Duration,
}

impl Patience {
    /// About a minute in total.
    pub const DEFAULT: Self = Self {
        attempts: 8,
        first_pause: Duration::from_millis(200),
        longest_pause: Duration::from_secs(20),
        call_limit: Duration::from_secs(180),
    };
    /// For tests: the same number of attempts, with hardly any waiting.
    pub const TEST: Self = Self {
        attempts: 8,
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(5),
        call_limit: Duration::from_secs(2),
    };
}

/// Bytes per second below which a transfer counts as dead.
const SLOWEST: u64 = 16 << 10;

/// The decorator.
pub struct Retrying<T> {
    inner: T,
    patience: Patience,
    /// No call starts before this moment. A SlowDown sets it for all callers.
    quiet_until: Arc<Mutex<Instant>>,
}

/// What the retry loop needs to know about an error.
trait Judged {
    fn failure(&self) -> Option<&Failure>;
    fn timed_out(key: &str) -> Self;
}

macro_rules! judged {
    ($($error:ty),*) => {$(
        impl Judged for $error {
            fn failure(&self) -> Option<&Failure> {
                match self {
                    Self::Failed(f) => Some(f),
                    _ => None,
                }
            }
            fn timed_out(key: &str) -> Self {
                Self::Failed(timed_out(key))
            }
        }
    )*};
}

judged!(GetError, CreateError, DeleteError);

impl Judged for Failure {
    fn failure(&self) -> Option<&Failure> {
        Some(self)
    }
    fn timed_out(key: &str) -> Self {
        timed_out(key)
    }
}

fn timed_out(key: &str) -> Failure {
    Failure::new(super::Operation::Inspect, key, Trouble::Unreachable).maybe().because("no answer in time")
}

impl<T> Retrying<T> {
    /// Decorates `inner`.
    pub fn new(inner: T, patience: Patience) -> Self {
        Self { inner, patience, quiet_until: Arc::new(Mutex::new(Instant::now())) }
    }

    /// Calls until the call succeeds, fails for good, or runs out of attempts. The second value tells whether an earlier attempt
    /// may have had an effect.
    async fn repeat<V, E: Judged, F: Future<Output = Result<V, E>>>(
        &self,
        key: &str,
        call: impl Fn() -> F,
    ) -> (Result<V, E>, bool) {
        self.repeat_sized(key, 0, call).await
    }

    /// Like [`Self::repeat`]. A call that sends or fetches `bytes` may take longer: a slow link, or a bound on bandwidth, is no
    /// failure.
    async fn repeat_sized<V, E: Judged, F: Future<Output = Result<V, E>>>(
        &self,
        key: &str,
        bytes: u64,
        call: impl Fn() -> F,
    ) -> (Result<V, E>, bool) {
        let limit = self.patience.call_limit + Duration::from_secs(bytes / SLOWEST);
        let mut pause = self.patience.first_pause;
        let mut unknown = false;
        for attempt in 1.. {
            let quiet = *self.quiet_until.lock().await;
            tokio::time::sleep_until(quiet).await;
            let result = tokio::time::timeout(limit, call()).await.unwrap_or_else(|_| Err(E::timed_out(key)));
            let Err(error) = result else { return (result, unknown) };
            let Some(failure) = error.failure() else { return (Err(error), unknown) };
            let earlier = unknown;
            unknown |= failure.happened == Happened::Maybe;
            if !failure.transient() || attempt >= self.patience.attempts {
                return (Err(error), earlier);
            }
            metrics::counter!("milkrun_store_retries_total").increment(1);
            tracing::debug!(key, attempt, error = %failure, "trying again");
            // Jitter of ±25 %, so that callers that failed together don't retry together.
            let jitter = 0.75 + f64::from(entropy::<1>()[0]) / 512.0;
            let wait = pause.mul_f64(jitter);
            if failure.trouble == Trouble::Busy {
                let mut quiet = self.quiet_until.lock().await;
                *quiet = (*quiet).max(Instant::now() + wait);
            } else {
                tokio::time::sleep(wait).await;
            }
            pause = (pause * 2).min(self.patience.longest_pause);
        }
        unreachable!("the loop returns at its last attempt")
    }
}

#[async_trait]
impl<S: Store> Store for Retrying<S> {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn address(&self) -> String {
        self.inner.address()
    }

    async fn capabilities(&self) -> Result<Capabilities, Failure> {
        self.repeat("", || self.inner.capabilities()).await.0
    }

    async fn identity(&self) -> Result<String, Failure> {
        self.repeat("", || self.inner.identity()).await.0
    }

    async fn create(&self, key: &Key, body: Bytes, lock: Option<Lock>) -> Result<Version, CreateError> {
        let (result, unknown) =
            self.repeat_sized(key.as_str(), body.len() as u64, || self.inner.create(key, body.clone(), lock)).await;
        let ours = match &result {
            // The key is taken, perhaps by an earlier attempt of ours.
            Err(CreateError::Exists(_)) => unknown,
            Err(CreateError::Failed(f)) => f.happened == Happened::Maybe || unknown,
            Ok(_) => false,
        };
        if !ours {
            return result;
        }
        // An unknown outcome is read back, never guessed.
        match self.get(key, None, Some(0..body.len() as u64 + 1)).await {
            Ok(found) if found == body => self.head(key, None).await.map(|h| h.version).map_err(|e| match e {
                GetError::Failed(f) => f.maybe().into(),
                GetError::NotFound(k) => Failure::new(super::Operation::Create, k, Trouble::Garbled).maybe().into(),
            }),
            Ok(_) => Err(CreateError::Exists(key.to_string())),
            // The key is taken, perhaps by us, and we can't find out. This must not be reported as taken by somebody else.
            Err(GetError::Failed(f)) => Err(f.maybe().into()),
            Err(GetError::NotFound(_)) => result,
        }
    }

    async fn get(&self, key: &Key, version: Option<&Version>, range: Option<Range<u64>>) -> Result<Bytes, GetError> {
        self.repeat(key.as_str(), || self.inner.get(key, version, range.clone())).await.0
    }

    async fn head(&self, key: &Key, version: Option<&Version>) -> Result<Head, GetError> {
        self.repeat(key.as_str(), || self.inner.head(key, version)).await.0
    }

    async fn lock_of(&self, key: &Key, version: &Version) -> Result<Option<Lock>, GetError> {
        self.repeat(key.as_str(), || self.inner.lock_of(key, version)).await.0
    }

    async fn versions_page(&self, prefix: &str, from: Option<&Mark>) -> Result<Page<Listed>, Failure> {
        self.repeat(prefix, || self.inner.versions_page(prefix, from)).await.0
    }

    async fn keys_page(&self, prefix: &str, from: Option<&Mark>) -> Result<Page<Key>, Failure> {
        self.repeat(prefix, || self.inner.keys_page(prefix, from)).await.0
    }

    async fn extend_lock(&self, key: &Key, version: &Version, lock: Lock) -> Result<(), GetError> {
        self.repeat(key.as_str(), || self.inner.extend_lock(key, version, lock)).await.0
    }

    async fn delete(&self, key: &Key, version: &Version) -> Result<(), DeleteError> {
        self.repeat(key.as_str(), || self.inner.delete(key, version)).await.0
    }

    async fn grant_put(&self, terms: &PutTerms) -> Result<PutGrant, Failure> {
        self.repeat(terms.key.as_str(), || self.inner.grant_put(terms)).await.0
    }

    async fn grant_get(&self, key: &Key, version: &Version) -> Result<GetGrant, Failure> {
        self.repeat(key.as_str(), || self.inner.grant_get(key, version)).await.0
    }
}

#[async_trait]
impl<R: Redeem> Redeem for Retrying<R> {
    /// A redeemer can't read back: "exists" after an unknown outcome counts as done. The coordinator's seal checks what is really
    /// there (length, checksum, lock) before anything relies on it.
    async fn put(&self, grant: &PutGrant, body: Bytes) -> Result<Option<Version>, CreateError> {
        match self.repeat_sized("pack", body.len() as u64, || self.inner.put(grant, body.clone())).await {
            (Err(CreateError::Exists(_)), true) => Ok(None),
            (result, _) => result,
        }
    }

    async fn get(&self, grant: &GetGrant, range: Range<u64>, out: &mut Vec<u8>) -> Result<(), GetError> {
        let bytes = range.end.saturating_sub(range.start);
        // Only one attempt at a time has the buffer; an attempt that is given up releases it.
        let out = Mutex::new(out);
        let attempt = || async { self.inner.get(grant, range.clone(), &mut **out.lock().await).await };
        self.repeat_sized("pack", bytes, attempt).await.0
    }

    async fn open(&self, grant: &GetGrant, range: Range<u64>) -> Result<Option<LocalObject>, GetError> {
        self.repeat("pack", || self.inner.open(grant, range.clone())).await.0
    }
}
