//! Buffers that are allocated once and reused: page-aligned ones for regions (O_DIRECT needs the alignment), plain ones
//! for ranges of packs. A new buffer costs more than the copy into it, since the kernel clears its pages first.

use std::sync::{Arc, Mutex, PoisonError};

use milkrun_repository::chunk::PAGE;

/// A page-aligned buffer; goes back to its pool when dropped.
pub struct Buffer {
    /// One page longer than the capacity, so that the buffer can begin at a page boundary. An aligned allocation would
    /// be cleared at once; this memory is not touched before it is filled.
    bytes: Vec<u8>,
    len: usize,
    pool: Arc<Mutex<Vec<Vec<u8>>>>,
    idle_max: usize,
}

/// Buffers of one capacity.
#[derive(Clone)]
pub struct BufferPool {
    capacity: usize,
    idle_max: usize,
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl BufferPool {
    /// Buffers of up to `capacity` bytes. The caller bounds how many exist at once (see [`crate::budget`]).
    pub fn new(capacity: usize) -> Self {
        Self { capacity: capacity.next_multiple_of(PAGE), idle_max: usize::MAX, idle: Arc::default() }
    }

    /// Keeps at most `idle_max` of the buffers that are given back.
    #[must_use]
    pub fn keeping(mut self, idle_max: usize) -> Self {
        self.idle_max = idle_max;
        self
    }

    /// A buffer of `len` bytes (cut to the capacity). Its content is left over from earlier use.
    pub fn take(&self, len: usize) -> Buffer {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = idle.unwrap_or_else(|| vec![0; self.capacity + PAGE]);
        Buffer { len: len.min(self.capacity), bytes, pool: self.idle.clone(), idle_max: self.idle_max }
    }
}

impl Buffer {
    /// Where the first page begins.
    fn start(&self) -> usize {
        let address = self.bytes.as_ptr() as usize;
        address.next_multiple_of(PAGE) - address
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let start = self.start();
        &self.bytes[start..start + self.len]
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = self.start();
        &mut self.bytes[start..start + self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut idle = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.idle_max {
            idle.push(bytes);
        }
    }
}

/// Plain buffers, in classes of a power of two of MiB, so that a small range never holds a large buffer.
#[derive(Clone)]
pub struct RangeBuffers {
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
    idle_max: usize,
}

/// A buffer for a range; goes back when dropped.
pub struct RangeBuffer {
    bytes: Vec<u8>,
    pool: RangeBuffers,
}

impl RangeBuffers {
    /// Idle buffers are kept up to `idle_max` bytes.
    pub fn new(idle_max: usize) -> Self {
        Self { idle: Arc::default(), idle_max }
    }

    /// The capacity of a buffer for `len` bytes.
    pub fn class(len: u64) -> u64 {
        len.div_ceil(1 << 20).next_power_of_two() << 20
    }

    /// A buffer with room for `len` bytes. Its content is left over from earlier use.
    pub fn take(&self, len: u64) -> RangeBuffer {
        let class = usize::try_from(Self::class(len)).unwrap_or(usize::MAX);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let found = idle.iter().rposition(|b| b.capacity() == class).map(|at| idle.swap_remove(at));
        drop(idle);
        RangeBuffer { bytes: found.unwrap_or_else(|| Vec::with_capacity(class)), pool: self.clone() }
    }
}

impl std::ops::Deref for RangeBuffer {
    type Target = Vec<u8>;
    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl std::ops::DerefMut for RangeBuffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Drop for RangeBuffer {
    fn drop(&mut self) {
        // The bytes may have been moved out or replaced; such a buffer would fit no later range.
        let capacity = self.bytes.capacity();
        if capacity == 0 || RangeBuffers::class(capacity as u64) != capacity as u64 {
            return;
        }
        let mut idle = self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.iter().map(Vec::capacity).sum::<usize>() + capacity <= self.pool.idle_max {
            idle.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_come_back() {
        let pool = BufferPool::new(10_000);
        let first = pool.take(5000);
        let address = first.as_ptr() as usize;
        assert_eq!((first.len(), address % PAGE), (5000, 0));
        drop(first);
        let again = pool.take(20_000);
        assert_eq!((again.as_ptr() as usize, again.len()), (address, 12_288));
    }

    #[test]
    fn range_buffers_come_back_to_ranges_of_their_size() {
        let buffers = RangeBuffers::new(32 << 20);
        assert_eq!([1, 1 << 20, (1 << 20) + 1, 5 << 20].map(RangeBuffers::class), [1 << 20, 1 << 20, 2 << 20, 8 << 20]);
        let mut large = buffers.take(5 << 20);
        large.resize(5 << 20, 1);
        let address = large.as_ptr() as usize;
        drop(large);
        let small = buffers.take(100);
        assert!(small.capacity() < 2 << 20 && small.as_ptr() as usize != address);
        assert_eq!(buffers.take(8 << 20).as_ptr() as usize, address);
        drop((0..9).map(|_| buffers.take(8 << 20)).collect::<Vec<_>>());
        let idle: usize = buffers.idle.lock().unwrap().iter().map(Vec::capacity).sum();
        assert_eq!(idle, 32 << 20);
    }
}
