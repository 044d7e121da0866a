//! What was read of a region: all of it, or some parts, side by side in a buffer that need not hold more.

use std::ops::Range;

use crate::buffer::Buffer;

/// A region in memory.
pub struct Held {
    buffer: Buffer,
    /// What is there: where in the region, in order, and where in the buffer. `None`: all of it.
    parts: Option<Vec<(Range<usize>, usize)>>,
    /// Bytes of the region.
    len: usize,
}

impl Held {
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
        let Some(parts) = &self.parts else { return &self.buffer[range] };
        let n = parts.partition_point(|(p, _)| p.end <= range.start);
        let (part, start) = &parts[n];
        assert!(part.start <= range.start && range.end <= part.end, "{range:?} was not read");
        let from = start + (range.start - part.start);
        &self.buffer[from..from + range.len()]
    }
}
