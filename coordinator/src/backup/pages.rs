//! Where the digests of a volume's pages are kept: lists beside the leaves, one for what is new in each region. What a region
//! keeps of its parent keeps its digests too, in the list that they are in.

use std::collections::HashMap;

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::chunk::PAGE;
use milkrun_repository::chunk::pages::{DIGEST_LEN, PageDigest};
use milkrun_repository::id::ChunkId;
use milkrun_repository::metadata::MetadataReader;
use milkrun_repository::volume_map::{Extent, Leaf, MapRef, MapSource, PageList, PagesAt};

use super::{BackupError, Run, lock};

/// Lists that a leaf names at most: more are put together into one. Each generation that changes a region adds one.
const LISTS_MAX: usize = 8;

/// The lists that some leaf names.
pub(super) type Lists = HashMap<ChunkId, PageList>;

/// How many digests an extent of so many bytes has.
fn pages(len: u32) -> usize {
    (len as usize).div_ceil(PAGE)
}

/// The digests of an extent, as an agent sends them; `None` if it sends none.
///
/// # Errors
/// What is wrong with them.
fn sent(extent: &wire::Extent) -> Result<Option<&[PageDigest]>, &'static str> {
    let (digests, rest) = extent.pages.as_chunks::<DIGEST_LEN>();
    match digests.len() {
        0 if rest.is_empty() => Ok(None),
        n if n == pages(extent.length) && rest.is_empty() => Ok(Some(digests)),
        _ => Err("as many digests as an extent has pages"),
    }
}

/// Where the digests of a leaf's chunks are.
#[derive(Default)]
pub(super) struct Kept(HashMap<ChunkId, Vec<(u32, u32, PagesAt)>>);

impl Kept {
    /// Learns what a leaf of the parent says.
    pub(super) fn learn(&mut self, leaf: &Leaf) {
        for extent in &leaf.extents {
            if let Extent::Data { len, chunk_offset, id, pages: Some(at), .. } = *extent {
                self.0.entry(id).or_default().push((chunk_offset, len, at));
            }
        }
    }

    /// The digests of a part of a chunk.
    fn find(&self, id: &ChunkId, chunk_offset: u32, len: u32) -> Option<PagesAt> {
        let page = PAGE as u32;
        self.0.get(id)?.iter().find_map(|&(from, all, at)| {
            let skipped = chunk_offset.checked_sub(from).filter(|s| s.is_multiple_of(page))?;
            (skipped + len <= all).then(|| PagesAt { first: at.first + skipped / page, ..at })
        })
    }
}

impl Run {
    /// Says in a leaf where its pages' digests are: those that came with `extents` in a new list, others where the parent has
    /// them.
    ///
    /// # Errors
    /// [`BackupError`].
    pub(super) async fn keep_pages(
        &self,
        leaf: &mut Leaf,
        extents: &[wire::Extent],
        kept: &Kept,
        nonsense: impl Fn(&'static str) -> BackupError,
    ) -> Result<(), BackupError> {
        let mut fresh = PageList::default();
        let mut numbers = Vec::with_capacity(extents.len());
        for extent in extents {
            numbers.push(sent(extent).map_err(&nonsense)?.map(|digests| {
                let first = fresh.digests.len();
                fresh.digests.extend_from_slice(digests);
                first
            }));
        }
        let list = match fresh.digests.is_empty() {
            true => None,
            false => Some(self.put_pages(&fresh).await?),
        };
        for (extent, number) in leaf.extents.iter_mut().zip(numbers) {
            if let Extent::Data { len, chunk_offset, id, pages, .. } = extent {
                *pages = match (list, number) {
                    (Some(list), Some(first)) => {
                        Some(PagesAt { list, first: u32::try_from(first).unwrap_or(u32::MAX) })
                    }
                    _ => kept.find(id, *chunk_offset, *len),
                };
            }
        }
        if leaf.page_lists().len() > LISTS_MAX {
            self.gather_pages(leaf, list.map(|l| (l.id, fresh))).await?;
        }
        Ok(())
    }

    /// Puts all digests that a leaf names into one list.
    async fn gather_pages(&self, leaf: &mut Leaf, fresh: Option<(ChunkId, PageList)>) -> Result<(), BackupError> {
        let reader = self.parent_reader();
        let mut lists: Lists = fresh.into_iter().collect();
        read_lists(leaf, &reader, &mut lists).await?;
        let mut all = PageList::default();
        let mut firsts = Vec::with_capacity(leaf.extents.len());
        for extent in &leaf.extents {
            let digests = digests_of(extent, &lists);
            firsts.push(digests.map(|_| u32::try_from(all.digests.len()).unwrap_or(u32::MAX)));
            all.digests.extend_from_slice(digests.unwrap_or_default());
        }
        if all.digests.is_empty() {
            leaf.extents.iter_mut().for_each(|e| set(e, None));
            return Ok(());
        }
        let list = self.put_pages(&all).await?;
        for (extent, first) in leaf.extents.iter_mut().zip(firsts) {
            set(extent, first.map(|first| PagesAt { list, first }));
        }
        Ok(())
    }

    async fn put_pages(&self, list: &PageList) -> Result<MapRef, BackupError> {
        let mut writer = self.metadata.lock().await;
        let reference = writer.put_pages(&list.encode())?;
        let full = writer.take_full();
        drop(writer);
        lock(&self.referenced).insert(reference.place.pack);
        self.store_metadata(full).await?;
        Ok(reference)
    }
}

fn set(extent: &mut Extent, at: Option<PagesAt>) {
    if let Extent::Data { pages, .. } = extent {
        *pages = at;
    }
}

/// Reads the lists that a leaf names and `lists` does not have. One that is damaged is left out: its pages can't be told apart,
/// and are read and stored like new ones.
///
/// # Errors
/// [`BackupError`] when the store can't be asked.
pub(super) async fn read_lists(leaf: &Leaf, reader: &MetadataReader<'_>, lists: &mut Lists) -> Result<(), BackupError> {
    for reference in leaf.page_lists() {
        if lists.contains_key(&reference.id) {
            continue;
        }
        match reader.chunk(&reference).await {
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

/// The digests of an extent, if they are known.
pub(super) fn digests_of<'a>(extent: &Extent, lists: &'a Lists) -> Option<&'a [PageDigest]> {
    let Extent::Data { len, pages: Some(at), .. } = extent else { return None };
    let first = at.first as usize;
    lists.get(&at.list.id)?.digests.get(first..first + pages(*len))
}
