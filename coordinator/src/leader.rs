//! Which coordinator leads: a lease by conditional writes in the repository's store. A cluster's own lease can stand in behind
//! the same trait.
//!
//! `leases/leader/<epoch>-<beat>`: who leads writes a new beat every few seconds and deletes the one before. Who wants to lead
//! watches; when nothing new came for a while, it creates the first beat of the next epoch: create-only, so that one wins.
//!
//! **Nothing rests on these times.** Two who both believe that they lead do no harm: a run's root is created once
//! ([`commit`](milkrun_repository::point::commit)), and journals of an older epoch do not count.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use milkrun_repository::Repository;
use milkrun_repository::keys::envelope::{self, Kind};
use milkrun_repository::store::{CreateError, Failure, GetError, Key, read};
use milkrun_repository::wire::{Decoder, Encoder};
use tokio::time::Instant;

/// How often who leads says so, in each span after which another may lead; a follower looks as often.
const BEATS: u32 = 4;

/// Decides who leads.
#[async_trait]
pub trait Leadership: Send + Sync {
    /// Waits until this process leads. Returns its epoch, which is higher than that of all who led before.
    ///
    /// # Errors
    /// When the store can't be asked.
    async fn campaign(&self) -> Result<u64, Failure>;

    /// Goes on leading, until somebody else does, or it can't be told. Returns why.
    async fn hold(&self, epoch: u64) -> String;

    /// Gives way: the next one need not wait.
    async fn release(&self, epoch: u64);

    /// Whether nobody leads under a higher epoch, as far as can be told.
    async fn is_newest(&self, epoch: u64) -> bool;
}

/// By conditional writes in the store.
pub struct StoreLease {
    repository: Arc<Repository>,
    name: String,
    /// After so long without a beat another may lead.
    patience: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Beat {
    epoch: u64,
    number: u32,
}

impl Beat {
    fn key(self) -> Key {
        Key::leader(self.epoch, self.number)
    }
}

impl StoreLease {
    /// In this repository; `name` is for people. Another may lead when nothing was heard for `patience`.
    pub fn new(repository: Arc<Repository>, name: String, patience: Duration) -> Self {
        Self { repository, name, patience }
    }

    fn pause(&self) -> Duration {
        self.patience / BEATS
    }

    async fn newest(&self) -> Result<Option<Beat>, Failure> {
        let versions = self.repository.store.versions(Key::leaders()).await?;
        let beats = versions.iter().filter(|v| !v.delete_marker).filter_map(|v| v.key.parse_leader());
        Ok(beats.map(|(epoch, number)| Beat { epoch, number }).max())
    }

    /// Whether its writer gave way. One that can't be read counts as one who did not.
    async fn gave_way(&self, beat: Beat) -> Result<bool, Failure> {
        let (repository, key) = (&self.repository, beat.key());
        let bytes = match read(&*repository.store, &key, None).await {
            Ok(bytes) => bytes,
            Err(GetError::NotFound(_)) => return Ok(false),
            Err(GetError::Failed(f)) => return Err(f),
        };
        let body = envelope::open(&repository.ring, &repository.config.id, &key, Kind::Leader, &bytes);
        Ok(body.is_ok_and(|body| Decoder::new(&body).u8("gave way") == Ok(1)))
    }

    async fn write(&self, beat: Beat, gives_way: bool) -> Result<(), CreateError> {
        let (repository, key) = (&self.repository, beat.key());
        let body = Encoder::new().u8(u8::from(gives_way)).text(&self.name).finish();
        let object = envelope::seal(&repository.ring, &repository.config.id, &key, Kind::Leader, &body);
        repository.store.create(&key, object.into(), None).await.map(drop)
    }

    /// Deletes what came before a beat. What can't be deleted does no harm.
    async fn sweep(&self, before: Beat) {
        let Ok(versions) = self.repository.store.versions(Key::leaders()).await else { return };
        for v in versions.into_iter().filter(|v| !v.delete_marker) {
            if v.key.parse_leader().is_some_and(|(epoch, number)| Beat { epoch, number } < before) {
                let _ = self.repository.store.delete(&v.key, &v.version).await;
            }
        }
    }
}

#[async_trait]
impl Leadership for StoreLease {
    async fn campaign(&self) -> Result<u64, Failure> {
        let mut seen: Option<(Option<Beat>, Instant)> = None;
        loop {
            let newest = self.newest().await?;
            let since = match seen {
                Some((beat, since)) if beat == newest => since,
                _ => Instant::now(),
            };
            if seen.is_none() && newest.is_some() {
                tracing::info!("another coordinator leads; waiting");
            }
            seen = Some((newest, since));
            let free = match newest {
                None => true,
                Some(beat) => since.elapsed() >= self.patience || self.gave_way(beat).await?,
            };
            if free {
                let beat = Beat { epoch: newest.map_or(0, |b| b.epoch) + 1, number: 0 };
                match self.write(beat, false).await {
                    Ok(()) => {
                        self.sweep(beat).await;
                        return Ok(beat.epoch);
                    }
                    // Another one was faster.
                    Err(CreateError::Exists(_)) => continue,
                    Err(CreateError::Failed(f)) => return Err(f),
                }
            }
            tokio::time::sleep(self.pause()).await;
        }
    }

    async fn hold(&self, epoch: u64) -> String {
        let mut beat = Beat { epoch, number: 0 };
        let mut last = Instant::now();
        loop {
            tokio::time::sleep(self.pause()).await;
            let next = Beat { epoch, number: beat.number + 1 };
            let renewed = match self.newest().await {
                Ok(Some(newest)) if newest.epoch > epoch => {
                    return format!("another coordinator leads since, with epoch {}", newest.epoch);
                }
                Ok(_) => self.write(next, false).await,
                Err(f) => Err(f.into()),
            };
            match renewed {
                Ok(()) | Err(CreateError::Exists(_)) => {
                    beat = next;
                    last = Instant::now();
                    self.sweep(beat).await;
                }
                Err(CreateError::Failed(f)) if last.elapsed() >= self.patience => {
                    return format!("the store could not be asked for {} s: {f}", last.elapsed().as_secs());
                }
                Err(CreateError::Failed(f)) => tracing::warn!(error = %f, "can't say that this coordinator leads"),
            }
        }
    }

    async fn release(&self, epoch: u64) {
        if let Ok(Some(newest)) = self.newest().await
            && newest.epoch == epoch
        {
            let last = Beat { epoch, number: newest.number + 1 };
            // Else the next one waits.
            if self.write(last, true).await.is_ok() {
                self.sweep(last).await;
            }
        }
    }

    async fn is_newest(&self, epoch: u64) -> bool {
        matches!(self.newest().await, Ok(newest) if newest.is_none_or(|b| b.epoch <= epoch))
    }
}
