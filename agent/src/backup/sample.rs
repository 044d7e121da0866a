//! Checking a list of changes before anything rests on it: pages that it does not name, at random, are read and compared with
//! what the parent knows of them.
//!
//! How likely a wrong list is noticed: of [`LEAVES`] regions, drawn at random, [`PAGES`] pages each, drawn at random from those
//! that the list leaves out. If a share *f* of such pages changed all the same, spread evenly, it stays unnoticed with
//! (1-f)^4096: 2 % for one page in a thousand, 1.6e-18 for one in a hundred. If they lie together in a share *x* of the regions, with
//! (1-x)^32: 4 % for a tenth of the volume. That is what the full read every so many points is for.

use std::sync::Arc;

use milkrun_repository::chunk::pages::PageDigest;
use milkrun_repository::chunk::{PAGE, is_zero};
use milkrun_repository::clock::entropy;
use rayon::prelude::*;

use super::{BackupError, Counters, Run, SMALL_BYTES, VolumeJob};
use crate::device::Source;
use crate::device::changes::Changes;
use crate::rpc::ParentRange;

/// Regions that are looked at.
const LEAVES: u32 = 32;
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
    /// Where in its chunk, and its digest; `None`: zeros.
    digest: Option<(u32, PageDigest)>,
}

/// Compares a sample.
///
/// # Errors
/// [`BackupError`] when the coordinator or the device can't be asked.
pub async fn check(job: &VolumeJob, source: &Arc<dyn Source>, changes: &Changes) -> Result<Verdict, BackupError> {
    let mut ranges = job.coordinator.sample(LEAVES).await?;
    let (mut known, mut compared) = (false, 0);
    while let Some(range) = ranges.next().await? {
        let pages = pages_of(&range, source.len());
        known |= !pages.is_empty();
        let mut left: Vec<Page> = pages.into_iter().filter(|p| !changes.names(p.at)).collect();
        let mut drawn = Vec::new();
        while drawn.len() < PAGES && !left.is_empty() {
            let n = usize::try_from(u64::from_le_bytes(entropy()) % left.len() as u64).unwrap_or(0);
            drawn.push(left.swap_remove(n));
        }
        drawn.sort_unstable_by_key(|p| p.at);
        compared += drawn.len() as u64 * PAGE as u64;
        let (length, from, domain) = (source.len(), source.clone(), job.domain.clone());
        let permit = job.engine.budget.transfer(SMALL_BYTES).await;
        let buffers = job.engine.small.clone();
        let wrong = job.engine.io.run(move || {
            let mut buffer = buffers.take(drawn.len() * PAGE);
            let read = drawn.par_iter().zip(buffer.par_chunks_mut(PAGE)).map(|(page, bytes)| {
                let len = usize::try_from(length - page.at).unwrap_or(PAGE).min(PAGE);
                let bytes = &mut bytes[..len];
                from.read_at(bytes, page.at).map_err(|e| (page.at, e))?;
                let same = match page.digest {
                    None => is_zero(bytes),
                    Some((offset, digest)) => domain.page_digests(bytes, offset) == [digest],
                };
                Ok((!same).then_some(page.at))
            });
            let wrong: Vec<Option<u64>> = read.collect::<Result<_, (u64, std::io::Error)>>()?;
            Ok(wrong.into_iter().flatten().next())
        });
        let wrong = wrong.await;
        drop(permit);
        let wrong = wrong.map_err(|(offset, e)| BackupError::Read { offset, length, source: e })?;
        if let Some(at) = wrong {
            return Ok(Verdict::Wrong(at));
        }
    }
    Counters::add(&job.counters.read, compared);
    Ok(if known { Verdict::Holds(compared) } else { Verdict::Unknown })
}

/// The pages of a range that can be compared.
fn pages_of(range: &ParentRange, len: u64) -> Vec<Page> {
    let mut pages = Vec::new();
    let mut add = |from: u64, to: u64, digest: &dyn Fn(usize) -> Option<(u32, PageDigest)>| {
        let aligned = (from..to.min(len)).step_by(PAGE).enumerate();
        pages.extend(aligned.map(|(n, at)| Page { at, digest: digest(n) }));
    };
    if range.extents.is_empty() {
        add(range.offset, range.offset + range.len, &|_| None);
        return pages;
    }
    let mut at = range.offset;
    for p in &range.extents {
        let end = at + u64::from(p.extent.run.len());
        match p.extent.run {
            Run::Hole { .. } => add(at, end, &|_| None),
            Run::Chunk { chunk_offset, .. } if !p.extent.pages.is_empty() => {
                add(at, end, &|n| Some((chunk_offset + (n * PAGE) as u32, p.extent.pages[n])));
            }
            Run::Chunk { .. } => {}
        }
        at = end;
    }
    pages
}
