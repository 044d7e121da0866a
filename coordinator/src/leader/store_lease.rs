//! A leader's lease of create-only objects in the repository's store. Its times decide about waiting, not about safety (see
//! [`super`]).
//!
//! The keys are `leases/leader/<epoch>-<beat>`. The leader writes a new beat every few seconds and deletes the one before. A
//! coordinator that wants to lead watches them. When no new beat came for a while, it creates the first beat of the next epoch. The
//! write is create-only, so that exactly one coordinator wins.
//!
//! A beat counts only if a holder of the repository's secret wrote it for exactly this key. Anybody who may write to the bucket can
//! put other objects beside the beats: each of them is read once, logged, and deleted.
//!
//! One attack is accepted: anybody who may write to the bucket can take the keys of a leader's next beats, so that a standby takes
//! over. No run is lost by that. Keys that nobody can guess would need a listing for each beat.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use milkrun_repository::Repository;
use milkrun_repository::keys::envelope::{self, Kind};
use milkrun_repository::store::{
    CreateError, DeleteError, Failure, GetError, Key, Listed, Trouble, Version, read_listed,
};
use milkrun_repository::wire::{Decoder, Encoder};
use tokio::time::Instant;

use super::{Leadership, Lost};

/// How many beats the leader writes in the time after which another coordinator may lead. A follower looks as often.
const BEATS: u32 = 4;

/// A lease by conditional writes in the store.
pub struct StoreLease {
    repository: Arc<Repository>,
    name: String,
    /// After this time without a beat another coordinator may lead.
    patience: Duration,
    /// The newest beat at the last look, and since when it is the newest.
    seen: Mutex<Option<(Option<Beat>, Instant)>>,
    judged: Mutex<Judged>,
}

/// The results of earlier looks, so that each beat is read once.
#[derive(Default)]
struct Judged {
    sound: Option<Beat>,
    rubbish: HashSet<(Beat, Version)>,
    /// Versions that are locked: they are not tried again.
    locked: HashSet<Version>,
    /// The store does not let this process delete anything: it is not tried again.
    no_deletes: bool,
}

/// How many objects are remembered as not being beats; any beyond that are read again.
const RUBBISH_MAX: usize = 64 * 1024;

/// How many versions one sweep deletes at most: the next beat must not wait for more.
const SWEPT: usize = 32;

/// How many keys are tried for the next beat when something else is at its key.
const KEYS_TRIED: u32 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Beat {
    epoch: u64,
    number: u32,
}

impl Beat {
    fn key(self) -> Key {
        Key::leader(self.epoch, self.number)
    }
}

/// How many names below `leases/leader/` are read side by side: anybody who may write can put thousands there.
const LOOKS: usize = 16;

impl StoreLease {
    /// A lease in this repository; `name` is for people. Another coordinator may lead after `patience` without a beat.
    pub fn new(repository: Arc<Repository>, name: String, patience: Duration) -> Self {
        Self { repository, name, patience, seen: Mutex::default(), judged: Mutex::default() }
    }

    fn judged(&self) -> MutexGuard<'_, Judged> {
        self.judged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest beat that was written by a holder of the secret.
    async fn newest(&self) -> Result<Option<Beat>, Failure> {
        let mut listed: Vec<(Beat, Listed)> = Vec::new();
        for v in self.repository.store.versions(Key::leaders()).await? {
            let beat = v.key.parse_leader().map(|(epoch, number)| Beat { epoch, number });
            if let Some(beat) = beat.filter(|_| !v.delete_marker) {
                listed.push((beat, v));
            }
        }
        listed.sort_by_key(|(beat, _)| std::cmp::Reverse(*beat));
        // Newest first, without those that were read before. What is older than the last sound beat does not matter.
        let mut known = None;
        {
            let judged = self.judged();
            listed.retain(|(beat, v)| !judged.rubbish.contains(&(*beat, v.version.clone())));
            if let Some(at) = listed.iter().position(|(beat, _)| judged.sound == Some(*beat)) {
                known = Some(listed.split_off(at)[0].0);
            }
        }
        let looks = listed.into_iter().map(|(beat, version)| async move {
            let look = self.open(&version).await;
            (beat, version, look)
        });
        let mut looks = futures::stream::iter(looks).buffered(LOOKS);
        while let Some((beat, version, look)) = looks.next().await {
            if look?.is_some() {
                self.judged().sound = Some(beat);
                return Ok(Some(beat));
            }
            tracing::warn!(object = %version.key, version = %version.version, "is no beat of a leader: not by a holder of the secret");
            let mut judged = self.judged();
            if judged.rubbish.len() < RUBBISH_MAX {
                judged.rubbish.insert((beat, version.version));
            }
        }
        Ok(known)
    }

    /// Reads a beat: `Some` if it is sound, with whether its writer gave the lease up.
    async fn open(&self, listed: &Listed) -> Result<Option<bool>, Failure> {
        let repository = &self.repository;
        let bytes = match read_listed(&*repository.store, listed).await {
            Ok(bytes) => bytes,
            Err(GetError::NotFound(_)) => return Ok(None),
            Err(GetError::Failed(f)) if f.trouble == Trouble::Foreign => return Ok(None),
            Err(GetError::Failed(f)) => return Err(f),
        };
        let body = envelope::open(&repository.ring, &repository.config.id, &listed.key, Kind::Leader, &bytes);
        Ok(body.ok().map(|body| Decoder::new(&body).u8("gave way") == Ok(1)))
    }

    /// The versions of one beat's key.
    async fn versions_of(&self, beat: Beat) -> Result<Vec<Listed>, Failure> {
        let key = beat.key();
        let mut listed = self.repository.store.versions(key.as_str()).await?;
        listed.retain(|v| v.key == key && !v.delete_marker);
        Ok(listed)
    }

    /// Whether the beat's writer gave the lease up. A beat that can't be read counts as not given up.
    async fn gave_way(&self, beat: Beat) -> Result<bool, Failure> {
        for version in self.versions_of(beat).await? {
            if let Some(gave_way) = self.open(&version).await? {
                return Ok(gave_way);
            }
        }
        Ok(false)
    }

    /// Whether a beat's key holds a sound beat, of any writer.
    async fn is_beat(&self, beat: Beat) -> Result<bool, Failure> {
        for version in self.versions_of(beat).await? {
            if self.open(&version).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn write(&self, beat: Beat, gives_way: bool) -> Result<(), CreateError> {
        let (repository, key) = (&self.repository, beat.key());
        let body = Encoder::new().u8(u8::from(gives_way)).text(&self.name).finish();
        let object = envelope::seal(&repository.ring, &repository.config.id, &key, Kind::Leader, &body);
        repository.store.create(&key, object.into(), None).await.map(drop)
    }

    /// Deletes older beats and objects that are no beats. What can't be deleted does no harm. If this process may not delete, that
    /// is logged once.
    async fn sweep(&self, before: Beat) {
        if self.judged().no_deletes {
            return;
        }
        let Ok(versions) = self.repository.store.versions(Key::leaders()).await else { return };
        let mut swept = 0;
        for v in versions.into_iter().filter(|v| !v.delete_marker) {
            if swept == SWEPT {
                return;
            }
            let Some(beat) = v.key.parse_leader().map(|(epoch, number)| Beat { epoch, number }) else { continue };
            let rubbish = (beat, v.version.clone());
            let goes = {
                let judged = self.judged();
                (beat < before || judged.rubbish.contains(&rubbish)) && !judged.locked.contains(&v.version)
            };
            if !goes {
                continue;
            }
            swept += 1;
            match self.repository.store.delete(&v.key, &v.version).await {
                Ok(()) => drop(self.judged().rubbish.remove(&rubbish)),
                Err(DeleteError::Failed(f)) if f.trouble == Trouble::Denied => {
                    tracing::warn!(
                        "beats of leaders stay: this identity may delete nothing below leases/ (see the policies that `milkrun init` prints)"
                    );
                    self.judged().no_deletes = true;
                    return;
                }
                Err(DeleteError::Locked(_)) => drop(self.judged().locked.insert(v.version)),
                Err(DeleteError::Failed(_)) => {}
            }
        }
    }

    /// Writes the beat after this one. A key that holds something else is skipped.
    async fn write_next(&self, after: Beat, gives_way: bool) -> Result<Beat, CreateError> {
        let mut next = after;
        for _ in 0..KEYS_TRIED {
            next.number = next.number.saturating_add(1);
            match self.write(next, gives_way).await {
                // If it is a beat, it is this process's own: no other process writes in this epoch.
                Err(CreateError::Exists(_)) if !self.is_beat(next).await? => {}
                Ok(()) | Err(CreateError::Exists(_)) => return Ok(next),
                Err(e) => return Err(e),
            }
        }
        Err(CreateError::Exists(next.key().to_string()))
    }
}

#[async_trait]
impl Leadership for StoreLease {
    async fn is_free(&self) -> Result<bool, Failure> {
        let newest = self.newest().await?;
        let since = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.is_none() && newest.is_some() {
                tracing::info!("another coordinator leads; waiting");
            }
            let since = match *seen {
                Some((beat, since)) if beat == newest => since,
                _ => Instant::now(),
            };
            *seen = Some((newest, since));
            since
        };
        match newest {
            None => Ok(true),
            Some(beat) => Ok(since.elapsed() >= self.patience || self.gave_way(beat).await?),
        }
    }

    async fn take(&self) -> Result<Option<u64>, Failure> {
        // Takes the epoch after the one that was seen to be free: if somebody led since then, they were faster.
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = match seen {
            Some((newest, _)) => newest,
            None => self.newest().await?,
        };
        let mut beat = Beat { epoch: newest.map_or(0, |b| b.epoch).saturating_add(1), number: 0 };
        loop {
            match self.write(beat, false).await {
                Ok(()) => {
                    self.sweep(beat).await;
                    return Ok(Some(beat.epoch));
                }
                // Somebody put something else there. All coordinators that want to lead skip it in the same way, so that exactly
                // one wins.
                Err(CreateError::Exists(_)) if !self.is_beat(beat).await? && beat.epoch < u64::MAX => {
                    tracing::warn!(object = %beat.key(), "is no beat of a leader: not by a holder of the secret");
                    beat.epoch += 1;
                }
                // Another coordinator was faster.
                Err(CreateError::Exists(_)) => return Ok(None),
                Err(CreateError::Failed(f)) => return Err(f),
            }
        }
    }

    fn pause(&self) -> Duration {
        self.patience / BEATS
    }

    async fn hold(&self, epoch: u64) -> Lost {
        let mut beat = Beat { epoch, number: 0 };
        let mut last = Instant::now();
        loop {
            tokio::time::sleep(self.pause()).await;
            let renewed = match self.newest().await {
                Ok(Some(newest)) if newest.epoch > epoch => return Lost::Superseded(newest.epoch),
                Ok(newest) => {
                    // The lease may have been held in this epoch before: a follower looks at the newest beat only.
                    beat = newest.filter(|newest| newest.epoch == epoch).map_or(beat, |newest| newest.max(beat));
                    self.write_next(beat, false).await
                }
                Err(f) => Err(f.into()),
            };
            match renewed {
                Ok(next) => {
                    beat = next;
                    last = Instant::now();
                    self.sweep(beat).await;
                }
                Err(CreateError::Failed(f)) if last.elapsed() >= self.patience => {
                    return Lost::Unreachable { seconds: last.elapsed().as_secs(), why: f.to_string() };
                }
                Err(CreateError::Failed(f)) => tracing::warn!(error = %f, "can't say that this coordinator leads"),
                Err(e @ CreateError::Exists(_)) => {
                    // The next try begins after the keys that were taken.
                    beat.number = beat.number.saturating_add(KEYS_TRIED);
                    tracing::warn!(error = %e, "can't say that this coordinator leads: somebody takes the keys");
                }
            }
        }
    }

    async fn release(&self, epoch: u64) {
        if let Ok(Some(newest)) = self.newest().await
            && newest.epoch == epoch
        {
            // If this fails, the next leader waits for the full time.
            if let Ok(last) = self.write_next(newest, true).await {
                self.sweep(last).await;
            }
        }
    }

    async fn is_newest(&self, epoch: u64) -> bool {
        matches!(self.leads(epoch).await, Ok(true))
    }

    async fn leads(&self, epoch: u64) -> Result<bool, Failure> {
        Ok(self.newest().await?.is_none_or(|b| b.epoch <= epoch))
    }
}
