//! A pack: an object of many sealed chunks with its own directory.
//!
//! ```text
//!   0   64  header    magic "milkrun pack\0\0\0\0", version u16, kind u8, 5 reserved, repository id 16, pack id 16, recipient 8
//!  64    n  slots     sealed chunks back to back: ciphertext + 16 bytes of tag each
//!   …    d  directory sealed as slot 0xffff_ffff: per slot chunk id 32, plain length u32, sealed length u32, codec u8, 3 reserved
//!  -112 112 footer    directory length u32, slots u32, encapsulated key 32, sealed pack key 48, 8 reserved, magic "milkrun pack end"
//! ```
//! Chunks come first because they are written as they arrive. The directory comes after them because it is known only then. The
//! footer is last and of fixed size, so that one ranged GET at the end of an object finds everything.
//!
//! Slot key = BLAKE3-keyed(pack key, slot number); each key seals once, so the nonce is zero. AAD of a slot: repository id, pack
//! id, slot, chunk id, codec, plain length. The pack key is sealed by HPKE to the domain's data or metadata key with AAD:
//! repository id, pack id, kind, slots, directory length. The recipient in the header is [that key's
//! tag](crate::keys::hybrid::HybridPublic::tag). It tells whose pack it is when no index and no placement does.

mod builder;
mod reader;

pub use builder::{PackBuilder, PackTarget, SealedPack};
pub use reader::{Directory, Header, OpenError, PackError, SlotOpener};

use zeroize::Zeroizing;

use crate::chunk::CHUNK_BYTES_MAX;
use crate::chunk::codec::Codec;
use crate::id::{ChunkId, PackId, RepositoryId};
use crate::wire::{Decoder, Encoder, Malformed};

const MAGIC: &[u8; 16] = b"milkrun pack\0\0\0\0";
const END_MAGIC: &[u8; 16] = b"milkrun pack end";
const VERSION: u16 = 2;
/// Bytes before the first slot.
pub const HEADER_LEN: usize = 64;
/// Bytes of the footer.
pub const FOOTER_LEN: usize = 112;
/// How many bytes sealing adds to each slot and to the directory.
pub const TAG_LEN: usize = 16;
/// Bytes of a directory entry.
pub const ENTRY_LEN: usize = 44;
const DIRECTORY_SLOT: u32 = u32::MAX;

/// What a pack holds, which also decides which key opens it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PackKind {
    /// Chunks of volumes and streams.
    Data = 1,
    /// Volume maps and manifests.
    Metadata = 2,
}

impl PackKind {
    /// From its stored number.
    pub fn from_u8(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::Data),
            2 => Some(Self::Metadata),
            _ => None,
        }
    }
}

/// Where a sealed chunk is, and everything but the key that is needed to open it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The pack.
    pub pack: PackId,
    /// The slot in it.
    pub slot: u32,
    /// Where its bytes begin in the pack.
    pub offset: u32,
    /// Its length in the pack, tag included.
    pub sealed_len: u32,
    /// Its length when opened.
    pub plain_len: u32,
    /// How it is compressed.
    pub codec: Codec,
}

impl Place {
    /// Where its bytes end in the pack.
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.sealed_len)
    }

    /// Whether a chunk of a volume can be there: its plaintext is no longer than a chunk may be, and its stored bytes are no
    /// longer than the plaintext. Whoever opens it needs memory for both.
    pub fn is_of_a_chunk(&self) -> bool {
        let sealed_max = u64::from(self.plain_len) + TAG_LEN as u64;
        self.plain_len <= CHUNK_BYTES_MAX && u64::from(self.sealed_len) <= sealed_max
    }

    pub(crate) const ENCODED_LEN: usize = 36;

    pub(crate) fn encode(&self, e: &mut Encoder) {
        e.raw(self.pack.as_bytes()).u32(self.slot).u32(self.offset).u32(self.sealed_len).u32(self.plain_len);
        e.u8(self.codec as u8).raw(&[0; 3]);
    }

    pub(crate) fn decode(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let place = Self {
            pack: PackId::from_bytes(d.array("place: pack")?),
            slot: d.u32("place: slot")?,
            offset: d.u32("place: offset")?,
            sealed_len: d.u32("place: sealed length")?,
            plain_len: d.u32("place: plain length")?,
            codec: Codec::from_u8(d.u8("place: codec")?).ok_or_else(|| d.bad("place: codec"))?,
        };
        d.reserved(3, "place: reserved")?;
        Ok(place)
    }
}

/// A pack's key.
pub type PackKey = Zeroizing<[u8; 32]>;
/// A slot's key.
pub type SlotKey = Zeroizing<[u8; 32]>;

/// Derives a slot's key.
pub fn slot_key(pack_key: &[u8; 32], slot: u32) -> SlotKey {
    Zeroizing::new(*blake3::keyed_hash(pack_key, &slot.to_le_bytes()).as_bytes())
}

/// A pack key sealed to the domain's public key, as stored in footers, index segments and placements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedKey {
    /// The ephemeral public key.
    pub encapsulated: [u8; 32],
    /// Key and tag.
    pub ciphertext: [u8; 48],
    /// Slots in the pack; bound by the AAD.
    pub slots: u32,
    /// Bytes of the sealed directory; bound by the AAD.
    pub directory_len: u32,
}

impl SealedKey {
    pub(crate) const ENCODED_LEN: usize = 88;

    pub(crate) fn encode(&self, e: &mut Encoder) {
        e.u32(self.directory_len).u32(self.slots).raw(&self.encapsulated).raw(&self.ciphertext);
    }

    pub(crate) fn decode(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            directory_len: d.u32("directory length")?,
            slots: d.u32("slot count")?,
            encapsulated: d.array("encapsulated key")?,
            ciphertext: d.array("sealed pack key")?,
        })
    }
}

fn slot_aad(
    repository: &RepositoryId,
    pack: &PackId,
    slot: u32,
    id: &ChunkId,
    codec: Codec,
    plain_len: u32,
) -> [u8; 73] {
    let mut aad = [0; 73];
    aad[..16].copy_from_slice(repository.as_bytes());
    aad[16..32].copy_from_slice(pack.as_bytes());
    aad[32..36].copy_from_slice(&slot.to_le_bytes());
    aad[36..68].copy_from_slice(id.as_bytes());
    aad[68] = codec as u8;
    aad[69..].copy_from_slice(&plain_len.to_le_bytes());
    aad
}

fn key_aad(repository: &RepositoryId, pack: &PackId, kind: PackKind, slots: u32, directory_len: u32) -> Vec<u8> {
    let mut e = Encoder::new();
    e.raw(repository.as_bytes()).raw(pack.as_bytes()).u8(kind as u8).u32(slots).u32(directory_len);
    e.finish()
}

fn header(target: &PackTarget, pack: &PackId) -> Vec<u8> {
    let mut e = Encoder::new();
    e.raw(MAGIC).u16(VERSION).u8(target.kind as u8).raw(&[0; 5]).raw(target.repository.as_bytes()).raw(pack.as_bytes());
    e.raw(&target.recipient.tag());
    e.finish()
}

#[cfg(test)]
mod tests;
