//! Volumes that an application has and a point does not have, on the wire.

use milkrun_proto::control::v1 as control;
use milkrun_repository::id::NameError;
use milkrun_repository::point::root::Skipped;

use crate::one_line::one_line;

/// The most characters of a reason.
const REASON_MAX: usize = 500;

pub(crate) fn to_wire(s: &Skipped) -> control::Skipped {
    control::Skipped { name: s.name.to_string(), reason: s.reason.clone() }
}

pub(crate) fn from_wire(s: &control::Skipped) -> Result<Skipped, NameError> {
    Ok(Skipped { name: s.name.parse()?, reason: one_line(&s.reason, REASON_MAX) })
}
