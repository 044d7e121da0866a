//! The bytes of a region that were read: all of it, or some parts one after the other in a smaller buffer.

use std::ops::Range;

use crate::buffer::Buffer;

/// A region in memory.
pub struct RegionBytes {
    buffer: Buffer,
    /// The parts that were read, in order: where each lies in the region and where it begins in the buffer. `None`: all
    /// of the region was read.
    parts: Option<Vec<(Range<usize>, usize)>>,
    /// Bytes of the region.
    len: usize,
}

impl RegionBytes {
    /// All of a region.
    pub fn whole(buffer: Buffer) -> Self {
        Self { len: buffer.len(), buffer, parts: None }
    }

    /// These parts of a region of `len` bytes. They are in order and do not touch; the buffer holds them one after the
    /// other.
    pub fn parts(buffer: Buffer, parts: Vec<Range<usize>>, len: usize) -> Self {
        let mut at = 0;
        let placed = parts.into_iter().map(|part| {
            let start = at;
            at += part.len();
            (part, start)
        });
        let parts = Some(placed.collect());
        debug_assert!(at <= buffer.len());
        Self { buffer, parts, len }
    }

    /// Bytes of the region.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The parts of `within` that were read, in order.
    pub fn present(&self, within: Range<usize>) -> Vec<Range<usize>> {
        match &self.parts {
            None => std::iter::once(within).collect(),
            Some(parts) => {
                let first = parts.partition_point(|(p, _)| p.end <= within.start);
                let inside = parts[first..].iter().take_while(|(p, _)| p.start < within.end);
                inside.map(|(p, _)| p.start.max(within.start)..p.end.min(within.end)).collect()
            }
        }
    }

    /// Bytes of the region. All of them must lie in one part that was read.
    ///
    /// # Panics
    /// If they do not.
    pub fn at(&self, range: Range<usize>) -> &[u8] {
        let from = self.place(&range);
        &self.buffer[from..from + range.len()]
    }

    /// These parts of the region, (offset, bytes) each, one after the other: a slice of the buffer if they lie there
    /// like that, as the parts of a sparse read do, else copied together in `scratch`.
    ///
    /// # Panics
    /// If one of them was not read.
    pub fn together<'a>(&'a self, parts: &[(usize, usize)], scratch: &'a mut Vec<u8>) -> &'a [u8] {
        let Some(&(first, len)) = parts.first() else { return &[] };
        let start = self.place(&(first..first + len));
        let joined = parts.iter().try_fold(start, |end, &(at, len)| {
            let follows = self.place(&(at..at + len)) == end;
            follows.then_some(end + len)
        });
        if let Some(end) = joined {
            return &self.buffer[start..end];
        }
        scratch.clear();
        scratch.reserve(parts.iter().map(|p| p.1).sum());
        for &(at, len) in parts {
            scratch.extend_from_slice(self.at(at..at + len));
        }
        scratch
    }

    /// Where a part of the region begins in the buffer.
    fn place(&self, range: &Range<usize>) -> usize {
        let Some(parts) = &self.parts else { return range.start };
        let n = parts.partition_point(|(p, _)| p.end <= range.start);
        let (part, start) = &parts[n];
        assert!(part.start <= range.start && range.end <= part.end, "{range:?} was not read");
        start + (range.start - part.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::BufferPool;

    #[test]
    fn parts_are_copied_only_if_they_do_not_follow_each_other() {
        let mut buffer = BufferPool::new(60).take(60);
        (0..60).for_each(|n| buffer[n] = n as u8);
        // 10..30 of the region is bytes 0..20 of the buffer, 50..60 bytes 20..30, 90..100 bytes 30..40.
        let region = RegionBytes::parts(buffer, vec![10..30, 50..60, 90..100], 100);
        let together = |parts: &[(usize, usize)]| {
            let mut scratch = Vec::new();
            let bytes = region.together(parts, &mut scratch).to_vec();
            (bytes, scratch.is_empty())
        };
        let bytes = |first: Range<u8>, then: Range<u8>| first.chain(then).collect::<Vec<u8>>();
        assert_eq!(together(&[(10, 20), (50, 10), (90, 10)]), (bytes(0..20, 20..40), true));
        assert_eq!(together(&[(25, 5), (50, 4)]), (bytes(15..20, 20..24), true));
        assert_eq!(together(&[(10, 20), (90, 10)]), (bytes(0..20, 30..40), false));
        assert_eq!(together(&[(50, 10), (10, 20)]), (bytes(20..30, 0..20), false));
        assert_eq!(together(&[]), (Vec::new(), true));
    }
}
