//! Bytes of a stated entropy, the same on every run and machine.

use std::fmt;

use milkrun_repository::chunk::PAGE;

/// Half of a page.
const HALF: usize = PAGE / 2;

/// The content of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entropy {
    /// Zeros.
    Zero,
    /// 8 bits per byte.
    Random,
    /// The first half of each page random, the second words of a made-up language.
    Half,
}

impl fmt::Display for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Zero => "zero",
            Self::Random => "random",
            Self::Half => "half-random",
        })
    }
}

/// Fills `out` (whole pages). All bytes are written: memory that was never touched would be a single page of zeros in
/// the cache.
pub(crate) fn fill(out: &mut [u8], entropy: Entropy) {
    match entropy {
        Entropy::Zero => {
            out.fill(1);
            std::hint::black_box(&mut *out).fill(0);
        }
        Entropy::Random => noise(entropy as u64).fill(out),
        Entropy::Half => {
            let mut noise = noise(entropy as u64);
            let text = text(16 << 20);
            for page in out.chunks_exact_mut(PAGE) {
                noise.fill(&mut page[..HALF]);
                let at = below(&mut noise, text.len() - HALF);
                page[HALF..].copy_from_slice(&text[at..at + HALF]);
            }
        }
    }
}

/// An endless stream of random bytes.
pub(crate) fn noise(seed: u64) -> blake3::OutputReader {
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof()
}

/// A random number under `bound`.
fn below(noise: &mut blake3::OutputReader, bound: usize) -> usize {
    let mut b = [0; 4];
    noise.fill(&mut b);
    u32::from_le_bytes(b) as usize % bound
}

/// Text in which some words are far more frequent than others, as in real text.
fn text(len: usize) -> Vec<u8> {
    const SYLLABLES: [&str; 16] =
        ["ka", "lo", "mi", "ren", "su", "ta", "vor", "ne", "shi", "pal", "or", "eth", "in", "dra", "gu", "wes"];
    const WORDS: usize = 6000;
    let mut noise = noise(7);
    let words: Vec<String> = (0..WORDS)
        .map(|_| (0..=below(&mut noise, 4)).map(|_| SYLLABLES[below(&mut noise, SYLLABLES.len())]).collect())
        .collect();
    let mut out = Vec::with_capacity(len + 64);
    while out.len() < len {
        // The rank is uniform in its logarithm: as good as Zipf's law here.
        let bits = below(&mut noise, WORDS.ilog2() as usize + 1);
        let rank = (1 << bits) + below(&mut noise, 1 << bits);
        out.extend_from_slice(words[rank % WORDS].as_bytes());
        out.push(b' ');
    }
    out.truncate(len);
    out
}
