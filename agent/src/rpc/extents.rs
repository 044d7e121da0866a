//! Extents of a volume on the wire: the parent's, as the coordinator sends them, and ours.

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::chunk::PAGE;
use milkrun_repository::chunk::pages::DIGEST_LEN;
use milkrun_repository::id::ChunkId;

use super::CallError;
use crate::extent::{Extent, ParentExtent, ParentRange, Run};

/// A stream of the parent's ranges.
pub struct ParentRanges(pub(super) tonic::Streaming<wire::ParentRange>);

impl ParentRanges {
    /// The next range.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn next(&mut self) -> Result<Option<ParentRange>, CallError> {
        let Some(range) = self.0.message().await? else { return Ok(None) };
        let sum: u64 = range.extents.iter().map(|e| u64::from(e.length)).sum();
        let sound = range.extents.is_empty() || sum == range.length;
        if range.offset.checked_add(range.length).is_none() || !sound {
            return Err(CallError::Nonsense("a range of the parent"));
        }
        let extents = range.extents.iter().map(extent_from_wire).collect::<Result<_, _>>()?;
        Ok(Some(ParentRange { offset: range.offset, len: range.length, extents }))
    }
}

pub(super) fn extent_to_wire(e: &Extent) -> wire::Extent {
    match e.run {
        Run::Kept { len } => wire::Extent { length: len, kept: true, ..Default::default() },
        Run::Hole { len } => wire::Extent { length: len, ..Default::default() },
        Run::Chunk { len, id, chunk_offset, chunk_len } => wire::Extent {
            length: len,
            chunk: id.as_bytes().to_vec().into(),
            chunk_offset,
            chunk_length: chunk_len,
            pages: e.pages.as_flattened().to_vec().into(),
            ..Default::default()
        },
    }
}

fn extent_from_wire(e: &wire::Extent) -> Result<ParentExtent, CallError> {
    let run = match e.chunk.is_empty() {
        true if e.kept => Run::Kept { len: e.length },
        true => Run::Hole { len: e.length },
        false if e.chunk_offset.checked_add(e.length).is_none_or(|end| end > e.chunk_length) => {
            return Err(CallError::Nonsense("an extent outside of its chunk"));
        }
        false => Run::Chunk {
            len: e.length,
            id: ChunkId::try_from(&e.chunk[..]).map_err(|_| CallError::Nonsense("a chunk id"))?,
            chunk_offset: e.chunk_offset,
            chunk_len: e.chunk_length,
        },
    };
    let (pages, rest) = e.pages.as_chunks::<DIGEST_LEN>();
    if !rest.is_empty() || (!pages.is_empty() && pages.len() != (e.length as usize).div_ceil(PAGE)) {
        return Err(CallError::Nonsense("digests of pages"));
    }
    // Digests are of the chunk's pages: a part that begins within a page has none.
    let pages = if e.chunk_offset.is_multiple_of(PAGE as u32) { pages } else { &[] };
    Ok(ParentExtent { extent: Extent { run, pages: pages.to_vec() }, retire: e.retire })
}
