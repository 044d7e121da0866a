//! The cutter for block devices and images. Cut points lie between pages. A digest of the page that ends the chunk decides where
//! they are.
//!
//! File systems move data by whole blocks, so a cut inside a page would gain little, and a page digest (CRC-32C in hardware) runs
//! near memory speed. Zero runs of at least [`PageCutter::hole_pages`] pages become holes. Shorter ones stay inside chunks, where
//! they compress to nothing and do not break the chunk in two.

use serde::{Deserialize, Serialize};

use super::{CHUNK_BYTES_MAX, PAGE, Piece, is_zero};

/// The parameters, in pages. Fixed in `repository.json`: other values give other cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageCutter {
    /// No chunk is shorter, except before a hole and at the end of a region.
    pub min_pages: u32,
    /// The wanted average; a power of two.
    pub avg_pages: u32,
    /// No chunk is longer.
    pub max_pages: u32,
    /// A zero run of at least this many pages becomes a hole.
    pub hole_pages: u32,
}

/// Parameters that no cutter can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("chunking parameters are out of bounds")]
pub struct BadParameters;

impl PageCutter {
    /// 256 KiB on average (docs/performance.md has the table).
    pub const DEFAULT: Self = Self { min_pages: 16, avg_pages: 64, max_pages: 256, hole_pages: 8 };

    /// Checks the bounds: 1 <= min < avg < max, avg a power of two, chunks of at most 4 MiB.
    ///
    /// # Errors
    /// [`BadParameters`] otherwise.
    pub fn check(&self) -> Result<(), BadParameters> {
        let sound = self.min_pages >= 1
            && self.min_pages < self.avg_pages
            && self.avg_pages < self.max_pages
            && self.max_bytes() <= CHUNK_BYTES_MAX as usize
            && self.avg_pages.is_power_of_two()
            && self.hole_pages >= 1;
        if sound { Ok(()) } else { Err(BadParameters) }
    }

    /// The longest chunk in bytes.
    pub fn max_bytes(&self) -> usize {
        self.max_pages as usize * PAGE
    }

    /// Cuts `bytes` (a region, or a part of one that starts and ends at known cut points) into pieces, in order and
    /// without gaps. The result depends on the bytes, the parameters and the seed alone.
    pub fn cut(&self, seed: u64, bytes: &[u8], out: &mut Vec<Piece>) {
        let mut at = 0;
        while at < bytes.len() {
            let (data_end, hole_end) = self.next_hole(bytes, at);
            self.cut_data(seed, bytes, at, data_end, out);
            if hole_end > data_end {
                out.push(Piece::Hole { offset: data_end, len: hole_end - data_end });
            }
            at = hole_end;
        }
    }

    /// The next zero run at or after `from` that is long enough: (its start, its end). Without one, both are the end.
    fn next_hole(&self, bytes: &[u8], from: usize) -> (usize, usize) {
        let need = self.hole_pages as usize * PAGE;
        let mut at = from;
        // A probe every `hole_pages` pages can't miss a run of that length. Only a hit is measured exactly.
        while at < bytes.len() {
            let end = (at + PAGE).min(bytes.len());
            if !is_zero(&bytes[at..end]) {
                at = (at + need).min(bytes.len());
                continue;
            }
            let mut start = at;
            while start > from && start - PAGE >= from && is_zero(&bytes[start - PAGE..start]) {
                start -= PAGE;
            }
            let mut stop = end;
            while stop < bytes.len() && is_zero(&bytes[stop..(stop + PAGE).min(bytes.len())]) {
                stop = (stop + PAGE).min(bytes.len());
            }
            // A run that fills the whole input counts whatever its length: a volume of one zero page is a hole.
            if stop - start >= need || (start == 0 && stop == bytes.len()) {
                return (start, stop);
            }
            at = (stop + PAGE).min(bytes.len()).max(at + PAGE);
        }
        (bytes.len(), bytes.len())
    }

    fn cut_data(&self, seed: u64, bytes: &[u8], from: usize, to: usize, out: &mut Vec<Piece>) {
        let (min, max) = (self.min_pages as usize * PAGE, self.max_bytes());
        let avg = self.avg_pages as usize * PAGE;
        // Normalised chunking as in FastCDC (Xia et al., 2016): harder before the average, easier after it.
        let bits = self.avg_pages.ilog2();
        let (hard, easy) = (mask(bits + 1), mask(bits.saturating_sub(1)));
        let mut start = from;
        while start < to {
            let limit = (start + max).min(to);
            let mut at = start + min;
            let mut cut = limit;
            while at < limit {
                let page = &bytes[at - PAGE..at];
                let wanted = if at - start < avg { hard } else { easy };
                if mix(crc32c::crc32c(page), seed) & wanted == 0 {
                    cut = at;
                    break;
                }
                at += PAGE;
            }
            out.push(Piece::Data { offset: start, len: cut - start });
            start = cut;
        }
    }
}

fn mask(bits: u32) -> u64 {
    // The top bits: the multiplication in `mix` leaves the low ones weak.
    if bits == 0 { 0 } else { u64::MAX << (64 - bits) }
}

fn mix(crc: u32, seed: u64) -> u64 {
    let x = (u64::from(crc) ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pseudo-random bytes, the same everywhere and for ever: golden cuts depend on them.
    pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
        out
    }

    #[test]
    fn cuts_are_frozen() {
        let mut data = noise(4 << 20, 1);
        data[1 << 20..(1 << 20) + 40 * PAGE].fill(0);
        let cuts = |cutter: PageCutter| {
            let mut pieces = Vec::new();
            cutter.cut(42, &data, &mut pieces);
            let text = pieces.iter().map(|p| match p {
                Piece::Hole { len, .. } => format!("hole {}", len / PAGE),
                Piece::Data { len, .. } => format!("{}", len / PAGE),
            });
            text.collect::<Vec<_>>().join(" ")
        };
        // Older repositories have these parameters.
        let cutter = PageCutter { min_pages: 8, avg_pages: 32, max_pages: 128, hole_pages: 8 };
        insta::assert_snapshot!(cuts(cutter));
        insta::assert_snapshot!(cuts(PageCutter::DEFAULT), @"75 74 45 53 9 hole 40 48 64 59 86 29 44 68 61 69 60 123 17");
    }

    #[test]
    fn a_shift_by_pages_finds_the_same_chunks_again() {
        let data = noise(8 << 20, 2);
        let shifted = [noise(3 * PAGE, 3), data.clone()].concat();
        let ids = |bytes: &[u8]| -> std::collections::HashSet<blake3::Hash> {
            let mut pieces = Vec::new();
            PageCutter::DEFAULT.cut(7, bytes, &mut pieces);
            pieces
                .iter()
                .filter_map(|p| match *p {
                    Piece::Data { offset, len } => Some(blake3::hash(&bytes[offset..offset + len])),
                    Piece::Hole { .. } => None,
                })
                .collect()
        };
        let (a, b) = (ids(&data), ids(&shifted));
        assert!(a.intersection(&b).count() * 10 > a.len() * 9, "{} of {}", a.intersection(&b).count(), a.len());
    }

    proptest! {
        #[test]
        fn pieces_cover_everything_once(pages in 0usize..400, tail in 0usize..PAGE, holes in proptest::collection::vec((0usize..400, 1usize..60), 0..6), seed: u64) {
            let mut data = noise(pages * PAGE + tail, seed);
            for (start, len) in holes {
                let from = (start * PAGE).min(data.len());
                let to = ((start + len) * PAGE).min(data.len());
                data[from..to].fill(0);
            }
            let mut pieces = Vec::new();
            PageCutter::DEFAULT.cut(seed, &data, &mut pieces);
            let mut at = 0;
            for p in &pieces {
                let (offset, len) = match *p { Piece::Hole { offset, len } | Piece::Data { offset, len } => (offset, len) };
                prop_assert_eq!(offset, at);
                prop_assert!(len > 0);
                match p {
                    Piece::Hole { .. } => prop_assert!(is_zero(&data[offset..offset + len])),
                    Piece::Data { .. } => prop_assert!(len <= PageCutter::DEFAULT.max_bytes()),
                }
                at += len;
            }
            prop_assert_eq!(at, data.len());
            // No data piece contains a run of zeros that is long enough for a hole.
            let need = PageCutter::DEFAULT.hole_pages as usize;
            for p in &pieces {
                if let Piece::Data { offset, len } = *p {
                    let zero: Vec<bool> = data[offset..offset + len].chunks(PAGE).map(|c| c.len() == PAGE && is_zero(c)).collect();
                    prop_assert!(!zero.windows(need).any(|w| w.iter().all(|&z| z)));
                }
            }
        }
    }
}
