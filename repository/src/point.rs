//! Restore points: the signed root, the placement that says where a point's packs are, the catalog that finds points, and the
//! commit that makes one.

pub mod catalog;
pub mod commit;
pub mod ended;
pub mod journal;
pub mod lease;
pub mod newer;
pub mod placement;
pub mod root;
mod root_body;
pub mod select;

pub use catalog::{Catalog, Found};
pub use commit::{CommitError, StoredPack};
pub use placement::Placement;
pub use root::{Root, RootBody, VolumeEntry, VolumeKind};
pub use select::Selector;
