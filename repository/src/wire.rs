//! The byte codec of every binary object: little-endian, fixed widths, and no padding that the format does not describe.
//!
//! Encoding is total; decoding checks every bound, and [`Decoder::finish`] refuses trailing bytes, so that
//! `encode(decode(x)) == x` for all accepted `x` (see the fuzz targets).

/// Why bytes could not be decoded: what was expected, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what} at byte {at}")]
pub struct Malformed {
    /// The field that could not be read.
    pub what: &'static str,
    /// Offset in the decoded slice.
    pub at: usize,
}

/// Appends fields to a buffer.
#[derive(Default)]
pub struct Encoder {
    buf: Vec<u8>,
}

impl Encoder {
    /// An empty encoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty encoder with room for this many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { buf: Vec::with_capacity(bytes) }
    }

    /// One byte.
    pub fn u8(&mut self, v: u8) -> &mut Self {
        self.buf.push(v);
        self
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self, v: u16) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self, v: u32) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self, v: u64) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    /// Eight bytes, two's complement, little-endian.
    pub fn i64(&mut self, v: i64) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    /// A field of fixed width, unchanged.
    pub fn raw(&mut self, v: &[u8]) -> &mut Self {
        self.buf.extend_from_slice(v);
        self
    }

    /// A length (u32), then the bytes. Longer input is cut at 4 GiB - 1, which no field reaches.
    pub fn bytes(&mut self, v: &[u8]) -> &mut Self {
        let len = u32::try_from(v.len()).unwrap_or(u32::MAX);
        self.u32(len).raw(&v[..len as usize])
    }

    /// UTF-8 text, written like [`Encoder::bytes`].
    pub fn text(&mut self, v: &str) -> &mut Self {
        self.bytes(v.as_bytes())
    }

    /// A count of elements (u32).
    pub fn count(&mut self, n: usize) -> &mut Self {
        self.u32(u32::try_from(n).unwrap_or(u32::MAX))
    }

    /// The bytes that were written so far.
    pub fn as_slice(&self) -> &[u8] {
        &self.buf
    }

    /// The finished bytes.
    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buf)
    }
}

/// Reads fields from a slice.
pub struct Decoder<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    /// Starts at the first byte.
    pub fn new(all: &'a [u8]) -> Self {
        Self { all, at: 0 }
    }

    /// How many bytes were read.
    pub fn position(&self) -> usize {
        self.at
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.all.len() - self.at
    }

    /// An error at the present position.
    pub fn bad(&self, what: &'static str) -> Malformed {
        Malformed { what, at: self.at }
    }

    /// `n` bytes.
    pub fn raw(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(n).filter(|&e| e <= self.all.len()).ok_or(Malformed { what, at: self.at })?;
        let out = &self.all[self.at..end];
        self.at = end;
        Ok(out)
    }

    /// `N` bytes as an array.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let mut out = [0; N];
        out.copy_from_slice(self.raw(N, what)?);
        Ok(out)
    }

    /// One byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        Ok(self.array::<1>(what)?[0])
    }

    /// Two bytes.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    /// Four bytes.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    /// Eight bytes.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// Eight bytes, signed.
    pub fn i64(&mut self, what: &'static str) -> Result<i64, Malformed> {
        Ok(i64::from_le_bytes(self.array(what)?))
    }

    /// A length-prefixed field.
    pub fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], Malformed> {
        let len = self.u32(what)? as usize;
        self.raw(len, what)
    }

    /// A length-prefixed UTF-8 field.
    pub fn text(&mut self, what: &'static str) -> Result<String, Malformed> {
        let at = self.at;
        let raw = self.bytes(what)?;
        String::from_utf8(raw.to_vec()).map_err(|_| Malformed { what, at })
    }

    /// A count of elements of at least `least` bytes each. A count that the rest can't hold is refused before anything is
    /// allocated.
    pub fn count(&mut self, least: usize, what: &'static str) -> Result<usize, Malformed> {
        let at = self.at;
        let n = self.u32(what)? as usize;
        if n.checked_mul(least).is_none_or(|need| need > self.remaining()) {
            return Err(Malformed { what, at });
        }
        Ok(n)
    }

    /// Bytes that must be zero.
    pub fn reserved(&mut self, n: usize, what: &'static str) -> Result<(), Malformed> {
        let at = self.at;
        if self.raw(n, what)?.iter().any(|&b| b != 0) {
            return Err(Malformed { what, at });
        }
        Ok(())
    }

    /// Checks that nothing is left.
    pub fn finish(self, what: &'static str) -> Result<(), Malformed> {
        if self.remaining() == 0 { Ok(()) } else { Err(Malformed { what, at: self.at }) }
    }
}

/// Checks magic and version at the start of an object.
///
/// # Errors
/// [`HeaderError::Foreign`] when the magic differs, [`HeaderError::Newer`] when the version is above `version`.
pub fn header(d: &mut Decoder<'_>, magic: &[u8; 16], version: u16) -> Result<(), HeaderError> {
    match headers(d, magic, version)? {
        v if v == version => Ok(()),
        _ => Err(HeaderError::Malformed(d.bad("version"))),
    }
}

/// Like [`header`], for an object that has several versions, `newest` at most. Returns the version.
///
/// # Errors
/// As [`header`].
pub fn headers(d: &mut Decoder<'_>, magic: &[u8; 16], newest: u16) -> Result<u16, HeaderError> {
    let found: [u8; 16] = d.array("magic")?;
    if &found != magic {
        return Err(HeaderError::Foreign);
    }
    match d.u16("version")? {
        0 => Err(HeaderError::Malformed(d.bad("version"))),
        v if v > newest => Err(HeaderError::Newer { found: v, known: newest }),
        v => Ok(v),
    }
}

/// Why the start of an object was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not one of ours.
    #[error("not a milkrun object of the expected kind")]
    Foreign,
    /// Written by a later release.
    #[error("written in format version {found}, this release knows up to {known}")]
    Newer {
        /// Version in the object.
        found: u16,
        /// Latest version known here.
        known: u16,
    },
    /// Cut short or nonsense.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}
