//! Reading packs: footer, directory, and single slots. No I/O.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::{
    DIRECTORY_SLOT, END_MAGIC, ENTRY_LEN, FOOTER_LEN, HEADER_LEN, MAGIC, PackKey, PackKind, Place, SealedKey, SlotKey,
    TAG_LEN, VERSION, key_aad, slot_aad, slot_key,
};
use crate::chunk::codec::{Codec, DecompressError, Decompressor};
use crate::id::{ChunkId, PackId, RepositoryId};
use crate::keys::hybrid::{HybridError, HybridSecret};
use crate::wire::{self, Decoder, HeaderError, Malformed};

/// Why a pack was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// Not a pack, or of a later format.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A pack of another repository, or under another pack's name.
    #[error("belongs elsewhere: another repository or another pack's key")]
    Misplaced,
    /// The pack key does not open.
    #[error("pack key: {0}")]
    Key(#[from] HybridError),
    /// The directory does not open, or contradicts the footer.
    #[error("the directory is damaged")]
    Directory,
}

impl From<Malformed> for PackError {
    fn from(m: Malformed) -> Self {
        Self::Header(m.into())
    }
}

/// Why a slot was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Altered, or not what the map says it is.
    #[error("does not open: altered, or another chunk than the map names")]
    Sealed,
    /// It opens to nonsense.
    #[error(transparent)]
    Decompress(#[from] DecompressError),
    /// It opens to other bytes than its id says.
    #[error("opens to other bytes than its id says")]
    Identity,
}

/// What a pack's header says, besides its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it holds.
    pub kind: PackKind,
    /// The [tag](crate::keys::hybrid::HybridPublic::tag) of the key that it is sealed to.
    pub recipient: [u8; 8],
}

/// A pack's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Each slot's chunk and place, in order.
    pub slots: Vec<(ChunkId, Place)>,
}

impl Directory {
    /// Checks a pack's header.
    ///
    /// # Errors
    /// [`PackError`] unless it is the header of pack `pack` of `repository`.
    pub fn check_header(head: &[u8], repository: &RepositoryId, pack: &PackId) -> Result<Header, PackError> {
        let mut d = Decoder::new(head);
        wire::header(&mut d, MAGIC, VERSION)?;
        let kind = PackKind::from_u8(d.u8("kind")?).ok_or_else(|| d.bad("kind"))?;
        d.reserved(5, "reserved")?;
        let found_repository: [u8; 16] = d.array("repository")?;
        let found_pack: [u8; 16] = d.array("pack")?;
        let recipient: [u8; 8] = d.array("recipient")?;
        if &found_repository != repository.as_bytes() || &found_pack != pack.as_bytes() {
            return Err(PackError::Misplaced);
        }
        Ok(Header { kind, recipient })
    }

    /// Parses the footer: the last [`FOOTER_LEN`] bytes of a pack.
    ///
    /// # Errors
    /// [`PackError`] if these bytes are not a footer.
    pub fn footer(tail: &[u8]) -> Result<SealedKey, PackError> {
        let at = tail.len().checked_sub(FOOTER_LEN).ok_or(HeaderError::Foreign)?;
        let mut d = Decoder::new(&tail[at..]);
        let key = SealedKey::decode(&mut d)?;
        d.reserved(8, "reserved")?;
        if &d.array::<16>("magic")? != END_MAGIC {
            return Err(HeaderError::Foreign.into());
        }
        Ok(key)
    }

    /// Opens the directory from the end of a pack of `length` bytes. `tail` must hold at least directory and footer.
    ///
    /// # Errors
    /// [`PackError`].
    pub fn open(
        tail: &[u8],
        length: u64,
        repository: &RepositoryId,
        pack: &PackId,
        pack_key: &PackKey,
        key: &SealedKey,
    ) -> Result<Self, PackError> {
        let sealed = key.directory_len as usize;
        let count = key.slots as usize;
        if count.checked_mul(ENTRY_LEN).and_then(|n| n.checked_add(TAG_LEN)) != Some(sealed) {
            return Err(PackError::Directory);
        }
        let start = tail.len().checked_sub(FOOTER_LEN + sealed).ok_or(PackError::Directory)?;
        let mut body = tail[start..start + sealed].to_vec();
        let aad = [repository.as_bytes().as_slice(), pack.as_bytes()].concat();
        open_in_place(&slot_key(pack_key, DIRECTORY_SLOT), &aad, &mut body).ok_or(PackError::Directory)?;
        let mut d = Decoder::new(&body[..sealed - TAG_LEN]);
        let mut slots = Vec::with_capacity(count);
        let mut offset = HEADER_LEN as u64;
        for slot in 0..key.slots {
            let id = ChunkId::from_bytes(d.array("chunk id")?);
            let plain_len = d.u32("plain length")?;
            let sealed_len = d.u32("sealed length")?;
            let codec = Codec::from_u8(d.u8("codec")?).ok_or(PackError::Directory)?;
            d.reserved(3, "reserved")?;
            let at = u32::try_from(offset).map_err(|_| PackError::Directory)?;
            slots.push((id, Place { pack: *pack, slot, offset: at, sealed_len, plain_len, codec }));
            offset += u64::from(sealed_len);
        }
        // There is nothing between the last slot and the directory: every byte of a pack is accounted for.
        if offset + sealed as u64 + FOOTER_LEN as u64 != length {
            return Err(PackError::Directory);
        }
        Ok(Self { slots })
    }

    /// How many bytes at the end of a pack hold directory and footer.
    pub fn tail_len(key: &SealedKey) -> u64 {
        u64::from(key.directory_len) + FOOTER_LEN as u64
    }
}

impl SealedKey {
    /// Opens the pack key.
    ///
    /// # Errors
    /// [`HybridError::Open`] with another key, or for another pack.
    pub fn open(
        &self,
        secret: &HybridSecret,
        repository: &RepositoryId,
        pack: &PackId,
        kind: PackKind,
    ) -> Result<PackKey, HybridError> {
        let aad = key_aad(repository, pack, kind, self.slots, self.directory_len);
        let plain = Zeroizing::new(secret.open(&self.encapsulated, &self.ciphertext, &aad)?);
        let bytes: [u8; 32] = plain.as_slice().try_into().map_err(|_| HybridError::Open)?;
        Ok(Zeroizing::new(bytes))
    }
}

/// Opens slots one after the other and reuses its buffers.
pub struct SlotOpener {
    repository: RepositoryId,
    decompressor: Decompressor,
}

impl SlotOpener {
    /// An opener for packs of one repository.
    ///
    /// # Errors
    /// When zstd can't get its memory.
    pub fn new(repository: RepositoryId) -> std::io::Result<Self> {
        Ok(Self { repository, decompressor: Decompressor::new()? })
    }

    /// Opens `sealed` (which is overwritten) into `out`, resized to the plaintext. It does not check that the plaintext has the
    /// id. Callers do that with `identify`: each has the domain's key, or checks later and says so.
    ///
    /// # Errors
    /// [`OpenError`]; `out` then holds nothing to rely on.
    pub fn open(
        &mut self,
        id: &ChunkId,
        place: &Place,
        key: &SlotKey,
        sealed: &mut [u8],
        out: &mut [u8],
        identify: impl FnOnce(&[u8]) -> ChunkId,
    ) -> Result<(), OpenError> {
        let aad = slot_aad(&self.repository, &place.pack, place.slot, id, place.codec, place.plain_len);
        if sealed.len() != place.sealed_len as usize || out.len() != place.plain_len as usize {
            return Err(OpenError::Sealed);
        }
        let len = open_in_place(key, &aad, sealed).ok_or(OpenError::Sealed)?;
        self.decompressor.decompress(place.codec, &sealed[..len], out)?;
        if identify(out) == *id { Ok(()) } else { Err(OpenError::Identity) }
    }

    /// Like [`Self::open`], for a chunk that is stored as it is ([`Codec::Raw`]): its plaintext is then at the start of `bytes`,
    /// which saves a copy.
    ///
    /// # Errors
    /// [`OpenError`]; `bytes` then hold nothing to rely on.
    pub fn open_raw(
        &self,
        id: &ChunkId,
        place: &Place,
        key: &SlotKey,
        bytes: &mut [u8],
        identify: impl FnOnce(&[u8]) -> ChunkId,
    ) -> Result<(), OpenError> {
        let plain_len = place.plain_len as usize;
        if place.codec != Codec::Raw || bytes.len() != place.sealed_len as usize {
            return Err(OpenError::Sealed);
        }
        let aad = slot_aad(&self.repository, &place.pack, place.slot, id, place.codec, place.plain_len);
        let found = open_in_place(key, &aad, bytes).ok_or(OpenError::Sealed)?;
        if found != plain_len {
            return Err(DecompressError::Length { found, wanted: plain_len }.into());
        }
        if identify(&bytes[..plain_len]) == *id { Ok(()) } else { Err(OpenError::Identity) }
    }
}

#[expect(clippy::expect_used, reason = "32 bytes are an AES-256 key")]
fn open_in_place(key: &SlotKey, aad: &[u8], sealed: &mut [u8]) -> Option<usize> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_slice()).expect("32 bytes"));
    let plain = key.open_in_place(Nonce::assume_unique_for_key([0; 12]), Aad::from(aad), sealed).ok()?;
    Some(plain.len())
}
