//! A segment that is searched in place, in a memory-mapped cache file.
//!
//! ```text
//!  0  16  magic "milkrun cache 2\0"
//! 16   8  length of the body, u64
//! 24   4  length of the filter's descriptor (0: no filter), u32
//! 28   4  length of the filter's fingerprints, u32
//!  …      body (as in the repository, opened), descriptor, fingerprints
//! -32 32  keyed BLAKE3 of the segment's id and everything before
//! ```
//! Memory per TiB of unique data at 128 KiB chunks (8.4 M entries): a file of 470 MB, mapped and paged in on demand. Only its
//! filter (9 bits an entry, 9.4 MB) stays resident. A lookup that misses reads nothing but the filter in 99.6 % of cases.

use std::fs::File;

use memmap2::Mmap;
use xorf::{BinaryFuse8, BinaryFuse8Ref, DmaSerializable, Filter, FilterRef};

use super::{ENTRY_LEN, PackInfo, Segment, decode_entry};
use crate::id::{ChunkId, SegmentId};
use crate::pack::Place;
use crate::wire::{Decoder, Encoder, Malformed};

const MAGIC: &[u8; 16] = b"milkrun cache 2\0";
const HEAD: usize = 32;
/// Fewer entries need no filter, and some filters can't be built from so few.
const FILTER_FROM: usize = 128;

/// A mapped segment.
pub struct MappedSegment {
    map: Mmap,
    packs: Vec<PackInfo>,
    replaces: Vec<SegmentId>,
    entries: std::ops::Range<usize>,
    descriptor: std::ops::Range<usize>,
    fingerprints: std::ops::Range<usize>,
}

/// The leading bytes of an id. They are uniform, since the id is a hash.
fn fingerprint(id: &ChunkId) -> u64 {
    let b = id.as_bytes();
    u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
}

fn digest(key: &[u8; 32], id: &SegmentId, bytes: &[u8]) -> blake3::Hash {
    blake3::Hasher::new_keyed(key).update(id.as_bytes()).update(bytes).finalize()
}

impl MappedSegment {
    /// The bytes of a cache file for an authenticated body.
    ///
    /// # Errors
    /// [`Malformed`] when the body is no segment.
    pub fn cache_file(body: &[u8], key: &[u8; 32], id: &SegmentId) -> Result<Vec<u8>, Malformed> {
        let segment = Segment::decode(body)?;
        let (mut descriptor, mut fingerprints) = (Vec::new(), Vec::new());
        if segment.entries.len() >= FILTER_FROM {
            let mut keys: Vec<u64> = segment.entries.iter().map(|(id, _)| fingerprint(id)).collect();
            keys.sort_unstable();
            keys.dedup();
            if let Ok(filter) = BinaryFuse8::try_from(keys) {
                descriptor = vec![0; BinaryFuse8::DESCRIPTOR_LEN];
                filter.dma_copy_descriptor_to(&mut descriptor);
                fingerprints = filter.dma_fingerprints().to_vec();
            }
        }
        let mut e = Encoder::new();
        e.raw(MAGIC).u64(body.len() as u64).count(descriptor.len()).count(fingerprints.len());
        e.raw(body).raw(&descriptor).raw(&fingerprints);
        let digest = digest(key, id, e.as_slice());
        e.raw(digest.as_bytes());
        Ok(e.finish())
    }

    /// Maps a cache file. `None` if nobody who has the key wrote it for this segment; the file is then made again.
    pub(super) fn open(file: &File, key: &[u8; 32], id: &SegmentId) -> Option<Self> {
        // SAFETY: the file is private to this cache, written under another name and renamed when complete, and never
        // changed after that; a truncation by a stranger would raise SIGBUS, as for any mapped file.
        #[expect(unsafe_code, reason = "mapping a file is what this type is for")]
        let map = unsafe { Mmap::map(file) }.ok()?;
        let end = map.len().checked_sub(32)?;
        if digest(key, id, &map[..end]).as_bytes() != &map[end..] {
            return None;
        }
        let mut d = Decoder::new(&map[..end]);
        if &d.array::<16>("magic").ok()? != MAGIC {
            return None;
        }
        let body_len = usize::try_from(d.u64("body").ok()?).ok()?;
        let descriptor_len = d.u32("descriptor").ok()? as usize;
        let fingerprints_len = d.u32("fingerprints").ok()? as usize;
        let body_end = HEAD.checked_add(body_len)?;
        let descriptor = body_end..body_end.checked_add(descriptor_len)?;
        let fingerprints = descriptor.end..descriptor.end.checked_add(fingerprints_len)?;
        if fingerprints.end != end || ![0, BinaryFuse8::DESCRIPTOR_LEN].contains(&descriptor_len) {
            return None;
        }
        let (head, entries) = Segment::decode_head(&map[HEAD..body_end]).ok()?;
        let entries = body_end - entries.len()..body_end;
        Some(Self { packs: head.packs, replaces: head.replaces, entries, descriptor, fingerprints, map })
    }

    /// Its packs.
    pub fn packs(&self) -> &[PackInfo] {
        &self.packs
    }

    /// Segments that it replaces.
    pub fn replaces(&self) -> &[SegmentId] {
        &self.replaces
    }

    /// How many chunks it knows.
    pub fn len(&self) -> usize {
        self.entries.len() / ENTRY_LEN
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Where a chunk is.
    pub fn find(&self, id: &ChunkId) -> Option<Place> {
        if !self.descriptor.is_empty() {
            let filter =
                BinaryFuse8Ref::from_dma(&self.map[self.descriptor.clone()], &self.map[self.fingerprints.clone()]);
            if !filter.contains(&fingerprint(id)) {
                return None;
            }
        }
        let entries = &self.map[self.entries.clone()];
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            let raw = &entries[middle * ENTRY_LEN..(middle + 1) * ENTRY_LEN];
            match raw[..ChunkId::LEN].cmp(id.as_bytes()) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return decode_entry(raw, &self.packs).ok().map(|(_, place)| place),
            }
        }
        None
    }

    /// All entries, in order.
    pub fn entries(&self) -> impl Iterator<Item = (ChunkId, Place)> + '_ {
        self.map[self.entries.clone()].chunks_exact(ENTRY_LEN).filter_map(|raw| decode_entry(raw, &self.packs).ok())
    }
}
