//! The cutter for byte streams and manifests: `fastcdc` v2020. Its cuts move along with bytes that shift.

use fastcdc::v2020::{FastCDC, Normalization};
use serde::{Deserialize, Serialize};

use super::page_cutter::BadParameters;
use super::{CHUNK_BYTES_MAX, Piece};

/// The parameters, in bytes. Fixed in `repository.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamCutter {
    /// No chunk but the last is shorter.
    pub min: u32,
    /// The wanted average; a power of two.
    pub avg: u32,
    /// No chunk is longer.
    pub max: u32,
}

impl StreamCutter {
    /// 128 KiB on average.
    pub const DEFAULT: Self = Self { min: 32 << 10, avg: 128 << 10, max: 512 << 10 };

    /// Checks the bounds of `fastcdc` v2020 (even sizes) and ours (at most 4 MiB).
    ///
    /// # Errors
    /// [`BadParameters`] otherwise.
    pub fn check(&self) -> Result<(), BadParameters> {
        let sound = self.min >= 64
            && self.min < self.avg
            && self.avg < self.max
            && self.max <= CHUNK_BYTES_MAX
            && self.avg >= 256
            && self.avg.is_power_of_two()
            && self.min.is_multiple_of(2)
            && self.max.is_multiple_of(2);
        if sound { Ok(()) } else { Err(BadParameters) }
    }

    /// The longest chunk in bytes.
    pub fn max_bytes(&self) -> usize {
        self.max as usize
    }

    /// Cuts the start of a stream. With `last`, all of `bytes` is cut. Without it, only chunks that more bytes could not change
    /// are cut. Returns how many bytes were cut; the caller passes the rest again with the bytes that follow.
    pub fn cut(&self, seed: u64, bytes: &[u8], last: bool, out: &mut Vec<Piece>) -> usize {
        if bytes.is_empty() {
            return 0;
        }
        let (min, avg, max) = (self.min as usize, self.avg as usize, self.max as usize);
        let cutter = FastCDC::with_level_and_seed(bytes, min, avg, max, Normalization::Level1, seed);
        let mut at = 0;
        while at < bytes.len() {
            let rest = bytes.len() - at;
            if !last && rest < max {
                break;
            }
            let (_, end) = cutter.cut(at, rest);
            out.push(Piece::Data { offset: at, len: end - at });
            at = end;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
        out
    }

    #[test]
    fn cuts_are_frozen() {
        let mut pieces = Vec::new();
        StreamCutter::DEFAULT.cut(42, &noise(4 << 20, 1), true, &mut pieces);
        let text: Vec<String> = pieces.iter().map(|p| p.len().to_string()).collect();
        insta::assert_snapshot!(text.join(" "));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn feeding_in_parts_cuts_as_at_once(len in 0usize..3_000_000, part in 1usize..900_000, seed: u64) {
            let data = noise(len, seed);
            let mut whole = Vec::new();
            StreamCutter::DEFAULT.cut(seed, &data, true, &mut whole);
            let mut lens = Vec::new();
            let (mut pending, mut fed) = (Vec::new(), 0);
            while fed < data.len() || !pending.is_empty() {
                let next = (fed + part).min(data.len());
                pending.extend_from_slice(&data[fed..next]);
                fed = next;
                let mut pieces = Vec::new();
                let used = StreamCutter::DEFAULT.cut(seed, &pending, fed == data.len(), &mut pieces);
                lens.extend(pieces.iter().map(Piece::len));
                pending.drain(..used);
            }
            prop_assert_eq!(lens, whole.iter().map(Piece::len).collect::<Vec<_>>());
        }
    }
}
