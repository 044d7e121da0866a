//! Page-aligned buffers that are allocated once and travel: O_DIRECT needs the alignment, speed the reuse.

use std::sync::{Arc, Mutex, PoisonError};

use milkrun_repository::chunk::PAGE;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// A page-aligned buffer; goes back to its pool when dropped.
pub struct Buffer {
    pages: Vec<Page>,
    len: usize,
    home: Arc<Mutex<Vec<Vec<Page>>>>,
}

/// Buffers of one capacity.
#[derive(Clone)]
pub struct BufferPool {
    capacity_pages: usize,
    idle: Arc<Mutex<Vec<Vec<Page>>>>,
}

impl BufferPool {
    /// Buffers of up to `capacity` bytes. How many there are at once is bounded by who asks (see [`crate::budget`]).
    pub fn new(capacity: usize) -> Self {
        Self { capacity_pages: capacity.div_ceil(PAGE), idle: Arc::default() }
    }

    /// A buffer of `len` bytes (cut to the capacity). Its content is left over from earlier use.
    pub fn take(&self, len: usize) -> Buffer {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let pages = idle.unwrap_or_else(|| vec![Page([0; PAGE]); self.capacity_pages]);
        Buffer { len: len.min(self.capacity_pages * PAGE), pages, home: self.idle.clone() }
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.pages)[..self.len]
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.pages)[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        self.home.lock().unwrap_or_else(PoisonError::into_inner).push(pages);
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
}
