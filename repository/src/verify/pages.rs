//! Digests of pages: those in maps are compared with those of the bytes. Digests come from agents, and a later backup counts a
//! page with an equal digest as unchanged.

use std::collections::HashMap;

use super::{Findings, metadata_finding};
use crate::chunk::PAGE;
use crate::chunk::pages::PageDigest;
use crate::id::{ChunkId, PackId, PointId};
use crate::metadata::MetadataReader;
use crate::store::{Failure, Key};
use crate::volume_map::{Extent, Leaf, MapSource, PageList, digests_of};

/// The digests that a map keeps for an extent's pages, as 16 bytes for any number of pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub(super) slot: u32,
    /// The number of the first page in its chunk, which has at most 1024 pages.
    first: u16,
    count: u16,
    print: u64,
}

/// By pack.
pub(super) type KeptPages = HashMap<PackId, Vec<Kept>>;

impl Kept {
    /// Whether a chunk with these digests is what the map says.
    pub(super) fn agrees(&self, chunk: &[PageDigest]) -> bool {
        let first = usize::from(self.first);
        chunk.get(first..first + usize::from(self.count)).is_some_and(|digests| print(digests) == self.print)
    }
}

/// A fingerprint of digests.
fn print(digests: &[PageDigest]) -> u64 {
    let hash = blake3::hash(digests.as_flattened());
    hash.as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

/// Notes the digests that a leaf keeps for pages in `wanted` packs.
pub(super) async fn keep(
    kept: &mut KeptPages,
    leaf: &Leaf,
    wanted: impl Fn(&PackId) -> bool,
    reader: &MetadataReader<'_>,
    (what, point): (&str, PointId),
    findings: &mut Findings,
) -> Result<(), Failure> {
    let mut lists: HashMap<ChunkId, PageList> = HashMap::new();
    for &reference in leaf.page_lists() {
        match reader.chunk(&reference).await {
            Ok(bytes) => match PageList::decode(&bytes) {
                Ok(list) => drop(lists.insert(reference.id, list)),
                Err(e) => {
                    findings.damaged.insert(reference.place.pack);
                    findings.add(Key::pack(&reference.place.pack), format!("a list of page digests: {e}"), [point])
                }
            },
            Err(e) => metadata_finding(e, what, point, findings)?,
        }
    }
    for extent in leaf.extents() {
        let Extent::Data { chunk_offset, place, .. } = extent else { continue };
        // A list that can't be read is a finding already. Digests that no backup relies on need not be true.
        let Some(digests) = digests_of(&extent, &lists).filter(|_| wanted(&place.pack)) else { continue };
        // A chunk has at most 1024 pages.
        let (Ok(first), Ok(count)) = (u16::try_from(chunk_offset as usize / PAGE), u16::try_from(digests.len())) else {
            continue;
        };
        let kept = kept.entry(place.pack).or_default();
        kept.push(Kept { slot: place.slot, first, count, print: print(digests) });
    }
    Ok(())
}
