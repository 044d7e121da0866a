//! Compression of one chunk: zstd where it pays, raw where it doesn't. The choice is recorded per chunk.

use std::ops::RangeInclusive;

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

/// A zstd level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(i32);

/// A level out of [`Level::RANGE`].
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the compression level must lie between -7 and 19")]
pub struct BadLevel;

impl Level {
    /// What is accepted.
    pub const RANGE: RangeInclusive<i32> = -7..=19;
    /// 3: stored bytes as low as the best peer's, at twice its speed (docs/performance.md).
    pub const DEFAULT: Self = Self(3);

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

/// Compresses chunk after chunk with one set of tables.
pub struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
}

/// Decompresses chunk after chunk.
pub struct Decompressor {
    zstd: zstd::bulk::Decompressor<'static>,
}

/// A chunk that does not decompress to what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecompressError {
    /// No zstd frame.
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
    /// For one level. The frame carries neither checksum nor content size: BLAKE3 and the directory do.
    ///
    /// # Errors
    /// When zstd can't get its memory.
    pub fn new(level: Level) -> std::io::Result<Self> {
        let mut zstd = zstd::bulk::Compressor::new(level.get())?;
        zstd.include_checksum(false)?;
        zstd.include_contentsize(false)?;
        Ok(Self { zstd })
    }

    /// Writes `plain`, compressed or raw, to the start of `out`. Returns codec and length. It pays when it saves at
    /// least 1/32.
    ///
    /// # Panics
    /// If `out` is shorter than `plain`.
    pub fn compress(&mut self, plain: &[u8], out: &mut [u8]) -> (Codec, usize) {
        let pays = plain.len() - plain.len() / 32;
        // Room for no more than what pays: zstd then stops by itself once it is exceeded.
        match self.zstd.compress_to_buffer(plain, &mut out[..pays]) {
            Ok(n) if n < plain.len() => (Codec::Zstd, n),
            _ => {
                out[..plain.len()].copy_from_slice(plain);
                (Codec::Raw, plain.len())
            }
        }
    }
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
            let (codec, n) = c.compress(&plain, &mut out);
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
