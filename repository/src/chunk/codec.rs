//! Compression of one chunk: zstd where it pays, raw where it doesn't. The choice is recorded per chunk.

use std::ops::RangeInclusive;

use zstd::zstd_safe::{CParameter, Strategy};

/// How a chunk's plaintext is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// As it is.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
}

impl Codec {
    /// From its stored number.
    pub fn from_u8(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// A zstd level, with two exceptions. Level 2 is zstd's fast strategy with matches of five bytes, whatever the length of a chunk:
/// it compresses the pages of databases better than zstd's level 3, in less time (docs/performance.md). Level 3 becomes level 2
/// where that leaves less; one chunk in 16 is compressed both ways to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(i32);

/// A level outside of [`Level::RANGE`].
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the compression level must lie between -7 and 19")]
pub struct BadLevel;

impl Level {
    /// The accepted levels.
    pub const RANGE: RangeInclusive<i32> = -7..=19;
    /// Level 3, or 2 where that leaves less: as few stored bytes as the best peer, at twice its speed (docs/performance.md).
    pub const DEFAULT: Self = Self(3);
    /// The level for maps, which are mostly ids and numbers: a higher level leaves no less (docs/performance-history.md).
    pub const MAPS: Self = Self(1);

    /// Checks the range.
    ///
    /// # Errors
    /// [`BadLevel`] outside of it.
    pub fn new(level: i32) -> Result<Self, BadLevel> {
        if Self::RANGE.contains(&level) { Ok(Self(level)) } else { Err(BadLevel) }
    }

    /// The number.
    pub fn get(self) -> i32 {
        self.0
    }
}

/// The level that is tuned for pages.
const PAGES_LEVEL: i32 = 2;
/// One in this many chunks is compressed both ways, to see which level leaves less. By arithmetic that costs a twentieth of the
/// time.
const COMPARED: u32 = 16;
/// The shortest match of that level.
const PAGES_MATCH: u32 = 5;
/// The table of that level has two to this power entries, of four bytes each.
const PAGES_TABLE: u32 = 16;

/// After this many chunks in a row that did not compress, the next one is compressed whole only if a sample of it pays: encrypted
/// or compressed data comes in long runs.
const IN_VAIN: u32 = 4;
/// One in this many chunks is compressed whole whatever its sample says.
const TRIED_ALL_THE_SAME: u32 = 16;
/// Bytes of a sample.
const SAMPLE: usize = 8 << 10;

/// Compresses chunk after chunk with one set of tables.
pub struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
    level: Level,
    /// Set where the ordered level is the one that level 2 may replace.
    rival: Option<Rival>,
    /// How many chunks in a row did not compress.
    in_vain: u32,
}

/// The level for pages, used beside the one that was ordered.
struct Rival {
    zstd: zstd::bulk::Compressor<'static>,
    /// Chunks since both levels were last compared.
    since: u32,
    /// Whether it left less of the last chunk that was compared.
    favoured: bool,
}

/// Decompresses chunk after chunk.
pub struct Decompressor {
    zstd: zstd::bulk::Decompressor<'static>,
}

/// A chunk that does not decompress to what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecompressError {
    /// Not a zstd frame.
    #[error("does not decompress: {0}")]
    Zstd(String),
    /// Another length than stated.
    #[error("decompresses to {found} bytes instead of {wanted}")]
    Length {
        /// What came out.
        found: usize,
        /// What the directory says.
        wanted: usize,
    },
}

impl Compressor {
    /// A compressor for one level. The frame carries neither checksum nor content size: the chunk id (BLAKE3) and the directory
    /// do.
    ///
    /// # Errors
    /// When zstd can't get its memory.
    pub fn new(level: Level) -> std::io::Result<Self> {
        Ok(Self { zstd: context(level)?, level, rival: Rival::of(level)?, in_vain: 0 })
    }

    /// Changes the level, from the next chunk on.
    ///
    /// # Errors
    /// When zstd refuses the level.
    pub fn set_level(&mut self, level: Level) -> std::io::Result<()> {
        if level == self.level {
            return Ok(());
        }
        if [level.get(), self.level.get()].contains(&PAGES_LEVEL) {
            self.zstd = context(level)?;
        } else {
            // Not `set_compression_level`: that also loads an empty dictionary, which zstd accepts only between two frames.
            self.zstd.set_parameter(CParameter::CompressionLevel(level.get()))?;
        }
        if self.rival.is_none() {
            self.rival = Rival::of(level)?;
        }
        self.level = level;
        Ok(())
    }

    /// Writes `plain` compressed to the start of `out` and returns the length; `None` if compression does not pay and the chunk
    /// is to be stored as it is. It pays when it saves at least 1/32. `out` may be overwritten in any case.
    ///
    /// # Panics
    /// If `out` is shorter than `plain`.
    pub fn compress(&mut self, plain: &[u8], out: &mut [u8]) -> Option<usize> {
        let sampled = self.in_vain >= IN_VAIN && !self.in_vain.is_multiple_of(TRIED_ALL_THE_SAME);
        let try_it = !sampled || self.sample_pays(plain, out);
        let compressed = if try_it { self.try_whole(plain, out) } else { None };
        self.in_vain = if compressed.is_some() { 0 } else { self.in_vain.wrapping_add(1) };
        compressed
    }

    fn sample_pays(&mut self, plain: &[u8], out: &mut [u8]) -> bool {
        // The sample is taken from the first half of the chunk and from the second in turn.
        let quarter = plain.len() / 4;
        let at = if self.in_vain.is_multiple_of(2) { quarter } else { 3 * quarter };
        // A sample of a short chunk would cost as much as the chunk.
        quarter < 2 * SAMPLE || try_on(self.favourite(), &plain[at..at + SAMPLE], out).is_some()
    }

    fn try_whole(&mut self, plain: &[u8], out: &mut [u8]) -> Option<usize> {
        let Some(rival) = self.rival.as_mut().filter(|_| self.level == Level::DEFAULT) else {
            return try_on(&mut self.zstd, plain, out);
        };
        if !rival.is_due() {
            return try_on(self.favourite(), plain, out);
        }
        // The favourite comes last: its output stays in `out`.
        let favoured = rival.favoured;
        let (first, last) =
            if favoured { (&mut self.zstd, &mut rival.zstd) } else { (&mut rival.zstd, &mut self.zstd) };
        let (other, stays) = (try_on(first, plain, out), try_on(last, plain, out));
        let (ordered, rivals) = if favoured { (other, stays) } else { (stays, other) };
        let left = |n: Option<usize>| n.unwrap_or(plain.len());
        rival.favoured = left(rivals) < left(ordered);
        stays
    }

    /// The level that left less of the last chunk that was compressed both ways.
    fn favourite(&mut self) -> &mut zstd::bulk::Compressor<'static> {
        match &mut self.rival {
            Some(rival) if rival.favoured && self.level == Level::DEFAULT => &mut rival.zstd,
            _ => &mut self.zstd,
        }
    }
}

impl Rival {
    fn of(level: Level) -> std::io::Result<Option<Self>> {
        let pages = || Ok(Self { zstd: context(Level(PAGES_LEVEL))?, since: COMPARED, favoured: false });
        (level == Level::DEFAULT).then(pages).transpose()
    }

    /// Whether the next chunk is compressed both ways.
    fn is_due(&mut self) -> bool {
        let due = self.since >= COMPARED;
        self.since = if due { 1 } else { self.since + 1 };
        due
    }
}

/// Writes `plain` compressed to the start of `out`, if that pays.
fn try_on(zstd: &mut zstd::bulk::Compressor<'static>, plain: &[u8], out: &mut [u8]) -> Option<usize> {
    // There is room only for output that pays: zstd stops by itself once that is exceeded.
    let pays = plain.len() - plain.len() / 32;
    zstd.compress_to_buffer(plain, &mut out[..pays]).ok().filter(|n| *n < plain.len())
}

fn context(level: Level) -> std::io::Result<zstd::bulk::Compressor<'static>> {
    let mut zstd = zstd::bulk::Compressor::new(level.get())?;
    zstd.include_checksum(false)?;
    zstd.include_contentsize(false)?;
    if level.get() == PAGES_LEVEL {
        zstd.set_parameter(CParameter::Strategy(Strategy::ZSTD_fast))?;
        zstd.set_parameter(CParameter::MinMatch(PAGES_MATCH))?;
        zstd.set_parameter(CParameter::HashLog(PAGES_TABLE))?;
    }
    Ok(zstd)
}

impl Decompressor {
    /// A fresh one.
    ///
    /// # Errors
    /// When zstd can't get its memory.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { zstd: zstd::bulk::Decompressor::new()? })
    }

    /// Fills `out`, which has the length of the plaintext.
    ///
    /// # Errors
    /// [`DecompressError`] when `stored` isn't exactly that many bytes of plaintext.
    pub fn decompress(&mut self, codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<(), DecompressError> {
        let found = match codec {
            Codec::Raw => {
                if stored.len() == out.len() {
                    out.copy_from_slice(stored);
                }
                stored.len()
            }
            Codec::Zstd => {
                self.zstd.decompress_to_buffer(stored, out).map_err(|e| DecompressError::Zstd(e.to_string()))?
            }
        };
        if found == out.len() { Ok(()) } else { Err(DecompressError::Length { found, wanted: out.len() }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compressed(c: &mut Compressor, plain: &[u8], out: &mut [u8]) -> (Codec, usize) {
        match c.compress(plain, out) {
            Some(n) => (Codec::Zstd, n),
            None => {
                out.copy_from_slice(plain);
                (Codec::Raw, plain.len())
            }
        }
    }

    #[test]
    fn after_long_noise_text_is_compressed_at_once_and_what_no_sample_meets_soon() {
        let mut c = Compressor::new(Level::DEFAULT).unwrap();
        let mut noise = vec![0; 128 << 10];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let mut out = vec![0; noise.len()];
        for _ in 0..100 {
            assert_eq!(c.compress(&noise, &mut out), None);
        }
        let text = &b"one fish two fish ".repeat(8000)[..noise.len()];
        assert!(c.compress(text, &mut out).is_some());
        // Only one corner is text. In a run of such chunks only some are stored as they are.
        for _ in 0..100 {
            assert_eq!(c.compress(&noise, &mut out), None);
        }
        let mut corner = noise.clone();
        corner[..16 << 10].copy_from_slice(&text[..16 << 10]);
        let first = (0..100).position(|_| c.compress(&corner, &mut out).is_some());
        assert!(first.is_some_and(|n| n < TRIED_ALL_THE_SAME as usize), "{first:?}");
        assert!((0..100).all(|_| c.compress(&corner, &mut out).is_some()));
    }

    #[test]
    fn the_level_changes_after_whatever_chunk() {
        let mut c = Compressor::new(Level::DEFAULT).unwrap();
        let mut noise = vec![0; 128 << 10];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let mut text: Vec<u8> = noise.iter().flat_map(|b| format!("word number {b}, ").into_bytes()).collect();
        text.truncate(noise.len());
        let mut out = vec![0; noise.len()];
        let mut lengths = Vec::new();
        for level in [3, 9, -1, 2, 9, 2, 3] {
            assert_eq!(c.compress(&noise, &mut out), None);
            c.set_level(Level::new(level).unwrap()).unwrap();
            let n = c.compress(&text, &mut out).unwrap();
            let mut fresh = Compressor::new(Level::new(level).unwrap()).unwrap();
            assert_eq!(fresh.compress(&text, &mut vec![0; text.len()]), Some(n), "level {level}");
            lengths.push(n);
        }
        assert!(lengths[0] == lengths[6] && lengths[3] == lengths[5] && lengths[2] != lengths[3], "{lengths:?}");
    }

    /// Rows of a table: a counter, a few numbers, padding.
    fn table(len: usize) -> Vec<u8> {
        let mut numbers = vec![0; len / 32];
        blake3::Hasher::new().finalize_xof().fill(&mut numbers);
        let rows = numbers.chunks_exact(4).zip(0_u32..).flat_map(|(n, i)| {
            let mut row = [b' '; 128];
            row[..4].copy_from_slice(&i.to_le_bytes());
            row[4..8].copy_from_slice(&[2, 9, 24, 0]);
            row[8..12].copy_from_slice(&(i / 100_000).to_le_bytes());
            row[12..14].copy_from_slice(&n[..2]);
            row[14..16].copy_from_slice(&[0, n[2] % 2]);
            row
        });
        rows.take(len).collect()
    }

    /// Words in no order.
    fn prose(len: usize) -> Vec<u8> {
        let mut chance = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut chance);
        let words = chance.iter().flat_map(|b| {
            let n = u32::from(*b).wrapping_mul(2_654_435_761);
            (0..1 + n % 3).map(move |k| (b'a' + ((n >> (5 * k + 7)) % 26) as u8) as char).chain([' '])
        });
        words.map(|c| c as u8).take(len).collect()
    }

    #[test]
    fn the_default_leaves_what_the_better_of_two_levels_leaves() {
        const LEN: usize = 128 << 10;
        let mut out = vec![0; LEN];
        let mut left_by = |c: &mut zstd::bulk::Compressor<'static>, plain: &[u8]| -> usize {
            plain.chunks(LEN).map(|p| try_on(c, p, &mut out).unwrap_or(p.len())).sum()
        };
        let mut default = Compressor::new(Level::DEFAULT).unwrap();
        let mut pages_were_better = Vec::new();
        for plain in [prose(LEN * 48), table(LEN * 48), prose(LEN * 48)] {
            let three = left_by(&mut zstd::bulk::Compressor::new(3).unwrap(), &plain);
            let two = left_by(&mut context(Level(PAGES_LEVEL)).unwrap(), &plain);
            let mut out = vec![0; LEN];
            let left: usize = plain.chunks(LEN).map(|p| default.compress(p, &mut out).unwrap_or(p.len())).sum();
            // At most a third of the chunks are compressed before the compressor notices that the data has changed.
            let (better, worse) = (two.min(three), two.max(three));
            assert!(worse - better > better / 100, "{two} {three}");
            assert!(left <= better + (worse - better) * 2 / 5, "{left} where 2 leaves {two} and 3 leaves {three}");
            pages_were_better.push(two < three);
        }
        assert_eq!(pages_were_better, [true, false, true]);
    }

    #[test]
    fn text_is_compressed_and_noise_kept_raw() {
        let (mut c, mut d) = (Compressor::new(Level::DEFAULT).unwrap(), Decompressor::new().unwrap());
        let mut noise = vec![0; 100_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let text = b"one fish two fish ".repeat(5000);
        for (plain, wanted) in
            [(noise, Codec::Raw), (text, Codec::Zstd), (vec![1], Codec::Raw), (Vec::new(), Codec::Raw)]
        {
            let mut out = vec![0; plain.len()];
            let (codec, n) = compressed(&mut c, &plain, &mut out);
            assert_eq!(codec, wanted);
            let mut back = vec![0; plain.len()];
            d.decompress(codec, &out[..n], &mut back).unwrap();
            assert_eq!(back, plain);
            if !plain.is_empty() {
                assert!(d.decompress(codec, &out[..n], &mut vec![0; plain.len() + 1]).is_err());
                assert!(d.decompress(Codec::Zstd, &plain[..1], &mut back).is_err());
            }
        }
    }
}
