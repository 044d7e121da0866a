//! The order of a restore.

use milkrun_repository::id::VolumeName;
use milkrun_repository::point::Selector;

/// What a restore is to do.
#[derive(Clone, Debug)]
pub struct Order {
    /// The point.
    pub selector: Selector,
    /// The selector as it was written.
    pub selector_text: String,
    /// The targets.
    pub targets: Vec<TargetSpec>,
    /// Whether the manifests are to be returned.
    pub manifests: bool,
    /// Whether existing data may be overwritten.
    pub force: bool,
    /// Whether the rest of a target that is larger than the volume is zeroed.
    pub discard_rest: bool,
    /// The one who ordered it may name targets that the inventory does not list.
    pub by_operator: bool,
}

/// A volume and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetSpec {
    /// The volume's name in the point.
    pub name: VolumeName,
    /// The path of the target.
    pub path: String,
    /// The node of the target; `None`: any agent that is connected.
    pub node: Option<String>,
    /// Whether it is written as a stream, in order.
    pub stream: bool,
}
