//! Free space of a file system need not be read: if the file system is clean, the volume is read as if its free space
//! were zeros.
//!
//! Opt-in (`--skip-free`). In any doubt everything is read, and the point says why: the file system is unknown, was not cleanly
//! unmounted or frozen, has an unknown feature, or one of its checksums is wrong.
//!
//! Everything behind it (holes, prediction, page digests) stays as it is. When the volume is done, the superblock must be what it
//! was: it changes when somebody mounts or thaws the file system.
//!
//! It excludes a list of changes: such a list need not name what is free at the time when it is no longer left out. The journal
//! says that a volume leaves something out, its notes in the root say so, and no list is used on such a parent.
//!
//! There is no map of free space for xfs. A frozen xfs leaves its log dirty on purpose, so that a snapshot of it can't be told
//! from one that was not frozen: a map would help cleanly unmounted volumes alone.

mod ext4;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use milkrun_repository::chunk::PAGE;
use milkrun_repository::point::root::{FREE_LEFT_OUT, FileSystem};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Piece, Source, SourceError};

/// The largest number of free ranges that are kept. When it is exceeded, the shortest allowed length doubles, and
/// shorter ranges are dropped.
const RANGES_MAX: usize = 1 << 20;
/// Shorter ranges are read: skipping them saves less than it costs.
const SHORTEST: u64 = 256 << 10;

/// One file system at a time: the memory that scanning one takes is not part of the budget.
static TURN: Semaphore = Semaphore::const_new(1);

/// Waits until no other file system is being scanned. Hold the permit around [`leave_out`], and take it before a pool
/// thread begins that work: a pool thread that waits for its reads may begin another volume meanwhile.
pub async fn turn() -> Option<SemaphorePermit<'static>> {
    // It is never closed.
    TURN.acquire().await.ok()
}

/// The free space of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreeSpace {
    /// Whole pages, in order, not touching each other.
    ranges: Vec<Range<u64>>,
    shortest: u64,
    /// The file system's superblock: it changes when somebody mounts or thaws the file system.
    superblock: Vec<u8>,
}

/// Why the free space of a file system is not used.
#[derive(Debug, thiserror::Error)]
pub enum Doubt {
    /// It can't be read.
    #[error("read error at byte {at}")]
    Read {
        /// Where.
        at: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no file system, or an unknown one.
    #[error("there is no ext4 file system on it")]
    Unknown,
    /// The state on the disk is not complete.
    #[error(
        "its ext4 file system was neither unmounted nor frozen when it was copied (its journal needs recovery), or has errors"
    )]
    Unclean,
    /// It has an unknown feature, or one that leaves it without checksums.
    #[error("its ext4 file system {0}")]
    Feature(String),
    /// It contradicts itself.
    #[error("its ext4 file system is damaged: {0}")]
    Damaged(String),
}

impl Default for FreeSpace {
    fn default() -> Self {
        Self { ranges: Vec::new(), shortest: SHORTEST, superblock: Vec::new() }
    }
}

impl FreeSpace {
    /// Finds the free space of a volume.
    ///
    /// # Errors
    /// [`Doubt`]: then all of the volume has to be read.
    pub fn of(source: &dyn Source) -> Result<Self, Doubt> {
        ext4::free_space(source)
    }

    /// Adds a free range. It must lie behind those that were added before.
    fn add(&mut self, free: Range<u64>) {
        match self.ranges.last_mut() {
            Some(last) if last.end == free.start => last.end = free.end,
            _ => {
                self.settle();
                self.ranges.push(free);
            }
        }
        if self.ranges.len() > RANGES_MAX {
            self.shortest *= 2;
            let shortest = self.shortest;
            // The last range may still grow.
            let last = self.ranges.pop();
            self.ranges.retain(|r| r.end - r.start >= shortest);
            self.ranges.extend(last);
        }
    }

    /// Ends the last range: it is cut to whole pages, or dropped if it is too short.
    fn settle(&mut self) {
        let Some(last) = self.ranges.last_mut() else { return };
        let page = PAGE as u64;
        *last = last.start.next_multiple_of(page)..last.end - last.end % page;
        if last.end.saturating_sub(last.start) < self.shortest {
            self.ranges.pop();
        }
    }

    /// Call this after the last range was added.
    fn done(mut self) -> Self {
        self.settle();
        self.ranges.shrink_to_fit();
        self
    }

    /// Bytes that are free.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|r| r.end - r.start).sum()
    }

    /// The free ranges that end behind `offset`.
    fn from(&self, offset: u64) -> &[Range<u64>] {
        &self.ranges[self.ranges.partition_point(|r| r.end <= offset)..]
    }

    /// Zeroes the free parts of a piece at `offset`.
    fn clear(&self, piece: &mut [u8], offset: u64) {
        let end = offset + piece.len() as u64;
        for free in self.from(offset).iter().take_while(|r| r.start < end) {
            let within = |at: u64| usize::try_from(at.clamp(offset, end) - offset).unwrap_or(usize::MAX);
            piece[within(free.start)..within(free.end)].fill(0);
        }
    }
}

/// A volume that reads as zeros where its file system is free.
struct WithoutFree {
    path: PathBuf,
    inner: Box<dyn Source>,
    free: FreeSpace,
}

/// Leaves out the free space of a volume, if its file system is clean and known. Else the volume is returned as it is,
/// with a note for people.
pub fn leave_out(inner: Box<dyn Source>, path: &Path) -> (Arc<dyn Source>, Option<String>) {
    match FreeSpace::of(&*inner) {
        Ok(free) => (Arc::new(WithoutFree { path: path.to_owned(), inner, free }), None),
        Err(doubt) => {
            let why = milkrun_repository::point::catalog::chain(&doubt);
            (inner.into(), Some(format!("what is free was read like the rest, because {why}")))
        }
    }
}

impl Source for WithoutFree {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn sector_bytes(&self) -> u32 {
        self.inner.sector_bytes()
    }

    fn file_system(&self) -> FileSystem {
        self.inner.file_system()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_at(buf, offset)?;
        self.free.clear(buf, offset);
        Ok(())
    }

    fn read_pieces(&self, mut pieces: Vec<Piece<'_>>) -> Result<(), (u64, io::Error)> {
        self.inner.read_pieces(pieces.iter_mut().map(|(at, piece)| (*at, &mut **piece)).collect())?;
        for (at, piece) in pieces {
            self.free.clear(piece, at);
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let mut offset = offset;
        while let Some((start, end)) = self.inner.next_data(offset)? {
            match self.free.from(start).first() {
                Some(free) if free.start <= start => offset = free.end,
                Some(free) => return Ok(Some((start, end.min(free.start)))),
                None => return Ok(Some((start, end))),
            }
        }
        Ok(None)
    }

    fn finish(&self) -> Result<Vec<String>, SourceError> {
        let mut notes = self.inner.finish()?;
        if ext4::superblock(&*self.inner).is_none_or(|now| now != self.free.superblock) {
            // Files may have been written to what was free, while blocks that refer to them were read later.
            return Err(SourceError::Thawed { path: self.path.clone() });
        }
        notes.push(format!("{FREE_LEFT_OUT}{} bytes that its ext4 file system has free", self.free.bytes()));
        Ok(notes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::device::scripted::Scripted;

    const MIB: u64 = 1 << 20;

    #[test]
    fn short_ranges_and_parts_of_pages_are_read() {
        let mut free = FreeSpace::default();
        free.add(100..MIB + 100);
        free.add(MIB + 100..MIB + 200);
        free.add(2 * MIB..2 * MIB + 4096);
        free.add(3 * MIB..3 * MIB + SHORTEST);
        assert_eq!(free.done().ranges, vec![4096..MIB, 3 * MIB..3 * MIB + SHORTEST]);
    }

    #[test]
    fn the_number_of_ranges_is_limited_and_the_longest_stay() {
        let mut free = FreeSpace::default();
        for n in 0..RANGES_MAX as u64 + 2 {
            let len = if n.is_multiple_of(1000) { 2 * SHORTEST } else { SHORTEST };
            free.add(n * MIB..n * MIB + len);
        }
        let free = free.done();
        assert_eq!(free.ranges.len(), RANGES_MAX / 1000 + 1);
        assert!(free.ranges.iter().all(|r| r.end - r.start == 2 * SHORTEST));
    }

    #[test]
    fn a_file_system_that_was_mounted_meanwhile_is_not_backed_up() {
        let of = |first: u8| Scripted { content: Arc::new(vec![first; 8192]), mishap: None, size_at_end: None };
        let finish = |superblock: Vec<u8>| {
            let free = FreeSpace { superblock, ..FreeSpace::default() };
            WithoutFree { path: "p".into(), inner: Box::new(of(1)), free }.finish()
        };
        assert!(finish(vec![1; 1024]).unwrap()[0].starts_with(FREE_LEFT_OUT));
        assert!(matches!(finish(vec![2; 1024]), Err(SourceError::Thawed { .. })));
    }

    proptest! {
        #[test]
        fn free_space_reads_as_zeros(
            lens in proptest::collection::vec((0..3 * SHORTEST, 1..3 * SHORTEST), 0..6),
            offset in 0..MIB / PAGE as u64,
        ) {
            let content: Vec<u8> = (0..2 * MIB).map(|n| (n % 251) as u8 + 1).collect();
            let mut free = FreeSpace::default();
            let mut at = 0;
            for (used, len) in lens {
                let start = at + used;
                at = start + len;
                if at <= content.len() as u64 {
                    free.add(start..at);
                }
            }
            let free = free.done();
            let mut wanted = content.clone();
            for r in &free.ranges {
                wanted[r.start as usize..r.end as usize].fill(0);
            }
            let inner = Scripted { content: Arc::new(content), mishap: None, size_at_end: None };
            let source = WithoutFree { path: "scripted".into(), inner: Box::new(inner), free };
            // Reading only what `next_data` returns.
            let mut by_ranges = vec![0; wanted.len()];
            let mut next = 0;
            while let Some((start, end)) = source.next_data(next).unwrap() {
                prop_assert!(start >= next && end > start);
                source.read_at(&mut by_ranges[start as usize..end as usize], start).unwrap();
                next = end;
            }
            prop_assert!(by_ranges == wanted);
            // Reading at any offset.
            let offset = offset * PAGE as u64;
            let mut piece = vec![9; 300_000];
            source.read_at(&mut piece, offset).unwrap();
            prop_assert!(piece == wanted[offset as usize..offset as usize + 300_000]);
            let mut pieces = [vec![9; 4096], vec![9; 8192]];
            let [a, b] = &mut pieces;
            source.read_pieces(vec![(offset, a), (offset + MIB / 2, b)]).unwrap();
            prop_assert!(pieces[0] == wanted[offset as usize..offset as usize + 4096]);
            prop_assert!(pieces[1] == wanted[(offset + MIB / 2) as usize..(offset + MIB / 2) as usize + 8192]);
        }
    }
}
