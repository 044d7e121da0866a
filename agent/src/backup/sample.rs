//! Checking a list of changes before anything rests on it: pages that it does not name, at random, are read and compared with
//! what the parent knows of them.
//!
//! A list says since which point it holds. It is used only if that point is the parent, the parent has digests of most of its
//! data, and the sample is as it was. Otherwise everything is read, and the point says why. A list stays on its node: only the
//! first attempt goes by it. Any other attempt, and the next leader, read the rest in full. Each point says how many in a row
//! rest on lists; after so many (`--full-every`, 16) one is read in full whatever its list says. That a volume is read by a list
//! is in the run's journal before anything is read, so that no point passes for one that was read in full.
//!
//! How likely a wrong list is noticed: `LEAVES` (32) regions are drawn at random, and `PAGES` (128) pages of each, at random from
//! those that the list leaves out. If a share *f* of all pages that it leaves out changed all the same, spread evenly, that stays
//! unnoticed with (1-f)^4096: 2 % for one page in a thousand, 1e-18 for one in a hundred, 96 % for one in a hundred thousand. If
//! all of them lie in a share *x* of the regions, it can't be noticed better than with 1-(1-x)^32, 97 % for a tenth of the volume.
//! Single pages are hardly ever met: that is what the full read every so many points is for.

use std::pin::pin;
use std::sync::Arc;

use futures::{TryStreamExt, stream};
use milkrun_repository::chunk::pages::PageDigest;
use milkrun_repository::chunk::{PAGE, is_zero};
use milkrun_repository::clock::entropy;

use super::{BackupError, Counters, Run, SMALL_BYTES, VolumeJob};
use crate::device::Source;
use crate::device::changes::Changes;
use crate::extent::ParentRange;

/// Regions that are looked at.
const LEAVES: u32 = 32;
/// Of a hole that may be terabytes.
const HOLE_BYTES: u64 = 16 << 20;
/// Of which so many are compared side by side.
const AT_ONCE: usize = 4;
/// Pages of each.
const PAGES: usize = 128;

/// What a sample says of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// So many bytes that it does not name are as they were.
    Holds(u64),
    /// This page changed, and is not named.
    Wrong(u64),
    /// There is nothing to compare with.
    Unknown,
}

/// A page as the parent has it.
struct Page {
    /// Where in the volume.
    at: u64,
    /// Its bytes: fewer at the parent's end.
    len: usize,
    /// Where in its chunk, and its digest; `None`: zeros.
    digest: Option<(u32, PageDigest)>,
}

/// Compares a sample.
///
/// # Errors
/// [`BackupError`] when the coordinator or the device can't be asked.
pub async fn check(job: &VolumeJob, source: &Arc<dyn Source>, changes: &Changes) -> Result<Verdict, BackupError> {
    let ranges = job.coordinator.sample(LEAVES).await?;
    let ranges = stream::try_unfold(ranges, |mut ranges| async move {
        let next = ranges.next().await?;
        Ok::<_, BackupError>(next.map(|range| (range, ranges)))
    });
    let mut compared = pin!(ranges.map_ok(|range| compare(job, source, changes, range)).try_buffer_unordered(AT_ONCE));
    let (mut bytes, mut with, mut without) = (0, 0, 0);
    while let Some(one) = compared.try_next().await? {
        if let Some(at) = one.wrong {
            return Ok(Verdict::Wrong(at));
        }
        bytes += one.bytes;
        with += one.with;
        without += one.without;
    }
    Counters::add(&job.counters.read, bytes);
    // Holes alone say nothing of the data, and neither do a few digests of much data.
    Ok(if with > without { Verdict::Holds(bytes) } else { Verdict::Unknown })
}

/// What a region says of a list.
struct Compared {
    /// A page that changed and is not named.
    wrong: Option<u64>,
    /// Bytes that were compared.
    bytes: u64,
    /// Pages with digests, and without.
    with: usize,
    without: usize,
}

/// Compares some pages of one region.
async fn compare(
    job: &VolumeJob,
    source: &Arc<dyn Source>,
    changes: &Changes,
    range: ParentRange,
) -> Result<Compared, BackupError> {
    let pages = pages_of(&range, source.len());
    let with = pages.iter().filter(|p| p.digest.is_some()).count();
    let without = without_digests(&range);
    let mut left: Vec<Page> = pages.into_iter().filter(|p| !changes.names(p.at)).collect();
    let mut drawn = Vec::new();
    while drawn.len() < PAGES && !left.is_empty() {
        let n = usize::try_from(u64::from_le_bytes(entropy()) % left.len() as u64).unwrap_or(0);
        drawn.push(left.swap_remove(n));
    }
    drawn.sort_unstable_by_key(|p| p.at);
    let bytes = drawn.len() as u64 * PAGE as u64;
    let (length, from, domain) = (source.len(), source.clone(), job.domain.clone());
    let permit = job.engine.budget.transfer(SMALL_BYTES).await;
    let buffers = job.engine.small.clone();
    let wrong = job.engine.io.run(move || {
        let _permit = permit;
        let mut buffer = buffers.take(drawn.len() * PAGE);
        // Whole pages, as far as there are: reads past the system's cache need it.
        let there = |page: &Page| usize::try_from(length - page.at).unwrap_or(PAGE).min(PAGE);
        let pieces = drawn.iter().zip(buffer.chunks_mut(PAGE));
        from.read_pieces(pieces.map(|(page, bytes)| (page.at, &mut bytes[..there(page)])).collect())?;
        let differs = drawn.iter().zip(buffer.chunks(PAGE)).find(|(page, bytes)| {
            let bytes = &bytes[..page.len];
            match page.digest {
                None => !is_zero(bytes),
                Some((offset, digest)) => domain.page_digests(bytes, offset) != [digest],
            }
        });
        Ok(differs.map(|(page, _)| page.at))
    });
    let wrong = wrong.await.map_err(|(offset, e)| BackupError::Read { offset, length, source: e })?;
    Ok(Compared { wrong, bytes, with, without })
}

/// The pages of a range that can be compared: on the volume's pages, and not cut by its present end.
fn pages_of(range: &ParentRange, len: u64) -> Vec<Page> {
    let mut pages = Vec::new();
    let mut add = |from: u64, to: u64, digest: &dyn Fn(usize) -> Option<(u32, PageDigest)>| {
        if !from.is_multiple_of(PAGE as u64) {
            return;
        }
        let whole = (from..to).step_by(PAGE).enumerate().map(|(n, at)| {
            let len = usize::try_from(to - at).unwrap_or(PAGE).min(PAGE);
            Page { at, len, digest: digest(n) }
        });
        pages.extend(whole.filter(|p| p.at + p.len as u64 <= len));
    };
    if range.extents.is_empty() {
        add(range.offset, range.offset + range.len.min(HOLE_BYTES), &|_| None);
        return pages;
    }
    let mut at = range.offset;
    for p in &range.extents {
        let end = at + u64::from(p.extent.run.len());
        match p.extent.run {
            Run::Hole { .. } => add(at, end, &|_| None),
            Run::Chunk { chunk_offset, .. } if !p.extent.pages.is_empty() => {
                let of = |n: usize| Some((chunk_offset + u32::try_from(n * PAGE).ok()?, *p.extent.pages.get(n)?));
                add(at, end, &of);
            }
            Run::Chunk { .. } | Run::Kept { .. } => {}
        }
        at = end;
    }
    pages
}

/// Pages of data without digests.
fn without_digests(range: &ParentRange) -> usize {
    let data = range.extents.iter().filter(|p| matches!(p.extent.run, Run::Chunk { .. }) && p.extent.pages.is_empty());
    data.map(|p| (p.extent.run.len() as usize).div_ceil(PAGE)).sum()
}
