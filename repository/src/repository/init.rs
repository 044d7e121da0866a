//! Making a repository. First the store must prove that it does what we rely on.

use std::time::Duration;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::{Repository, rolling};
use crate::chunk::page_cutter::PageCutter;
use crate::chunk::stream_cutter::StreamCutter;
use crate::clock::Moment;
use crate::config::{Config, LockMode, LockPolicy};
use crate::id::{KeyId, RepositoryId};
use crate::keys::wrapped::{self, Cost};
use crate::keys::{KeyRing, Secret, recovery};
use crate::point::commit::{CommitError, Locks, check_clock};
use crate::store::Version;
use crate::store::{CreateError, DeleteError, Failure, GetError, Key, Listed, Lock, SharedStore, Store, Trouble};

/// How long the probe object stays locked.
const PROBE_LOCK: Duration = Duration::from_secs(90);

/// What to make.
#[derive(Clone, Copy, Debug)]
pub struct InitOptions {
    /// Locking.
    pub lock: LockPolicy,
    /// How volumes are cut.
    pub pages: PageCutter,
    /// How streams are cut.
    pub streams: StreamCutter,
    /// What opening with a password costs.
    pub cost: Cost,
}

/// A fresh repository, and what `init` learned about the store.
pub struct Initialised {
    /// The repository.
    pub repository: Repository,
    /// Whether a server enforces the locks.
    pub enforced: bool,
    /// The secret as text. It opens the repository without any key file, and is stored nowhere.
    pub recovery_key: Zeroizing<String>,
}

/// Why no repository was made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is a repository already.
    #[error("there is a repository at {0} already")]
    Exists(String),
    /// There is a repository, and a delete marker hides it.
    #[error(
        "there is a repository at {0} already, which delete markers hide: remove the markers to see it again, or choose \
         another place"
    )]
    Hidden(String),
    /// There is something else.
    #[error("{0} is not empty and holds no repository; choose another place")]
    NotEmpty(String),
    /// The bucket locks new objects by itself.
    #[error(
        "the bucket has a default retention: leases and journals could not be deleted. \
         Remove it (PutObjectLockConfiguration without a rule); milkrun sets every lock itself"
    )]
    DefaultRetention,
    /// The bucket has no versioning.
    #[error("locks need versioning, which is not enabled on the bucket: enable it, or use --lock none")]
    NoVersions,
    /// The bucket has no Object Lock.
    #[error(
        "the bucket has no Object Lock: make one with it enabled (it can't be added on most stores), or use --lock none"
    )]
    NoLocks,
    /// A create-only PUT overwrote an object.
    #[error(
        "the store ignores create-only PUTs (If-None-Match: *): two writers could overwrite each other's restore points"
    )]
    NoCreateOnly,
    /// The bytes that were read differ from those that were written.
    #[error("the store returned other bytes than were written")]
    Garbled,
    /// The store accepted the lock but does not enforce it.
    #[error("the store accepts a {mode} lock and does not keep it: {what}")]
    LockBroken {
        /// The mode.
        mode: LockMode,
        /// What could be done to a locked probe object.
        what: &'static str,
    },
    /// The clocks differ too much.
    #[error(transparent)]
    Clock(CommitError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Failure),
}

impl From<GetError> for InitError {
    fn from(e: GetError) -> Self {
        match e {
            // An object that was just written is not there.
            GetError::NotFound(_) => Self::Garbled,
            GetError::Failed(f) => Self::Store(f),
        }
    }
}

/// Makes a repository.
///
/// # Errors
/// [`InitError`]. Then nothing is left except, at most, a probe object whose lock ends within two minutes, and a key file that
/// opens nothing.
pub async fn init(store: SharedStore, password: &[u8], options: InitOptions) -> Result<Initialised, InitError> {
    let capabilities = store.capabilities().await?;
    if capabilities.default_retention {
        return Err(InitError::DefaultRetention);
    }
    if options.lock.mode != LockMode::None {
        if !capabilities.locks {
            return Err(InitError::NoLocks);
        }
        if capabilities.enforced && !capabilities.versions {
            return Err(InitError::NoVersions);
        }
    }
    match store.head(&Key::config(), None).await {
        Ok(_) => return Err(InitError::Exists(store.describe())),
        Err(GetError::NotFound(_)) => {}
        Err(GetError::Failed(f)) => return Err(f.into()),
    }
    // Left-overs of an interrupted init are accepted; anybody else's objects are not. An object that a delete marker hides is
    // there as well: a repository made on top of a hidden one would be neither of the two.
    let there: Vec<Listed> = store.versions("").await?.into_iter().filter(|l| !l.delete_marker).collect();
    if there.iter().any(|l| l.key == Key::config()) {
        return Err(InitError::Hidden(store.describe()));
    }
    if there.iter().any(|l| !l.key.as_str().starts_with("probe/") && !l.key.as_str().starts_with("keys/")) {
        return Err(InitError::NotEmpty(store.describe()));
    }
    probe(&*store, options.lock.mode, capabilities.enforced).await?;

    let secret = Secret::generate();
    let ring = KeyRing::from_secret(&secret);
    let now = Moment::now();
    let config = Config {
        id: RepositoryId::random(),
        created: now,
        pages: options.pages,
        streams: options.streams,
        lock: options.lock,
        keys: ring.public(),
    };
    let bytes = Bytes::from(config.encode(&ring));
    let (key_id, key_file) = wrapped::wrap(&secret, password, &bytes, options.cost);
    let firmness = config.lock.mode.firmness();
    let key_lock = firmness.map(|firmness| Lock { firmness, until: now.plus(rolling(config.lock.period)) });
    create(&*store, &Key::secret(&key_id), key_file.into(), key_lock).await?;
    // The configuration comes last: a repository exists from the moment its configuration does.
    let locks = Locks::of(&config, now, options.lock.period);
    let config_version = create(&*store, &Key::config(), bytes, locks.packs).await?;
    let repository = Repository::new(store, config, config_version, ring);
    Ok(Initialised { repository, enforced: capabilities.enforced, recovery_key: recovery::to_text(&secret) })
}

async fn create(store: &dyn Store, key: &Key, body: Bytes, lock: Option<Lock>) -> Result<Version, InitError> {
    match store.create(key, body, lock).await {
        Ok(version) => Ok(version),
        Err(CreateError::Exists(_)) => Err(InitError::Exists(store.describe())),
        Err(CreateError::Failed(f)) => Err(f.into()),
    }
}

/// Tries what we rely on, with an object that is made for this.
async fn probe(store: &dyn Store, mode: LockMode, enforced: bool) -> Result<(), InitError> {
    let key = Key::probe(&KeyId::random());
    let body = Bytes::from_static(b"milkrun tries the store");
    let lock = mode.firmness().map(|firmness| Lock { firmness, until: Moment::now().plus(PROBE_LOCK) });
    let version = match store.create(&key, body.clone(), lock).await {
        Ok(version) => version,
        Err(CreateError::Exists(_)) => return Err(InitError::NoCreateOnly),
        Err(CreateError::Failed(f)) => return Err(f.into()),
    };
    let head = store.head(&key, Some(&version)).await?;
    check_clock(head.modified, Moment::now()).map_err(InitError::Clock)?;
    if store.get(&key, Some(&version), None).await? != body {
        return Err(InitError::Garbled);
    }
    match store.create(&key, Bytes::from_static(b"another"), None).await {
        Err(CreateError::Exists(_)) => {}
        Ok(_) => return Err(InitError::NoCreateOnly),
        // A store that does not know the header may answer "not implemented".
        Err(CreateError::Failed(f)) if f.trouble == Trouble::Refused => return Err(InitError::NoCreateOnly),
        Err(CreateError::Failed(f)) => return Err(f.into()),
    }
    let Some(lock) = lock else {
        return match store.delete(&key, &version).await {
            Ok(()) | Err(DeleteError::Locked(_)) => Ok(()),
            // A writer without the right to delete is accepted; the probe then stays.
            Err(DeleteError::Failed(f)) if f.trouble == Trouble::Denied => Ok(()),
            Err(DeleteError::Failed(f)) => Err(f.into()),
        };
    };
    let broken = |what| Err(InitError::LockBroken { mode, what });
    let held = head.lock.is_some_and(|l| l.firmness >= lock.firmness && l.until >= lock.until);
    if !held {
        return broken("the lock is not shown on the object");
    }
    let shorter = Lock { until: Moment::now().plus(PROBE_LOCK / 3), ..lock };
    // A principal who may bypass governance could shorten the lock or delete the object; milkrun never asks for a bypass.
    if store.extend_lock(&key, &version, shorter).await.is_ok() {
        return broken("a lock could be shortened");
    }
    match store.delete(&key, &version).await {
        Err(DeleteError::Locked(_)) => {}
        Err(DeleteError::Failed(f)) if f.trouble == Trouble::Denied => {}
        Err(DeleteError::Failed(f)) => return Err(f.into()),
        Ok(()) => return broken("a locked version could be deleted"),
    }
    match store.head(&key, Some(&version)).await {
        Ok(head) if head.lock.is_some_and(|l| l.until >= lock.until) || !enforced => Ok(()),
        Ok(_) => broken("a lock was shortened without saying so"),
        Err(GetError::NotFound(_)) => broken("a locked version was deleted without saying so"),
        Err(GetError::Failed(f)) => Err(f.into()),
    }
}

/// The bucket policies of the three roles, as S3 policy documents (name, JSON).
pub fn role_policies(bucket: &str, prefix: &str) -> [(&'static str, String); 3] {
    let below = |folder: &str| {
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        format!("arn:aws:s3:::{bucket}/{prefix}{folder}*")
    };
    let policy = |object_actions: &[&str], bucket_actions: &[&str], sweeps: bool| {
        let mut statements = vec![
            serde_json::json!({ "Effect": "Allow", "Action": object_actions, "Resource": below("") }),
            serde_json::json!({
                "Effect": "Allow", "Action": bucket_actions, "Resource": format!("arn:aws:s3:::{bucket}")
            }),
        ];
        if sweeps {
            let swept = [below("leases/"), below("journal/")];
            let action = "s3:DeleteObjectVersion";
            statements.push(serde_json::json!({ "Effect": "Allow", "Action": action, "Resource": swept }));
        }
        format!("{:#}", serde_json::json!({ "Version": "2012-10-17", "Statement": statements }))
    };
    let list =
        ["s3:ListBucket", "s3:ListBucketVersions", "s3:GetBucketVersioning", "s3:GetBucketObjectLockConfiguration"];
    let read = ["s3:GetObject", "s3:GetObjectVersion", "s3:GetObjectRetention"];
    // The writer deletes nothing of restore points. It must delete what it writes every few seconds to show that it is alive. No
    // point depends on those objects, and a separate object says that a run is over.
    let write = [&read[..], &["s3:PutObject", "s3:PutObjectRetention"]].concat();
    let collect = [&read[..], &["s3:PutObject", "s3:DeleteObject", "s3:DeleteObjectVersion"]].concat();
    [
        ("writer", policy(&write, &list, true)),
        ("collector", policy(&collect, &list, false)),
        ("reader", policy(&read, &list, false)),
    ]
}
