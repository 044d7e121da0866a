//! What a restore is to do.

use milkrun_repository::id::VolumeName;
use milkrun_repository::point::Selector;

/// What to restore.
#[derive(Clone, Debug)]
pub struct Order {
    /// Which point.
    pub selector: Selector,
    /// As it was written.
    pub selector_text: String,
    /// Where to.
    pub targets: Vec<TargetSpec>,
    /// Whether the manifests are wanted.
    pub manifests: bool,
    /// Over what is there.
    pub force: bool,
    /// Zero what a larger target has beyond the volume.
    pub discard_rest: bool,
    /// Whoever ordered it may name targets that the inventory does not list.
    pub by_operator: bool,
}

/// A volume and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetSpec {
    /// The volume's name in the point.
    pub name: VolumeName,
    /// Where to.
    pub path: String,
    /// On which node; `None`: whichever agent there is.
    pub node: Option<String>,
    /// As a stream, in order.
    pub stream: bool,
}
