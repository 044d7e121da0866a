//! Why a pack, or a point, is not accepted.

use crate::clock::Moment;
use crate::id::PackId;
use crate::keys::hybrid::HybridError;
use crate::store::{Failure, Key, Lock};

/// Why a pack, or a point, is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The store reported success, but the object isn't there.
    #[error("{0} is not in the store although the upload was reported as done")]
    Vanished(Key),
    /// The object is there, but it is not what was uploaded.
    #[error("{key} is not what was uploaded: {what} is {found}, not {wanted}")]
    Differs {
        /// The key.
        key: Key,
        /// Length or checksum.
        what: &'static str,
        /// What the store says.
        found: u64,
        /// What it should be.
        wanted: u64,
    },
    /// The lock is missing, or ends too early.
    #[error("{key} is not locked until {wanted}: {}", found.map_or_else(|| "it has no lock".to_owned(), |l| format!("its {:?} lock ends at {}", l.firmness, l.until)))]
    Lock {
        /// The key.
        key: Key,
        /// Until when it must be locked.
        wanted: Moment,
        /// The lock that it has.
        found: Option<Lock>,
    },
    /// A map names a pack that is neither stored by this run nor known.
    #[error("pack {0} is named by a map and is neither stored by this run nor known")]
    Unknown(PackId),
    /// Another run's root, or a tombstone, is at the root's key.
    #[error("the run was ended by somebody else: {0} is taken")]
    Ended(Key),
    /// An object that is not a root, or a delete marker, is at the root's key.
    #[error(
        "{0} is taken by what is no restore point ({1}): whoever may write to the bucket put it there before the run ended. \
        What was stored is found again: run it again, under another key"
    )]
    Squatted(Key, &'static str),
    /// It is not known whether the point exists.
    #[error("it is not known whether the point was committed; `milkrun points` will tell")]
    Unknowable(#[source] Failure),
    /// A public key of the repository can't be used.
    #[error(transparent)]
    Key(#[from] HybridError),
    /// The folder or file system is not the one in which the run began.
    #[error("the repository is not where this run began any more: it was {began}, and is {now}")]
    Elsewhere {
        /// Where the run began.
        began: String,
        /// What is there now.
        now: String,
    },
    /// `repository.json` is not the one that was opened.
    #[error("repository.json is not the one that this run began with")]
    Replaced,
    /// A root or a placement that is too long for readers.
    #[error("an object of the point would have {length} bytes, and readers take no more than {max}")]
    Long {
        /// Its bytes.
        length: u64,
        /// The most that readers accept.
        max: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Failure),
    /// The store's clock differs too much from ours.
    #[error("the store's clock says {store}, ours says {ours}: locks would be wrong; set the clock right")]
    Skew {
        /// The store's.
        store: Moment,
        /// Ours.
        ours: Moment,
    },
}
