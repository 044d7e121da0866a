//! Map and manifest chunks: writing them into packs of their own, and reading them back.

mod reader;
mod writer;

pub use reader::{MetadataError, MetadataReader, OpenedKeys, metadata_packs};
pub use writer::{FinishedMetadata, MetadataWriter, Prepared, Preparer};
