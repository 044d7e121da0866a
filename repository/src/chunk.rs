//! Chunks: runs of plaintext. Each is cut, identified, compressed and sealed as one.
//!
//! The stages are functions of bytes, without I/O: [`page_cutter`] and [`stream_cutter`] decide where to cut,
//! [`crate::keys::DomainKey::identify`] names a chunk, [`codec`] compresses it, [`crate::pack`] seals it in place.

pub mod codec;
pub mod page_cutter;
pub mod pages;
pub mod stream_cutter;

/// Bytes of a page, the granule of volumes.
pub const PAGE: usize = 4096;
/// No chunk of a volume is longer, whatever a repository's cutters are. Whoever opens a chunk needs this much memory.
pub const CHUNK_BYTES_MAX: u32 = 4 << 20;

/// A piece of a region as a cutter sees it. Offsets are relative to the start of the buffer that was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A zero run: neither hashed nor stored.
    Hole {
        /// Where it starts.
        offset: usize,
        /// Its bytes.
        len: usize,
    },
    /// Bytes of one chunk.
    Data {
        /// Where it starts.
        offset: usize,
        /// Its bytes.
        len: usize,
    },
}

impl Piece {
    /// Bytes covered.
    pub fn len(&self) -> usize {
        match *self {
            Self::Hole { len, .. } | Self::Data { len, .. } => len,
        }
    }

    /// Whether nothing is covered (never, from a cutter).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether all bytes are zero. Looks at a few places first, since data rarely has zeros at its start, its middle and its end.
pub fn is_zero(bytes: &[u8]) -> bool {
    let n = bytes.len();
    if n >= 256 && (bytes[0] | bytes[n / 2] | bytes[n - 1] | bytes[n / 4] | bytes[n / 4 * 3]) != 0 {
        return false;
    }
    // Wide enough for the compiler to use the widest vectors; one branch per block.
    let (blocks, rest) = bytes.as_chunks::<256>();
    blocks.iter().all(|b| b.iter().fold(0, |acc, &x| acc | x) == 0) && rest.iter().all(|&x| x == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_set_bit_anywhere_is_no_zero_run() {
        for len in [0, 1, 255, 256, 257, 4096, 5000] {
            let mut b = vec![0; len];
            assert!(is_zero(&b));
            for at in (0..len).step_by(37) {
                b[at] = 1;
                assert!(!is_zero(&b), "{at} of {len}");
                b[at] = 0;
            }
        }
    }
}
