//! Keeps the digests of a volume's pages: in lists beside the leaves, one for the new extents of each region. The extents that a
//! region keeps from its parent keep their digests too, in the list where they already are.
//!
//! An extent may name a part of a chunk, so that single pages can change. A digest has 8 bytes for a page of 4 KiB: 0.2 %. The
//! agent computes digests while it identifies a chunk, at no extra cost: they are inner nodes of BLAKE3's tree. The coordinator
//! keeps them in metadata packs that no restore reads, and sends them with the parent's extents. A leaf that would name more than 8
//! to 15 lists (the limit depends on its place) gets one list of its own.
//!
//! The journal does not hold digests. Extents that were new in a run before it was taken over have none. Where they change again,
//! they are read and stored like new ones. Where they are read and have not changed, they get digests then.

use std::collections::HashMap;

use futures::StreamExt;
use milkrun_proto::agent::v1 as wire;
use milkrun_repository::chunk::PAGE;
use milkrun_repository::chunk::pages::{DIGEST_LEN, PageDigest};
use milkrun_repository::config::REGION_BYTES;
use milkrun_repository::id::ChunkId;
use milkrun_repository::metadata::MetadataReader;
use milkrun_repository::volume_map::{Leaf, MapRef, MapSource, PageList, PagesAt, digests_of};

use super::parent_region::Placed;
use super::{BackupError, Run};

/// How many lists of one leaf are read side by side: each lies in another pack.
const LISTS_AT_ONCE: usize = 8;

/// How many lists the leaf at this offset names at most. Each generation that changes a region adds one. Regions reach their limits
/// at different generations, so that one backup does not have to read and combine all lists of a volume.
pub(super) fn lists_max(offset: u64) -> usize {
    8 + usize::try_from(offset / REGION_BYTES % 8).unwrap_or(0)
}

/// The lists that some leaves name.
pub(super) type Lists = HashMap<ChunkId, PageList>;

/// How many digests an extent of this many bytes has.
fn pages(len: u32) -> usize {
    (len as usize).div_ceil(PAGE)
}

/// The digests of an extent as an agent sends them; `None` if it sends none.
///
/// # Errors
/// What is wrong with them.
pub(super) fn sent(extent: &wire::Extent) -> Result<Option<&[PageDigest]>, &'static str> {
    let (digests, rest) = extent.pages.as_chunks::<DIGEST_LEN>();
    let on_pages = !extent.chunk.is_empty() && extent.chunk_offset.is_multiple_of(PAGE as u32);
    match digests.len() {
        0 if rest.is_empty() => Ok(None),
        n if n == pages(extent.length) && rest.is_empty() && on_pages => Ok(Some(digests)),
        _ => Err("digests that are not one for each page of an extent"),
    }
}

impl Run {
    /// Records in a leaf where the digests of its pages are. Digests that came with the leaf go into a new list; the others stay
    /// where the parent has them. The leaf names up to `most` lists; if there were more, all digests of this leaf go into one list.
    ///
    /// # Errors
    /// [`BackupError`].
    pub(super) async fn keep_pages(&self, placed: Placed<'_>, most: usize) -> Result<Leaf, BackupError> {
        let Placed { mut leaf, fresh, .. } = placed;
        let new = fresh.iter().any(Option::is_some);
        let mut lists = Lists::default();
        let gather = leaf.so_far().page_lists().len() + usize::from(new) > most;
        if gather {
            // Read-ahead is off: the lists of neighbouring leaves are combined at other generations.
            read_lists(leaf.so_far(), &self.parent_reader().without_read_ahead(), &mut lists).await?;
        } else if !new {
            return Ok(leaf.finish());
        }
        // The new list gets the new digests, and, if there are too many lists, those of the old lists as well.
        let mut all = PageList::default();
        let mut firsts = Vec::with_capacity(fresh.len());
        for (number, fresh) in fresh.into_iter().enumerate() {
            let kept = || digests_of(&leaf.so_far().nth(number), &lists);
            let digests = fresh.or_else(|| if gather { kept() } else { None });
            firsts.extend(digests.map(|_| (number, u32::try_from(all.digests.len()).unwrap_or(u32::MAX))));
            all.digests.extend_from_slice(digests.unwrap_or_default());
        }
        if gather {
            // This also drops digests in a list that can't be read.
            leaf.forget_pages();
        }
        if !all.digests.is_empty() {
            let list = self.put_prepared(&self.preparer.pages(all.encode())).await?;
            for (number, first) in firsts {
                leaf.keep_pages(number, PagesAt { list, first });
            }
        }
        Ok(leaf.finish())
    }
}

/// Reads the lists that a leaf names and that `lists` does not have. A damaged list is left out: its pages can't be compared, and
/// are read and stored like new ones.
///
/// # Errors
/// [`BackupError`] when the store can't be asked.
pub(super) async fn read_lists(leaf: &Leaf, reader: &MetadataReader<'_>, lists: &mut Lists) -> Result<(), BackupError> {
    let wanted: Vec<MapRef> = leaf.page_lists().iter().filter(|list| !lists.contains_key(&list.id)).copied().collect();
    let read = |reference: MapRef| async move { (reference, reader.chunk(&reference).await) };
    let mut read = futures::stream::iter(wanted.into_iter().map(read)).buffer_unordered(LISTS_AT_ONCE);
    while let Some((reference, read)) = read.next().await {
        match read {
            Ok(bytes) => match PageList::decode(&bytes) {
                Ok(list) => drop(lists.insert(reference.id, list)),
                Err(e) => tracing::warn!(list = %reference.id, reason = %e, "a list of page digests is malformed"),
            },
            Err(e) if e.is_damage() => tracing::warn!(reason = %e, "a list of page digests can't be read"),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
