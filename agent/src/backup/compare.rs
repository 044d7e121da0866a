//! Compares a region with its parent while it is read. Each piece is compared while it is in the core's cache, and is
//! not needed afterwards. A region that is read whole before it is compared goes through memory three times.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use milkrun_repository::chunk::{PAGE, is_zero};
use rayon::prelude::*;

use super::cut::Cutting;
use super::read::Failed;
use super::{ParentExtent, Run, SMALL_BYTES};
use crate::buffer::BufferPool;
use crate::device::Source;
use crate::workers::Workers;

/// Bytes that are read and compared at once, unless a single chunk is longer: they stay in a core's own cache.
const AT_ONCE: usize = 512 << 10;

/// Predicts whether regions are unchanged. Comparing pays off only then: in a region that changed, what was read until
/// the change was found is read twice.
#[derive(Debug, Default)]
pub(super) struct UnchangedGuess(AtomicI32);

impl UnchangedGuess {
    /// A changed region counts as much as this many unchanged ones; the score stays between -`MOST` and `MOST`.
    const CHANGED: i32 = 3;
    const MOST: i32 = 8;

    /// Whether the next region is probably unchanged.
    pub(super) fn is_good(&self) -> bool {
        self.0.load(Ordering::Relaxed) > -Self::CHANGED
    }

    /// Records whether a region was unchanged.
    pub(super) fn note(&self, unchanged: bool) {
        let next =
            |n: i32| Some(if unchanged { (n + 1).min(Self::MOST) } else { (n - Self::CHANGED).max(-Self::MOST) });
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

/// A piece that is read and compared at once. Its extents lie beside each other; none: a part of a hole.
struct Piece<'a> {
    at: u64,
    len: usize,
    extents: &'a [ParentExtent],
}

/// Whether a region equals the parent's, and there are no page digests to compute. If so, returns how many bytes were
/// read. `None` means that [`super::cut::cut_region`] must decide.
///
/// # Errors
/// Where a read failed, and why.
pub(super) fn read_unchanged(
    source: &dyn Source,
    buffers: &BufferPool,
    region: Range<u64>,
    parent: &[ParentExtent],
    how: &Cutting,
    cpu: &Workers,
) -> Result<Option<u64>, Failed> {
    let Some(pieces) = pieces(&region, parent, how) else { return Ok(None) };
    let changed = AtomicBool::new(false);
    let compare = |piece: &Piece<'_>| -> Result<u64, Failed> {
        if changed.load(Ordering::Relaxed) {
            return Ok(0);
        }
        let (read, same) = piece.compare(source, buffers, how, cpu).map_err(|e| (piece.at, e))?;
        changed.fetch_or(!same, Ordering::Relaxed);
        Ok(read)
    };
    // If several parallel reads fail, the lowest offset is reported: it says where the damage begins.
    let first = |a: Failed, b: Failed| if a.0 <= b.0 { a } else { b };
    let read = pieces.par_iter().map(compare).reduce(
        || Ok(0),
        |a, b| match (a, b) {
            (Ok(a), Ok(b)) => Ok(a + b),
            (Err(a), Err(b)) => Err(first(a, b)),
            (Err(e), Ok(_)) | (Ok(_), Err(e)) => Err(e),
        },
    )?;
    Ok(if changed.into_inner() { None } else { Some(read) })
}

/// The region in pieces; `None` if it can't be compared like that.
fn pieces<'a>(region: &Range<u64>, parent: &'a [ParentExtent], how: &Cutting) -> Option<Vec<Piece<'a>>> {
    let most = usize::try_from(SMALL_BYTES).ok()?;
    let mut pieces: Vec<Piece<'a>> = Vec::new();
    let mut at = region.start;
    let mut first = 0;
    for (n, p) in parent.iter().enumerate() {
        let len = p.extent.run.len() as usize;
        let end = at + len as u64;
        let on_pages = end.is_multiple_of(PAGE as u64) || end == region.end;
        if end > region.end || !on_pages || !comparable(p, how) {
            return None;
        }
        if matches!(p.extent.run, Run::Hole { .. }) {
            // A hole of any length, in parts that each fit into a buffer.
            let parts = (0..len).step_by(AT_ONCE).map(|from| Piece {
                at: at + from as u64,
                len: AT_ONCE.min(len - from),
                extents: &[],
            });
            pieces.extend(parts);
            first = n + 1;
        } else {
            match pieces.last_mut() {
                Some(last) if first < n && last.len + len <= AT_ONCE => {
                    last.len += len;
                    last.extents = &parent[first..=n];
                }
                _ if len > most => return None,
                _ => {
                    pieces.push(Piece { at, len, extents: &parent[n..=n] });
                    first = n;
                }
            }
        }
        at = end;
    }
    (at == region.end && !parent.is_empty()).then_some(pieces)
}

fn comparable(p: &ParentExtent, how: &Cutting) -> bool {
    match p.extent.run {
        Run::Hole { .. } => true,
        Run::Kept { .. } => false,
        Run::Chunk { len, chunk_offset, chunk_len, .. } => {
            let whole = chunk_offset == 0 && len == chunk_len;
            let known = !p.extent.pages.is_empty();
            if how.whole_chunks { whole } else { known || (whole && !how.learn) }
        }
    }
}

impl Piece<'_> {
    /// Reads the piece. Returns how many bytes were read, and whether it equals the parent's.
    fn compare(
        &self,
        source: &dyn Source,
        buffers: &BufferPool,
        how: &Cutting,
        cpu: &Workers,
    ) -> std::io::Result<(u64, bool)> {
        let end = self.at + self.len as u64;
        // The file system says that this is a hole: nothing needs to be read.
        if self.extents.is_empty() && source.next_data(self.at)?.is_none_or(|(start, _)| start >= end) {
            return Ok((0, true));
        }
        let mut buffer = buffers.take(self.len);
        source.read_at(&mut buffer, self.at)?;
        Ok((self.len as u64, cpu.lend(|| self.is_unchanged(&buffer, how))))
    }

    fn is_unchanged(&self, bytes: &[u8], how: &Cutting) -> bool {
        if self.extents.is_empty() {
            return is_zero(bytes);
        }
        let mut rest = bytes;
        self.extents.iter().all(|p| {
            let (here, behind) = rest.split_at(p.extent.run.len() as usize);
            rest = behind;
            match p.extent.run {
                Run::Chunk { id, len, chunk_offset, chunk_len } if chunk_offset == 0 && len == chunk_len => {
                    how.domain.identify(here) == id
                }
                Run::Chunk { chunk_offset, .. } => how.domain.page_digests(here, chunk_offset) == p.extent.pages,
                // Neither occurs: holes are pieces of their own, and `kept` runs can't be compared.
                Run::Hole { .. } | Run::Kept { .. } => false,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use milkrun_repository::chunk::page_cutter::PageCutter;
    use milkrun_repository::keys::DomainKey;
    use proptest::prelude::*;

    use super::super::cut::{cut_region, tests::noise};
    use super::super::region_bytes::RegionBytes;
    use super::super::{Extent, ParentExtent};
    use super::*;
    use crate::device::scripted::{Mishap, Scripted};

    fn how(whole_chunks: bool, learn: bool) -> Cutting {
        let domain = DomainKey::from_bytes([7; 32]);
        Cutting { cutter: PageCutter::DEFAULT, seed: 5, domain, whole_chunks, may_keep: true, learn }
    }

    fn volume(pages: usize, tail: usize, seed: u64) -> Vec<u8> {
        let mut bytes = noise(pages * PAGE + tail, seed);
        // Holes of all lengths.
        for n in (0..pages).filter(|n| (seed >> (n / 8 % 64)) & 3 == 3) {
            bytes[n * PAGE..(n + 1) * PAGE].fill(0);
        }
        bytes
    }

    fn region_bytes(bytes: &[u8]) -> RegionBytes {
        let mut buffer = BufferPool::new(bytes.len()).take(bytes.len());
        buffer.copy_from_slice(bytes);
        RegionBytes::whole(buffer)
    }

    fn scripted(bytes: &[u8]) -> Scripted {
        Scripted { content: Arc::new(bytes.to_vec()), mishap: None, size_at_end: None }
    }

    fn compare(source: &Scripted, parent: &[ParentExtent], how: &Cutting) -> Result<Option<u64>, Failed> {
        let buffers = BufferPool::new(usize::try_from(SMALL_BYTES).unwrap());
        read_unchanged(source, &buffers, 0..source.len(), parent, how, &Workers::new("test", 1).unwrap())
    }

    /// The extents that a cut returns; some chunks are in two parts.
    fn parent(bytes: &[u8], how: &Cutting, parts: u64) -> Vec<ParentExtent> {
        let cut = cut_region(&region_bytes(bytes), &[], how);
        let mut parent = Vec::new();
        for (n, e) in cut.extents.into_iter().enumerate() {
            let pages = e.run.len() as usize / PAGE;
            match e.run {
                Run::Chunk { id, len, chunk_len, .. } if pages > 1 && (parts >> (n % 64)) & 1 == 1 => {
                    let first = (PAGE * (pages / 2)) as u32;
                    for (chunk_offset, len) in [(0, first), (first, len - first)] {
                        let digests =
                            e.pages.iter().skip(chunk_offset as usize / PAGE).take((len as usize).div_ceil(PAGE));
                        let run = Run::Chunk { len, id, chunk_offset, chunk_len };
                        let extent = Extent { run, pages: digests.copied().collect() };
                        parent.push(ParentExtent { extent, retire: false });
                    }
                }
                _ => parent.push(ParentExtent { extent: e, retire: false }),
            }
        }
        parent
    }

    #[test]
    fn an_unchanged_region_is_read_once() {
        let how = how(false, true);
        let bytes = volume(700, 100, 1);
        let parent = parent(&bytes, &how, 6);
        assert_eq!(compare(&scripted(&bytes), &parent, &how).unwrap(), Some(bytes.len() as u64));
    }

    #[test]
    fn the_first_read_that_fails_is_reported() {
        let how = how(false, true);
        let bytes = volume(700, 0, 1);
        let parent = parent(&bytes, &how, 0);
        let source = Scripted { mishap: Some((1_200_000, Mishap::Error)), ..scripted(&bytes) };
        let (at, _) = compare(&source, &parent, &how).unwrap_err();
        assert!((1_200_000 - SMALL_BYTES..=1_200_000).contains(&at), "{at}");
    }

    #[test]
    fn the_prediction_follows_the_regions() {
        let guess = UnchangedGuess::default();
        assert!(guess.is_good());
        guess.note(false);
        assert!(!guess.is_good());
        guess.note(true);
        assert!(guess.is_good());
        (0..100).for_each(|_| guess.note(true));
        (0..3).for_each(|_| guess.note(false));
        assert!(guess.is_good());
        (0..100).for_each(|_| guess.note(false));
        (0..5).for_each(|_| guess.note(true));
        assert!(!guess.is_good());
        guess.note(true);
        assert!(guess.is_good());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn it_agrees_with_the_cut(
            pages in 1usize..500, tail in 0usize..PAGE, seed: u64, parts: u64, whole_chunks: bool, learn: bool, forget: bool,
            changes in proptest::collection::vec((0usize..500 * PAGE, 0u8..2), 0..3), more in 0usize..3 * PAGE, lengthen in 0u8..4,
        ) {
            let how = how(whole_chunks, learn);
            let mut bytes = volume(pages, tail, seed);
            let mut parent = parent(&bytes, &how, parts);
            if forget {
                parent.iter_mut().step_by(3).for_each(|p| p.extent.pages.clear());
            }
            for (at, value) in changes {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            match lengthen {
                0 => bytes.resize(bytes.len() + more, 1),
                1 => bytes.truncate(bytes.len().saturating_sub(more).max(1)),
                _ => {}
            }
            let cut = cut_region(&region_bytes(&bytes), &parent, &how);
            let same = compare(&scripted(&bytes), &parent, &how).unwrap();
            prop_assert_eq!(same.is_some(), cut.unchanged);
        }
    }
}
