//! The bytes of a region that were read: all of it, or some parts side by side in a smaller buffer.

use std::ops::Range;

use crate::buffer::Buffer;

/// A region in memory.
pub struct RegionBytes {
    buffer: Buffer,
    /// What is there: where in the region, in order, and where in the buffer. `None`: all of it.
    parts: Option<Vec<(Range<usize>, usize)>>,
    /// Bytes of the region.
    len: usize,
}

impl RegionBytes {
    /// All of a region.
    pub fn whole(buffer: Buffer) -> Self {
        Self { len: buffer.len(), buffer, parts: None }
    }

    /// These parts of a region of `len` bytes, apart from each other and in order; the buffer holds them one after the other.
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

    /// What of `within` is there, in order.
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

    /// Bytes of the region that are there, all of them in one part.
    ///
    /// # Panics
    /// If they are not.
    pub fn at(&self, range: Range<usize>) -> &[u8] {
        let from = self.place(&range);
        &self.buffer[from..from + range.len()]
    }

    /// Parts of the region, (offset, bytes) each, one after the other: where they lie like that, which those that were read alone do, or
    /// put together in `scratch`.
    ///
    /// # Panics
    /// If they are not there.
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

    /// Where in the buffer a part of the region lies.
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
    fn parts_are_lent_where_they_follow_each_other_and_put_together_where_not() {
        let mut buffer = BufferPool::new(60).take(60);
        (0..60).for_each(|n| buffer[n] = n as u8);
        // 10..30 of the region is bytes 0..20 of the buffer, 50..60 bytes 20..30, 90..100 bytes 30..40.
        let held = RegionBytes::parts(buffer, vec![10..30, 50..60, 90..100], 100);
        let together = |parts: &[(usize, usize)]| {
            let mut scratch = Vec::new();
            let bytes = held.together(parts, &mut scratch).to_vec();
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
