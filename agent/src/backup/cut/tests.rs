use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::buffer::BufferPool;

fn how(whole_chunks: bool) -> Cutting {
    let domain = DomainKey::from_bytes([7; 32]);
    Cutting { cutter: PageCutter::DEFAULT, seed: 5, domain, whole_chunks, may_keep: true, learn: true }
}

pub(in crate::backup) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}

/// A region of which all was read, or only these parts.
fn region(bytes: &[u8], read: Option<&[Range<usize>]>) -> RegionBytes {
    let mut buffer = BufferPool::new(bytes.len()).take(bytes.len());
    match read {
        None => {
            buffer.copy_from_slice(bytes);
            RegionBytes::whole(buffer)
        }
        Some(read) => {
            let mut at = 0;
            for part in read {
                buffer[at..at + part.len()].copy_from_slice(&bytes[part.clone()]);
                at += part.len();
            }
            RegionBytes::parts(buffer, read.to_vec(), bytes.len())
        }
    }
}

fn cut_it(bytes: &[u8], parent: &[ParentExtent], read: Option<&[Range<usize>]>, how: &Cutting) -> CutRegion {
    cut_region(&region(bytes, read), parent, how)
}

/// Extents as a coordinator stores them: `kept` runs are replaced by the parent's extents.
fn resolved(extents: &[Extent], parent: &[ParentExtent]) -> Vec<Extent> {
    let mut all = Vec::new();
    let mut at = 0;
    for extent in extents {
        let end = at + extent.run.len() as usize;
        if !matches!(extent.run, Run::Kept { .. }) {
            all.push(extent.clone());
        } else {
            let mut start = 0;
            for p in parent {
                let (from, to) = (start.max(at), end.min(start + p.extent.run.len() as usize));
                if from < to {
                    let len = narrow(to - from);
                    let run = match p.extent.run {
                        Run::Chunk { id, chunk_offset, chunk_len, .. } => {
                            Run::Chunk { len, id, chunk_offset: chunk_offset + narrow(from - start), chunk_len }
                        }
                        _ => Run::Hole { len },
                    };
                    all.push(Extent { run, pages: Vec::new() });
                }
                start += p.extent.run.len() as usize;
            }
        }
        at = end;
    }
    all
}

/// The parent in outline, as a coordinator sends it.
fn outline(parent: &[ParentExtent]) -> Vec<ParentExtent> {
    let mut all: Vec<ParentExtent> = Vec::new();
    for p in parent {
        let more = p.extent.run.len();
        match all.last_mut() {
            Some(ParentExtent { extent: Extent { run: Run::Kept { len }, .. }, retire })
                if *retire == p.retire
                    && matches!(p.extent.run, Run::Chunk { .. })
                    && (*len as usize).is_multiple_of(PAGE) =>
            {
                *len += more;
            }
            _ => {
                let run = match p.extent.run {
                    Run::Hole { len } => Run::Hole { len },
                    _ => Run::Kept { len: more },
                };
                all.push(ParentExtent { extent: Extent { run, pages: Vec::new() }, retire: p.retire });
            }
        }
    }
    all
}

/// A store of chunks with their page digests.
#[derive(Default)]
struct Stored(HashMap<ChunkId, (Vec<u8>, Vec<PageDigest>)>);

impl Stored {
    /// Stores what was cut, checks it against the bytes, and returns the parent's extents for the next cut.
    fn take(&mut self, bytes: &[u8], parent: &[ParentExtent], cut: &CutRegion, how: &Cutting) -> Vec<ParentExtent> {
        for fresh in &cut.fresh {
            let plain = fresh.plaintext(&region(bytes, None), &mut Vec::new()).to_vec();
            assert_eq!((plain.len(), how.domain.identify(&plain)), (fresh.len(), fresh.id));
            let digests = how.domain.page_digests(&plain, 0);
            self.0.insert(fresh.id, (plain, digests));
        }
        assert!(!cut.unchanged || cut.fresh.is_empty());
        let extents: Vec<Extent> = match cut.unchanged {
            true => parent.iter().map(|p| p.extent.clone()).collect(),
            false => resolved(&cut.extents, parent),
        };
        let mut at = 0;
        let mut next = Vec::new();
        for extent in extents {
            let end = at + extent.run.len() as usize;
            let mut known = extent.clone();
            match extent.run {
                Run::Hole { .. } => assert!(is_zero(&bytes[at..end]), "{at}..{end}"),
                Run::Kept { .. } => panic!("kept of nothing"),
                Run::Chunk { id, chunk_offset, len, chunk_len } => {
                    let (plain, digests) = &self.0[&id];
                    assert_eq!(plain.len(), chunk_len as usize);
                    assert!(
                        plain[chunk_offset as usize..(chunk_offset + len) as usize] == bytes[at..end],
                        "{at}..{end}"
                    );
                    let first = chunk_offset as usize / PAGE;
                    let all = &digests[first..first + (len as usize).div_ceil(PAGE)];
                    assert!(extent.pages.is_empty() || extent.pages == all);
                    known.pages = if how.whole_chunks { Vec::new() } else { all.to_vec() };
                }
            }
            next.push(ParentExtent { extent: known, retire: false });
            at = end;
        }
        assert_eq!(at, bytes.len());
        next
    }
}

fn new_bytes(cut: &CutRegion) -> usize {
    cut.fresh.iter().map(NewChunk::len).sum()
}

#[test]
fn an_unchanged_region_is_recognised() {
    for whole_chunks in [false, true] {
        let how = how(whole_chunks);
        let mut stored = Stored::default();
        let mut bytes = noise(3 << 20, 1);
        bytes[1 << 20..2 << 20].fill(0);
        let first = cut_it(&bytes, &[], None, &how);
        assert!(!first.unchanged);
        let parent = stored.take(&bytes, &[], &first, &how);
        let again = cut_it(&bytes, &parent, None, &how);
        assert!(again.unchanged && again.fresh.is_empty());
        // A longer volume than the parent's is not the same region.
        let longer = [bytes.clone(), noise(5000, 2)].concat();
        let grown = cut_it(&longer, &parent, None, &how);
        assert!(!grown.unchanged);
        stored.take(&longer, &parent, &grown, &how);
        let shorter = &bytes[..(2 << 20) + 777];
        let shrunk = cut_it(shorter, &parent, None, &how);
        assert!(!shrunk.unchanged);
        stored.take(shorter, &parent, &shrunk, &how);
    }
}

#[test]
fn single_pages_make_one_chunk_of_just_these_pages() {
    let how = how(false);
    let mut stored = Stored::default();
    let mut bytes = noise(8 << 20, 1);
    let parent = stored.take(&bytes, &[], &cut_it(&bytes, &[], None, &how), &how);
    for page in [3, 4, 700, 1500] {
        bytes[page * PAGE + 99] ^= 1;
    }
    let cut = cut_it(&bytes, &parent, None, &how);
    assert_eq!((cut.fresh.len(), new_bytes(&cut)), (1, 4 * PAGE));
    let parent = stored.take(&bytes, &parent, &cut, &how);
    assert!(cut_it(&bytes, &parent, None, &how).unchanged);
    // Again, by a sparse read of these ranges.
    bytes[4 * PAGE] ^= 1;
    let read = [2 * PAGE..6 * PAGE, 700 * PAGE..701 * PAGE];
    let cut = cut_it(&bytes, &parent, Some(&read), &how);
    assert_eq!(new_bytes(&cut), PAGE);
    stored.take(&bytes, &parent, &cut, &how);
}

#[test]
fn a_parent_without_digests_learns_them() {
    let how = how(false);
    let mut stored = Stored::default();
    let bytes = noise(1 << 20, 1);
    let mut parent = stored.take(&bytes, &[], &cut_it(&bytes, &[], None, &how), &how);
    parent.iter_mut().for_each(|p| p.extent.pages.clear());
    let cut = cut_it(&bytes, &parent, None, &how);
    assert!(!cut.unchanged && cut.fresh.is_empty());
    assert!(cut.extents.iter().all(|e| !e.pages.is_empty()));
    // A sparse read that covers nothing computes no digests, and finds no change.
    assert!(cut_it(&bytes, &parent, Some(&[]), &how).unchanged);
}

#[test]
fn a_fragmented_chunk_is_stored_anew_when_something_changes() {
    let how = how(false);
    let mut stored = Stored::default();
    let mut bytes = noise(1 << 20, 1);
    let mut parent = stored.take(&bytes, &[], &cut_it(&bytes, &[], None, &how), &how);
    parent[0].retire = true;
    assert!(cut_it(&bytes, &parent, None, &how).unchanged);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let cut = cut_it(&bytes, &parent, None, &how);
    let retired = parent[0].extent.run.len() as usize;
    assert_eq!(new_bytes(&cut), retired + PAGE);
    let Run::Chunk { id, .. } = parent[0].extent.run else { panic!() };
    assert!(!resolved(&cut.extents, &parent)[1..].iter().any(|e| matches!(e.run, Run::Chunk { id: i, .. } if i == id)));
    stored.take(&bytes, &parent, &cut, &how);
}

/// An extent that ended within a page is not compared page by page once the volume is longer: its last page differs.
#[test]
fn a_volume_that_grew_from_within_a_page_loses_nothing() {
    let how = how(false);
    let mut stored = Stored::default();
    for first in [7 * 512, 4095, 1, 20 * PAGE + 7 * 512, 100 * PAGE + 3500] {
        let mut bytes = noise(first, 3);
        // Zeros where the next page will be, but for the last sector.
        let last = first.saturating_sub(512);
        bytes[..last].fill(0);
        let mut parent = stored.take(&bytes, &[], &cut_it(&bytes, &[], None, &how), &how);
        for more in [PAGE, 3 * PAGE + 512, 0, 700] {
            bytes.extend(noise(more, 4));
            parent = stored.take(&bytes, &parent, &cut_it(&bytes, &parent, None, &how), &how);
            let mut at = 0_usize;
            for p in &parent {
                assert!(at.is_multiple_of(PAGE), "extents are page-aligned");
                if let Run::Chunk { chunk_offset, .. } = p.extent.run {
                    assert!((chunk_offset as usize).is_multiple_of(PAGE), "parts of chunks are page-aligned");
                }
                at += p.extent.run.len() as usize;
            }
            bytes[first / PAGE * PAGE..].fill(0);
            let changed = bytes.len() - 1;
            bytes[changed] ^= 1;
            parent = stored.take(&bytes, &parent, &cut_it(&bytes, &parent, None, &how), &how);
        }
    }
}

#[test]
fn pages_that_became_zero_are_holes() {
    let how = how(false);
    let mut stored = Stored::default();
    let mut bytes = noise(1 << 20, 1);
    let parent = stored.take(&bytes, &[], &cut_it(&bytes, &[], None, &how), &how);
    bytes[9 * PAGE..10 * PAGE].fill(0);
    let cut = cut_it(&bytes, &parent, None, &how);
    assert!(cut.fresh.is_empty() && cut.extents.iter().any(|e| e.run == Run::Hole { len: PAGE as u32 }));
    stored.take(&bytes, &parent, &cut, &how);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_changes_is_read_back(
        pages in 1usize..300, tail in 0usize..PAGE, seed: u64, whole_chunks: bool, may_keep: bool,
        generations in proptest::collection::vec((proptest::collection::vec((0usize..300, 0u8..4, 1usize..20), 0..10), any::<bool>(), any::<u64>(), 0usize..4 * PAGE), 1..6),
    ) {
        let how = Cutting { may_keep, ..how(whole_chunks) };
        let mut stored = Stored::default();
        let mut bytes = noise(pages * PAGE + tail, seed);
        let mut parent = stored.take(&bytes, &[], &cut_it(&bytes, &[], None, &how), &how);
        for (changes, by_list, bits, length) in generations {
            // The volume becomes longer or shorter, by bytes, pages or both; then there is no list.
            let by_list = by_list && length % 3 > 0;
            match length % 6 {
                0 => bytes.extend(noise(length, bits)),
                3 => bytes.truncate(bytes.len().saturating_sub(length).max(1)),
                _ => {}
            }
            let mut read: Vec<Range<usize>> = Vec::new();
            let mut touched = vec![false; bytes.len().div_ceil(PAGE)];
            for (page, value, count) in changes {
                let at = (page * PAGE).min(bytes.len() - 1) / PAGE * PAGE;
                let end = (at + count * PAGE).min(bytes.len());
                // Zeros, another value, or no change: a list may name pages that did not change.
                if value < 3 {
                    bytes[at..end].fill(value);
                }
                touched[at / PAGE..end.div_ceil(PAGE)].fill(true);
            }
            for (n, p) in parent.iter_mut().enumerate() {
                p.retire = bits >> (n % 64) & 7 == 7;
            }
            // Fragmented extents, and chunks that are to stay whole, are read as well.
            let mut at = 0;
            for p in &parent {
                let end = (at + p.extent.run.len() as usize).div_ceil(PAGE);
                let here = (at / PAGE).min(touched.len())..end.min(touched.len());
                if p.retire || (whole_chunks && touched[here.clone()].contains(&true)) {
                    touched[here].fill(true);
                }
                at += p.extent.run.len() as usize;
            }
            for (n, _) in touched.iter().enumerate().filter(|t| *t.1) {
                let (from, to) = (n * PAGE, ((n + 1) * PAGE).min(bytes.len()));
                match read.last_mut() {
                    Some(last) if last.end == from => last.end = to,
                    _ => read.push(from..to),
                }
            }
            let sent = if by_list && may_keep && !whole_chunks { &outline(&parent) } else { &parent };
            let cut = cut_it(&bytes, sent, by_list.then_some(&read), &how);
            parent = stored.take(&bytes, &parent, &cut, &how);
        }
    }
}
