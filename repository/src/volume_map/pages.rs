//! Lists of page digests. They are chunks in metadata packs, separate from the packs of leaves, since a restore does not read
//! them.

use std::collections::HashMap;

use super::{Extent, head};
use crate::chunk::PAGE;
use crate::chunk::pages::{DIGEST_LEN, PageDigest};
use crate::id::ChunkId;
use crate::wire::{Decoder, Encoder, Malformed};

/// Digests, in the order in which extents refer to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageList {
    /// One for each page.
    pub digests: Vec<PageDigest>,
}

impl PageList {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new();
        e.raw(b"page").u8(1).raw(&[0; 3]).count(self.digests.len()).raw(self.digests.as_flattened());
        e.finish()
    }

    /// Parses a list.
    ///
    /// # Errors
    /// [`Malformed`] unless it is exactly what [`PageList::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut d = Decoder::new(bytes);
        head(&mut d, *b"page", 1)?;
        d.reserved(3, "reserved")?;
        let n = d.count(DIGEST_LEN, "digest count")?;
        let digests = d.raw(n * DIGEST_LEN, "digests")?.as_chunks().0.to_vec();
        d.finish("end of page list")?;
        Ok(Self { digests })
    }
}

/// The digests of an extent's pages, if it has some and their list is in `lists`. An extent that begins within a page of its
/// chunk has no usable digests.
pub fn digests_of<'a>(extent: &Extent, lists: &'a HashMap<ChunkId, PageList>) -> Option<&'a [PageDigest]> {
    let Extent::Data { len, chunk_offset, pages: Some(at), .. } = extent else { return None };
    if !(*chunk_offset as usize).is_multiple_of(PAGE) {
        return None;
    }
    let first = at.first as usize;
    lists.get(&at.list.id)?.digests.get(first..first + (*len as usize).div_ceil(PAGE))
}
