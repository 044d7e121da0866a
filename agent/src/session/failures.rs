//! The kind of a failure, as it is reported to the coordinator. It decides whether another node goes on with the
//! volume.

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::store::{CreateError, GetError, Trouble};
use wire::failed::Kind as FailureKind;

use crate::backup::BackupError;
use crate::device::TargetError;
use crate::restore::RestoreError;
use crate::rpc::CallError;

pub(super) fn failed(assignment: wire::Assignment, kind: FailureKind, reason: String) -> wire::Failed {
    wire::Failed { assignment: Some(assignment), reason, kind: kind.into() }
}

fn kind_of_trouble(trouble: Trouble) -> FailureKind {
    match trouble {
        // The next attempt gets new grants.
        Trouble::Unreachable | Trouble::Busy | Trouble::Garbled | Trouble::Expired => FailureKind::Unreachable,
        Trouble::Short | Trouble::Foreign => FailureKind::Damaged,
        _ => FailureKind::Store,
    }
}

fn kind_of_call(e: &CallError) -> FailureKind {
    match e {
        CallError::Refused(status) if status.code() == tonic::Code::Unavailable => FailureKind::Unreachable,
        CallError::Lost(_) => FailureKind::Unreachable,
        CallError::Refused(status) if status.code() == tonic::Code::DataLoss => FailureKind::Damaged,
        _ => FailureKind::Store,
    }
}

pub(super) fn kind_of_backup(e: &BackupError) -> FailureKind {
    match e {
        BackupError::Source(_) | BackupError::Changes(_) | BackupError::WrongList { .. } | BackupError::Read { .. } => {
            FailureKind::Source
        }
        BackupError::Call(e) => kind_of_call(e),
        BackupError::Store { source: CreateError::Failed(f), .. } => kind_of_trouble(f.trouble),
        BackupError::Store { .. } | BackupError::Pack(_) => FailureKind::Store,
        BackupError::Stopped { passing: true, .. } => FailureKind::Unreachable,
        BackupError::Stopped { .. } => FailureKind::Cancelled,
    }
}

pub(super) fn kind_of_restore(e: &RestoreError) -> FailureKind {
    match e {
        RestoreError::Target(TargetError::Write { .. } | TargetError::Sync { .. }) | RestoreError::Setup(_) => {
            FailureKind::Source
        }
        RestoreError::Target(_) => FailureKind::Target,
        RestoreError::Call(e) => kind_of_call(e),
        RestoreError::Fetch { source: GetError::Failed(f), .. } => kind_of_trouble(f.trouble),
        RestoreError::Fetch { .. }
        | RestoreError::Damaged { .. }
        | RestoreError::Incomplete { .. }
        | RestoreError::OutOfOrder { .. } => FailureKind::Damaged,
    }
}
