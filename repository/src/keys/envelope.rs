//! The envelope of unlocked objects (index segments, leases, journals, notes on damaged packs). It is sealed with a key that no
//! node holds, and bound to the object's key, so that a forged, altered or moved object is refused.
//!
//! ```text
//!  0  16  magic "milkrun sealed\0\0"
//! 16   2  version = 1
//! 18   2  kind (1 index segment, 2 lease, 3 journal, 4 leader, 5 damaged packs, 6 ended run, 7 waiting order)
//! 20   4  reserved, zero
//! 24  32  salt; the object's own key = BLAKE3-keyed(envelope key, salt), used once, so the nonce is zero
//! 56   n  ciphertext, then 16 bytes of tag     AAD: bytes 0..56, repository id, object key
//! ```

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::clock::entropy;
use crate::id::RepositoryId;
use crate::keys::KeyRing;
use crate::store::Key;
use crate::wire::{Decoder, Encoder, HeaderError, header};

const MAGIC: &[u8; 16] = b"milkrun sealed\0\0";
const VERSION: u16 = 1;
const HEADER_LEN: usize = 56;

/// What an envelope holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An index segment.
    IndexSegment = 1,
    /// The lease of a run.
    Lease = 2,
    /// What a run has done so far.
    Journal = 3,
    /// Who leads.
    Leader = 4,
    /// Packs that were set aside.
    Damaged = 5,
    /// A run that is over.
    Ended = 6,
    /// An order that waits for its turn.
    Waiting = 7,
}

/// Why an envelope was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not an envelope of this kind, or of a later format.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Forged, altered, or moved here from another key.
    #[error("forged, altered, or moved from another place")]
    Forged,
}

/// Seals `body` for the object at `key`.
#[expect(clippy::expect_used, reason = "AES-256-GCM takes any 32-byte key and bodies up to 64 GiB")]
pub fn seal(ring: &KeyRing, repository: &RepositoryId, key: &Key, kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut e = Encoder::new();
    e.raw(MAGIC).u16(VERSION).u16(kind as u16).u32(0).raw(&entropy::<32>());
    let mut out = e.finish();
    let aad = aad(&out, repository, key);
    let cipher = cipher(ring, &out[24..56]);
    out.reserve(body.len() + 16);
    out.extend_from_slice(body);
    let tag = cipher
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key([0; 12]), Aad::from(aad), &mut out[HEADER_LEN..])
        .expect("body fits AES-GCM");
    out.extend_from_slice(tag.as_ref());
    out
}

/// Opens an object found at `key`.
///
/// # Errors
/// [`EnvelopeError`] unless a key holder of this repository sealed it for this very key.
pub fn open(
    ring: &KeyRing,
    repository: &RepositoryId,
    key: &Key,
    kind: Kind,
    object: &[u8],
) -> Result<Vec<u8>, EnvelopeError> {
    let mut d = Decoder::new(object);
    header(&mut d, MAGIC, VERSION)?;
    if d.u16("kind").map_err(HeaderError::from)? != kind as u16 {
        return Err(HeaderError::Foreign.into());
    }
    d.reserved(4, "reserved").map_err(HeaderError::from)?;
    let salt = d.raw(32, "salt").map_err(HeaderError::from)?;
    let aad = aad(&object[..HEADER_LEN], repository, key);
    let mut body = object[HEADER_LEN..].to_vec();
    let len = cipher(ring, salt)
        .open_in_place(Nonce::assume_unique_for_key([0; 12]), Aad::from(aad), &mut body)
        .map_err(|_| EnvelopeError::Forged)?
        .len();
    body.truncate(len);
    Ok(body)
}

fn aad(head: &[u8], repository: &RepositoryId, key: &Key) -> Vec<u8> {
    let mut e = Encoder::new();
    e.raw(head).raw(repository.as_bytes()).text(key.as_str());
    e.finish()
}

#[expect(clippy::expect_used, reason = "32 bytes are an AES-256 key")]
fn cipher(ring: &KeyRing, salt: &[u8]) -> LessSafeKey {
    let key = blake3::keyed_hash(ring.envelope_key(), salt);
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_bytes()).expect("32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Secret;

    #[test]
    fn refuses_flipped_bits_moved_objects_and_strangers() {
        let ring = KeyRing::from_secret(&Secret::from_bytes([1; 32]));
        let repo = RepositoryId::from_bytes([9; 16]);
        let (here, there) = (Key::new("index/a/b"), Key::new("index/a/c"));
        let object = seal(&ring, &repo, &here, Kind::IndexSegment, b"body");
        assert_eq!(open(&ring, &repo, &here, Kind::IndexSegment, &object).unwrap(), b"body");
        assert_eq!(open(&ring, &repo, &there, Kind::IndexSegment, &object), Err(EnvelopeError::Forged));
        assert!(open(&ring, &repo, &here, Kind::Lease, &object).is_err());
        let stranger = KeyRing::from_secret(&Secret::from_bytes([2; 32]));
        assert_eq!(open(&stranger, &repo, &here, Kind::IndexSegment, &object), Err(EnvelopeError::Forged));
        for at in 0..object.len() {
            let mut bad = object.clone();
            bad[at] ^= 1;
            assert!(open(&ring, &repo, &here, Kind::IndexSegment, &bad).is_err(), "byte {at}");
            assert!(open(&ring, &repo, &here, Kind::IndexSegment, &object[..at]).is_err(), "cut at {at}");
        }
    }
}
