//! Why a call of a store failed: what was tried, whether it may have happened, and the kind of trouble.

/// The operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Create-only PUT.
    Create,
    /// GET.
    Get,
    /// HEAD.
    Head,
    /// Listing.
    List,
    /// Extending a lock.
    ExtendLock,
    /// Deleting a version.
    Delete,
    /// Making a grant.
    Grant,
    /// Asking for capabilities or settings.
    Inspect,
}

impl Operation {
    /// Counts one request that is about to leave for an S3 store. Providers charge for each request that arrives. Each page of a
    /// listing is a request, and so is each repeated attempt.
    pub(crate) fn count(self) {
        let operation = match self {
            Self::Create => "put",
            Self::Get => "get",
            Self::Head => "head",
            Self::List => "list",
            Self::ExtendLock => "put_retention",
            Self::Delete => "delete",
            // A grant is signed here; only its use sends a request to the store.
            Self::Grant => return,
            Self::Inspect => "inspect",
        };
        metrics::counter!("milkrun_store_requests_total", "operation" => operation).increment(1);
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::Get => "read",
            Self::Head => "look at",
            Self::List => "list",
            Self::ExtendLock => "extend the lock of",
            Self::Delete => "delete",
            Self::Grant => "grant access to",
            Self::Inspect => "inspect",
        })
    }
}

/// Whether the operation may have been done although the call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// It was certainly not done.
    No,
    /// It is unknown: it must be read back.
    Maybe,
}

/// The kind of trouble. It decides about retries, exit codes and advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// There was no answer: nothing is known.
    Unreachable,
    /// The store is overloaded.
    Busy,
    /// The operation is not allowed.
    Denied,
    /// The grant, or the credentials that signed it, have expired: another grant may do.
    Expired,
    /// There is no room.
    Full,
    /// Nobody gives us credentials for the store. It says nothing of the object.
    NoCredentials,
    /// The clocks differ too much.
    Skewed,
    /// The answer is cut short or does not match its checksum.
    Garbled,
    /// The object itself is shorter than the range that was asked for.
    Short,
    /// The object at the key is not ours: it is not a plain file, or it is longer than any such object can be.
    Foreign,
    /// It was refused for another reason.
    Refused,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "the store does not answer",
            Self::Busy => "the store is overloaded",
            Self::Denied => "access denied",
            Self::Expired => "the permission has expired",
            Self::NoCredentials => "we get no credentials",
            Self::Full => "no space left",
            Self::Skewed => "the store's clock and ours disagree",
            Self::Garbled => "the answer was cut short or damaged",
            Self::Short => "the object is shorter than it must be",
            Self::Foreign => "what is there is no object of milkrun's",
            Self::Refused => "the store refused",
        })
    }
}

/// A call that failed.
#[derive(Debug, thiserror::Error)]
#[error("can't {operation} {key:?}: {trouble}{}", if *happened == Happened::Maybe { " (it may have happened)" } else { "" })]
pub struct Failure {
    /// The verb.
    pub operation: Operation,
    /// Key or prefix.
    pub key: String,
    /// Whether it may have happened.
    pub happened: Happened,
    /// The kind of trouble.
    pub trouble: Trouble,
    /// The error of the layer below.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Failure {
    /// Whether the failure concerns only this one object and says nothing of others: anybody who may write can put objects that
    /// nobody can read.
    pub fn is_of_one_object(&self) -> bool {
        matches!(self.trouble, Trouble::Foreign | Trouble::Denied | Trouble::Refused)
    }

    /// A failure of an operation that certainly had no effect.
    pub fn new(operation: Operation, key: impl ToString, trouble: Trouble) -> Self {
        Self { operation, key: key.to_string(), happened: Happened::No, trouble, source: None }
    }

    /// Adds the error of the layer below.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Marks the operation as one that may have happened.
    #[must_use]
    pub fn maybe(mut self) -> Self {
        self.happened = Happened::Maybe;
        self
    }

    /// Whether trying again may help.
    pub fn transient(&self) -> bool {
        matches!(self.trouble, Trouble::Unreachable | Trouble::Busy | Trouble::Garbled)
    }
}

/// Why an object was not read. "Not found" is never confused with "could not ask".
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// The store answered that there is no such object.
    #[error("{0:?} does not exist")]
    NotFound(String),
    /// The store could not be asked, or refused.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// Why an object was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The key is taken.
    #[error("{0:?} exists already")]
    Exists(String),
    /// The store could not be asked, or refused.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// Why a version was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// Its lock has not ended.
    #[error("{0:?} is locked")]
    Locked(String),
    /// The store could not be asked, or refused.
    #[error(transparent)]
    Failed(#[from] Failure),
}
