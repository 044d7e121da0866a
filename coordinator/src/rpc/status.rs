//! Turns errors of operations into gRPC statuses. The code says what kind of failure it was; the message says everything that is
//! known. (Calls that make no sense are refused where they are read.)
//!
//! | code | means |
//! |---|---|
//! | `UNAVAILABLE` | the store can't be asked, or its answers are cut off: nothing is known |
//! | `DATA_LOSS` | stored bytes are not what they must be |
//! | `INVALID_ARGUMENT` | the order makes no sense |
//! | `NOT_FOUND` | there is no such point |
//! | `CANCELLED` | somebody cancelled it |
//! | `ABORTED` | another coordinator leads, and goes on with the run |
//! | `UNAUTHENTICATED`, `PERMISSION_DENIED` | the caller is not known; the caller has no right to do this |
//! | `RESOURCE_EXHAUSTED` | an agent's quota; too many orders wait |
//! | `FAILED_PRECONDITION` | anything else that failed |

use milkrun_proto::agent::v1::failed::Kind;
use milkrun_repository::metadata::MetadataError;
use milkrun_repository::point::catalog::{FindError, PlaceError, chain};
use milkrun_repository::point::commit::CommitError;
use milkrun_repository::repository::{NoDomain, PointError};
use milkrun_repository::store::{CreateError, Failure, Trouble};
use tonic::{Code, Status};

use crate::assignment::RefusedCall;
use crate::backup::BackupError;
use crate::inventory::InventoryError;
use crate::journal::JournalError;
use crate::points::PointsError;
use crate::repositories::NoRepository;
use crate::restore::RestoreError;

fn of_failure(f: &Failure) -> Code {
    match f.trouble {
        Trouble::Unreachable | Trouble::Busy | Trouble::Garbled | Trouble::Expired => Code::Unavailable,
        Trouble::Short | Trouble::Foreign => Code::DataLoss,
        _ => Code::FailedPrecondition,
    }
}

fn of_metadata(e: &MetadataError) -> Code {
    match e {
        MetadataError::Store(f) => of_failure(f),
        _ => Code::DataLoss,
    }
}

fn of_point(e: &PointError) -> Code {
    match e {
        PointError::Placement(PlaceError::Store(f)) => of_failure(f),
        PointError::Keys { source, .. } => of_keys(source),
        _ => Code::DataLoss,
    }
}

fn of_keys(e: &NoDomain) -> Code {
    match e {
        NoDomain::Store(f) => of_failure(f),
        NoDomain::Missing(_) | NoDomain::Refused { .. } => Code::DataLoss,
    }
}

fn of_kind(kind: Kind) -> Code {
    match kind {
        Kind::Unreachable => Code::Unavailable,
        Kind::Damaged => Code::DataLoss,
        Kind::Cancelled => Code::Cancelled,
        Kind::Source | Kind::Target | Kind::Store | Kind::Unspecified => Code::FailedPrecondition,
    }
}

/// An order that finds no repository.
pub fn no_repository(e: &NoRepository) -> Status {
    let code = match e {
        NoRepository::Which(_) | NoRepository::Unknown(..) => Code::InvalidArgument,
        NoRepository::NotReady { .. } => Code::Unavailable,
    };
    Status::new(code, e.to_string())
}

/// The store failed.
pub fn failure(e: &Failure) -> Status {
    Status::new(of_failure(e), milkrun_repository::point::catalog::chain(e))
}

/// A request about points failed.
pub fn points(e: &PointsError) -> Status {
    let code = match e {
        PointsError::Find { source, .. } => of_find(source),
        PointsError::Nothing => Code::NotFound,
        PointsError::Role { .. } => Code::PermissionDenied,
        PointsError::Busy(_) => Code::ResourceExhausted,
        PointsError::Stopped => Code::Cancelled,
        PointsError::Point(e) => of_point(e),
        PointsError::Map(e) => of_metadata(e),
        PointsError::Manifests(_) => Code::DataLoss,
        PointsError::Store(f) => of_failure(f),
    };
    Status::new(code, chain(e))
}

fn of_find(e: &FindError) -> Code {
    match e {
        FindError::Refused { .. } | FindError::NewestRefused { .. } => Code::DataLoss,
        FindError::Store(f) => of_failure(f),
        FindError::None | FindError::Namesakes(_) => Code::NotFound,
    }
}

/// A failed backup.
pub fn backup(e: &BackupError) -> Status {
    let code = match e {
        BackupError::Order(_) | BackupError::Inventory(InventoryError::NoApplication(_)) => Code::InvalidArgument,
        BackupError::Quota { .. } | BackupError::TooManyWait(_) => Code::ResourceExhausted,
        BackupError::Volume { kind, .. } => of_kind(*kind),
        BackupError::Cancelled => Code::Cancelled,
        BackupError::Changed(_) => Code::DataLoss,
        BackupError::Parent(e) => of_point(e),
        BackupError::Keys(e) => of_keys(e),
        BackupError::Map(e) => of_metadata(e),
        BackupError::Commit(CommitError::Store(f) | CommitError::Unknowable(f)) | BackupError::Store(f) => {
            of_failure(f)
        }
        BackupError::Create(_, CreateError::Failed(f)) | BackupError::Journal(JournalError::Store(f)) => of_failure(f),
        BackupError::Empty(_)
        | BackupError::Nonsense { .. }
        | BackupError::NeverFinished
        | BackupError::AgentGone
        | BackupError::NoNode { .. }
        | BackupError::Refused(_)
        | BackupError::Ungranted(_)
        | BackupError::Foreign(_)
        | BackupError::Journal(_)
        | BackupError::Inventory(_)
        | BackupError::Commit(_)
        | BackupError::Create(..)
        | BackupError::Cache(_)
        | BackupError::Key(_)
        | BackupError::Setup(_) => Code::FailedPrecondition,
    };
    Status::new(code, chain(e))
}

/// A failed restore.
pub fn restore(e: &RestoreError) -> Status {
    let code = match e {
        RestoreError::Order(_) | RestoreError::Inventory(InventoryError::NoApplication(_)) => Code::InvalidArgument,
        RestoreError::Role { .. } => Code::PermissionDenied,
        RestoreError::Find { source: FindError::Refused { .. } | FindError::NewestRefused { .. }, .. } => {
            Code::DataLoss
        }
        RestoreError::Find { source: FindError::Store(f), .. } | RestoreError::Store(f) => of_failure(f),
        RestoreError::Find { .. } => Code::NotFound,
        RestoreError::Point(e) => of_point(e),
        RestoreError::Map(e) => of_metadata(e),
        RestoreError::Unplaced(_) | RestoreError::PackKey(..) => Code::DataLoss,
        RestoreError::Volume { kind, .. } => of_kind(*kind),
        RestoreError::Cancelled => Code::Cancelled,
        RestoreError::AgentGone
        | RestoreError::NeverFinished
        | RestoreError::NoNode { .. }
        | RestoreError::Taken { .. }
        | RestoreError::Old
        | RestoreError::Inventory(_) => Code::FailedPrecondition,
        RestoreError::Superseded(_) | RestoreError::Followed | RestoreError::Unended { .. } => Code::Aborted,
    };
    Status::new(code, chain(e))
}

/// A call that names no assignment that is in force.
pub fn refused(e: &RefusedCall) -> Status {
    Status::new(Code::FailedPrecondition, e.to_string())
}

/// A request that can't be understood.
pub fn nonsense(what: &'static str) -> Status {
    Status::new(Code::InvalidArgument, what)
}
