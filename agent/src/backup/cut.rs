//! What a region is made of. With a parent, its cut is tried first: where an old chunk's range still has the old id,
//! nothing is cut, looked up, compressed or sent. Only what does not agree goes to the cutter.

use milkrun_repository::chunk::page_cutter::PageCutter;
use milkrun_repository::chunk::{Piece, is_zero};
use milkrun_repository::id::ChunkId;
use milkrun_repository::keys::DomainKey;

use super::Run;

/// A region after cutting.
#[derive(Debug, PartialEq, Eq)]
pub struct CutRegion {
    /// Its runs, in order.
    pub runs: Vec<Run>,
    /// Whether it is the parent's region to the byte.
    pub unchanged: bool,
    /// Chunks that the parent does not have here: (offset in the region, bytes, id).
    pub fresh: Vec<(usize, usize, ChunkId)>,
}

/// Cuts a region of an image. `parent` are the runs of the parent at the same place, empty if there are none; they may
/// cover less than the region.
pub fn cut_region(bytes: &[u8], parent: &[Run], cutter: &PageCutter, seed: u64, domain: &DomainKey) -> CutRegion {
    let mut out = CutRegion { runs: Vec::with_capacity(parent.len()), unchanged: false, fresh: Vec::new() };
    let mut at = 0;
    // Start of a range that does not agree with the parent and is still to be cut.
    let mut missed: Option<usize> = None;
    let mut agreed = true;
    for run in parent {
        let end = at + run.len() as usize;
        if end > bytes.len() {
            break;
        }
        let same = match *run {
            Run::Hole { .. } => is_zero(&bytes[at..end]),
            // A part of a chunk can't be told by the chunk's id.
            Run::Chunk { id, len, chunk_offset, chunk_len } => {
                chunk_offset == 0 && len == chunk_len && domain.identify(&bytes[at..end]) == id
            }
        };
        if same {
            if let Some(from) = missed.take() {
                cut_anew(bytes, from, at, cutter, seed, domain, &mut out);
            }
            push(&mut out.runs, *run);
        } else {
            agreed = false;
            missed.get_or_insert(at);
        }
        at = end;
    }
    let covered = at == bytes.len() && parent.iter().map(|r| r.len() as usize).sum::<usize>() == at;
    if at < bytes.len() || missed.is_some() {
        let from = missed.unwrap_or(at);
        cut_anew(bytes, from, bytes.len(), cutter, seed, domain, &mut out);
    }
    out.unchanged = agreed && covered && !parent.is_empty();
    out
}

fn cut_anew(
    bytes: &[u8],
    from: usize,
    to: usize,
    cutter: &PageCutter,
    seed: u64,
    domain: &DomainKey,
    out: &mut CutRegion,
) {
    let mut pieces = Vec::new();
    cutter.cut(seed, &bytes[from..to], &mut pieces);
    for piece in pieces {
        match piece {
            Piece::Hole { len, .. } => push(&mut out.runs, Run::Hole { len: narrow(len) }),
            Piece::Data { offset, len } => {
                let start = from + offset;
                let id = domain.identify(&bytes[start..start + len]);
                out.fresh.push((start, len, id));
                out.runs.push(whole_chunk(id, len));
            }
        }
    }
}

/// A chunk that is used whole.
pub fn whole_chunk(id: ChunkId, len: usize) -> Run {
    Run::Chunk { len: narrow(len), id, chunk_offset: 0, chunk_len: narrow(len) }
}

/// Neighbouring holes become one.
fn push(runs: &mut Vec<Run>, run: Run) {
    match (runs.last_mut(), run) {
        (Some(Run::Hole { len }), Run::Hole { len: more }) => *len += more,
        _ => runs.push(run),
    }
}

// Regions are far shorter than 4 GiB.
fn narrow(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use milkrun_repository::chunk::PAGE;
    use proptest::prelude::*;

    use super::*;

    fn domain() -> DomainKey {
        DomainKey::from_bytes([7; 32])
    }

    fn noise(len: usize, seed: u64) -> Vec<u8> {
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

    /// What the runs say, against the bytes themselves.
    fn check(bytes: &[u8], cut: &CutRegion) {
        let mut at = 0;
        for run in &cut.runs {
            let end = at + run.len() as usize;
            match *run {
                Run::Hole { .. } => assert!(is_zero(&bytes[at..end])),
                Run::Chunk { id, chunk_offset, len, chunk_len } => {
                    assert_eq!((chunk_offset, len), (0, chunk_len));
                    assert_eq!(domain().identify(&bytes[at..end]), id);
                }
            }
            at = end;
        }
        assert_eq!(at, bytes.len());
        for &(offset, len, id) in &cut.fresh {
            assert_eq!(domain().identify(&bytes[offset..offset + len]), id);
        }
    }

    #[test]
    fn an_unchanged_region_is_told_at_once() {
        let mut bytes = noise(3 << 20, 1);
        bytes[1 << 20..2 << 20].fill(0);
        let first = cut_region(&bytes, &[], &PageCutter::DEFAULT, 5, &domain());
        assert!(!first.unchanged);
        let again = cut_region(&bytes, &first.runs, &PageCutter::DEFAULT, 5, &domain());
        assert!(again.unchanged && again.fresh.is_empty());
        assert_eq!(again.runs, first.runs);
        // A longer volume than the parent's is not the same region.
        let longer = [bytes.clone(), noise(5000, 2)].concat();
        let grown = cut_region(&longer, &first.runs, &PageCutter::DEFAULT, 5, &domain());
        assert!(!grown.unchanged);
        check(&longer, &grown);
        let shorter = &bytes[..(2 << 20) + 777];
        let shrunk = cut_region(shorter, &first.runs, &PageCutter::DEFAULT, 5, &domain());
        assert!(!shrunk.unchanged);
        check(shorter, &shrunk);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn prediction_never_changes_what_is_read_back(
            pages in 1usize..300, tail in 0usize..PAGE, seed: u64,
            changes in proptest::collection::vec((0usize..300, any::<u8>()), 0..10),
        ) {
            let mut bytes = noise(pages * PAGE + tail, seed);
            let first = cut_region(&bytes, &[], &PageCutter::DEFAULT, seed, &domain());
            check(&bytes, &first);
            for (page, value) in changes {
                let at = (page * PAGE).min(bytes.len() - 1);
                let end = (at + PAGE).min(bytes.len());
                bytes[at..end].fill(value & 1);
            }
            let second = cut_region(&bytes, &first.runs, &PageCutter::DEFAULT, seed, &domain());
            check(&bytes, &second);
        }
    }
}
