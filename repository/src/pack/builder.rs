//! Filling a pack: each chunk is compressed and sealed straight into the buffer that will be uploaded. No I/O.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::{
    DIRECTORY_SLOT, END_MAGIC, ENTRY_LEN, FOOTER_LEN, HEADER_LEN, PackKey, PackKind, Place, SealedKey, TAG_LEN, header,
    key_aad, slot_aad, slot_key,
};
use crate::chunk::codec::{Codec, Compressor};
use crate::clock::entropy;
use crate::id::{ChunkId, PackId, RepositoryId};
use crate::keys::hybrid::{HybridError, HybridPublic};
use crate::wire::Encoder;

/// The key that packs are sealed to.
#[derive(Clone, Copy, Debug)]
pub struct PackTarget {
    /// The repository, bound into every slot.
    pub repository: RepositoryId,
    /// What the packs hold.
    pub kind: PackKind,
    /// The public key for that kind.
    pub recipient: HybridPublic,
}

/// Packs are digested by whole multiples of this: BLAKE3 hashes subtrees side by side only if they are whole.
const DIGESTED_AT_ONCE: usize = 128 << 10;

/// A pack that is being filled.
pub struct PackBuilder {
    target: PackTarget,
    id: PackId,
    key: PackKey,
    buffer: Vec<u8>,
    used: usize,
    directory: Vec<u8>,
    slots: u32,
    /// Running digest and checksum of `buffer[..digested]`, updated while the bytes are in cache.
    digest: blake3::Hasher,
    crc32: crc32fast::Hasher,
    digested: usize,
}

/// A finished pack, ready to upload.
#[derive(Debug)]
pub struct SealedPack {
    /// Its id.
    pub id: PackId,
    /// What it holds.
    pub kind: PackKind,
    /// The object's bytes.
    pub bytes: Vec<u8>,
    /// BLAKE3 of the bytes.
    pub digest: [u8; 32],
    /// CRC-32 of the bytes, for the store.
    pub crc32: u32,
    /// The pack key, for index segments and placements.
    pub key: SealedKey,
}

impl PackBuilder {
    /// Starts a pack in `buffer`, whose length is the most that the pack may hold; its content is overwritten. Buffers are
    /// reused, so that the system has to provide their memory only once.
    pub fn new(target: PackTarget, mut buffer: Vec<u8>) -> Self {
        let id = PackId::random();
        let head = header(&target, &id);
        if buffer.len() < HEADER_LEN {
            buffer.resize(HEADER_LEN, 0);
        }
        buffer[..HEADER_LEN].copy_from_slice(&head);
        Self {
            target,
            id,
            key: Zeroizing::new(entropy()),
            buffer,
            used: HEADER_LEN,
            directory: Vec::new(),
            slots: 0,
            digest: blake3::Hasher::new(),
            crc32: crc32fast::Hasher::new(),
            digested: 0,
        }
    }

    /// Its id.
    pub fn id(&self) -> PackId {
        self.id
    }

    /// Whether it holds no chunk yet.
    pub fn is_empty(&self) -> bool {
        self.slots == 0
    }

    /// Whether a chunk of `plain_len` bytes still fits, with directory and footer.
    pub fn fits(&self, plain_len: usize) -> bool {
        let directory = self.directory.len() + ENTRY_LEN + TAG_LEN;
        self.used + plain_len + TAG_LEN + directory + FOOTER_LEN <= self.buffer.len()
            && self.used + plain_len + TAG_LEN <= u32::MAX as usize
    }

    /// Compresses and seals one chunk into the pack.
    ///
    /// # Panics
    /// If it does not [fit](PackBuilder::fits).
    #[expect(clippy::expect_used, reason = "lengths were checked by `fits`, and the key has its length")]
    pub fn append(&mut self, id: &ChunkId, plain: &[u8], compressor: &mut Compressor) -> Place {
        assert!(self.fits(plain.len()), "the chunk does not fit");
        let start = self.used;
        let compressed = compressor.compress(plain, &mut self.buffer[start..start + plain.len()]);
        let codec = if compressed.is_some() { Codec::Zstd } else { Codec::Raw };
        let plain_len = u32::try_from(plain.len()).expect("fits");
        let aad = slot_aad(&self.target.repository, &self.id, self.slots, id, codec, plain_len);
        let end = match compressed {
            Some(len) => seal(&self.key, self.slots, &aad, &mut self.buffer, start, len),
            None => seal_from(&self.key, self.slots, &aad, plain, &mut self.buffer[start..]) + start,
        };
        self.close_slot(id, codec, plain_len, end)
    }

    /// Seals one chunk into the pack. The chunk was compressed before, or is to be stored as it is.
    ///
    /// # Panics
    /// If it does not [fit](PackBuilder::fits).
    #[expect(clippy::expect_used, reason = "lengths were checked by `fits`")]
    pub fn append_compressed(&mut self, id: &ChunkId, plain_len: usize, codec: Codec, stored: &[u8]) -> Place {
        assert!(self.fits(plain_len) && stored.len() <= plain_len, "the chunk does not fit");
        let plain_len = u32::try_from(plain_len).expect("fits");
        let aad = slot_aad(&self.target.repository, &self.id, self.slots, id, codec, plain_len);
        let start = self.used;
        let end = seal_from(&self.key, self.slots, &aad, stored, &mut self.buffer[start..]) + start;
        self.close_slot(id, codec, plain_len, end)
    }

    /// Takes the bytes from the end of the used part up to `end` as a chunk.
    #[expect(clippy::expect_used, reason = "lengths were checked by `fits`")]
    fn close_slot(&mut self, id: &ChunkId, codec: Codec, plain_len: u32, end: usize) -> Place {
        let start = self.used;
        let place = Place {
            pack: self.id,
            slot: self.slots,
            offset: u32::try_from(start).expect("fits"),
            sealed_len: u32::try_from(end - start).expect("fits"),
            plain_len,
            codec,
        };
        self.directory.extend_from_slice(id.as_bytes());
        self.directory.extend_from_slice(&plain_len.to_le_bytes());
        self.directory.extend_from_slice(&place.sealed_len.to_le_bytes());
        self.directory.extend_from_slice(&[codec as u8, 0, 0, 0]);
        self.slots += 1;
        self.used = end;
        // The bytes are digested while they are in cache.
        let whole = self.used - self.used % DIGESTED_AT_ONCE;
        if whole > self.digested {
            self.digest_up_to(whole);
        }
        place
    }

    fn digest_up_to(&mut self, end: usize) {
        let fresh = &self.buffer[self.digested..end];
        self.digest.update(fresh);
        self.crc32.update(fresh);
        self.digested = end;
    }

    /// Seals directory and key and closes the pack.
    ///
    /// # Errors
    /// When the repository's public key can't be used.
    #[expect(clippy::expect_used, reason = "a directory is far smaller than 4 GiB; HPKE output has a fixed length")]
    pub fn finish(mut self) -> Result<SealedPack, HybridError> {
        let start = self.used;
        let plain_len = self.directory.len();
        let need = start + plain_len + TAG_LEN + FOOTER_LEN;
        if self.buffer.len() < need {
            self.buffer.resize(need, 0);
        }
        self.buffer[start..start + plain_len].copy_from_slice(&self.directory);
        let aad = [self.target.repository.as_bytes().as_slice(), self.id.as_bytes()].concat();
        let end = seal(&self.key, DIRECTORY_SLOT, &aad, &mut self.buffer, start, plain_len);
        let directory_len = u32::try_from(end - start).expect("small");
        let aad = key_aad(&self.target.repository, &self.id, self.target.kind, self.slots, directory_len);
        let sealed = self.target.recipient.seal(self.key.as_slice(), &aad)?;
        let key = SealedKey {
            encapsulated: sealed.encapsulated,
            ciphertext: sealed.ciphertext.try_into().expect("32 bytes and a tag"),
            slots: self.slots,
            directory_len,
        };
        let mut footer = Encoder::new();
        key.encode(&mut footer);
        footer.u64(0).raw(END_MAGIC);
        self.used = end + FOOTER_LEN;
        self.buffer[end..self.used].copy_from_slice(footer.as_slice());
        self.digest_up_to(self.used);
        self.buffer.truncate(self.used);
        Ok(SealedPack {
            id: self.id,
            kind: self.target.kind,
            bytes: self.buffer,
            digest: *self.digest.finalize().as_bytes(),
            crc32: self.crc32.finalize(),
            key,
        })
    }
}

/// Seals `buffer[start..start + len]` in place and writes the tag behind it. Returns where the tag ends.
#[expect(clippy::expect_used, reason = "32 bytes are an AES-256 key, and a slot is shorter than 64 GiB")]
fn seal(pack_key: &[u8; 32], slot: u32, aad: &[u8], buffer: &mut [u8], start: usize, len: usize) -> usize {
    let tag = key_of(pack_key, slot)
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key([0; 12]),
            Aad::from(aad),
            &mut buffer[start..start + len],
        )
        .expect("short enough");
    buffer[start + len..start + len + TAG_LEN].copy_from_slice(tag.as_ref());
    start + len + TAG_LEN
}

/// Seals `plain` into the start of `out`, and writes the tag behind it. This is one pass, while a copy and [`seal`] would be two.
/// Returns where the tag ends.
#[expect(clippy::expect_used, reason = "a slot is shorter than 64 GiB, and its room was checked")]
fn seal_from(pack_key: &[u8; 32], slot: u32, aad: &[u8], plain: &[u8], out: &mut [u8]) -> usize {
    let (sealed, rest) = out.split_at_mut(plain.len());
    key_of(pack_key, slot)
        .seal_out_of_place_scatter(
            Nonce::assume_unique_for_key([0; 12]),
            Aad::from(aad),
            plain,
            sealed,
            &[],
            &mut rest[..TAG_LEN],
        )
        .expect("short enough");
    plain.len() + TAG_LEN
}

#[expect(clippy::expect_used, reason = "32 bytes are an AES-256 key")]
fn key_of(pack_key: &[u8; 32], slot: u32) -> LessSafeKey {
    let key = slot_key(pack_key, slot);
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_slice()).expect("32 bytes"))
}
