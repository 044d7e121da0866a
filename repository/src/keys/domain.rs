//! `domains/<application hash>/<n>`: the keys of one dedup domain, sealed to the secret and signed. Deleting this object erases
//! what the domain stored: nothing else opens the domain's packs and roots.
//!
//! ```text
//!   0  16  magic "milkrun domain\0\0"
//!  16   2  version = 2
//!  18   2  reserved
//!  20   4  number of the domain, u32
//!  24  16  repository id
//!  40  16  application hash
//!  56  32  salt
//!  88  32  data public key     packs of volumes and streams are sealed to it
//! 120  32  metadata public key metadata packs and the bodies of roots are sealed to it
//! 152  80  sealed: chunk-id key 32, seed of the metadata key pair 32, tag 16    ┐ AAD of both: bytes 0..152
//! 232  48  sealed: seed of the data key pair 32, tag 16                         ┘
//! 280  64  Ed25519 signature of everything before
//! ```
//! The two parts are sealed with different keys, so that a process that only backs up needs only the first. Each key is derived
//! from the salt and seals once, so the nonce is zero.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::hybrid::{HybridPublic, HybridSecret};
use super::{BadSignature, DomainKey, KeyRing, Label, SIGNATURE_LEN, VerifyingKey};
use crate::clock::entropy;
use crate::id::{AppHash, DomainId, RepositoryId};
use crate::pack::PackKind;
use crate::store::Key;
use crate::wire::{Decoder, Encoder, HeaderError, Malformed, header};

const MAGIC: &[u8; 16] = b"milkrun domain\0\0";
const VERSION: u16 = 2;
const HEAD_LEN: usize = 152;
const TAG_LEN: usize = 16;

/// The keys of one dedup domain.
pub struct Domain {
    id: DomainId,
    chunks: DomainKey,
    data: HybridSecret,
    metadata: HybridSecret,
    object: Vec<u8>,
}

/// The part of a domain's object that anybody with the public signing key can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicDomain {
    /// Which domain.
    pub id: DomainId,
    /// Data packs are sealed to it.
    pub data: HybridPublic,
    /// Metadata packs and bodies of roots are sealed to it.
    pub metadata: HybridPublic,
}

/// Why the object of a domain was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// Not such an object, or of a later format.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Not signed by this repository.
    #[error(transparent)]
    Signature(#[from] BadSignature),
    /// An authentic object of another domain, or of another repository.
    #[error("holds the keys of another application, moved here")]
    Misplaced,
    /// Signed, but not sealed to this secret.
    #[error("its keys don't open with this repository's secret")]
    Sealed,
}

impl From<Malformed> for DomainError {
    fn from(m: Malformed) -> Self {
        Self::Header(m.into())
    }
}

/// The material that a domain's two key pairs and its chunk-id key are made from.
struct Seeds {
    chunks: Zeroizing<[u8; 32]>,
    metadata: Zeroizing<[u8; 32]>,
    data: Zeroizing<[u8; 32]>,
}

impl Domain {
    /// Fresh keys, and the object that holds them.
    pub fn generate(id: DomainId, repository: &RepositoryId, ring: &KeyRing) -> (Self, Vec<u8>) {
        let seed = || Zeroizing::new(entropy::<32>());
        Self::from_seeds(id, repository, ring, &Seeds { chunks: seed(), metadata: seed(), data: seed() }, entropy())
    }

    /// Fixed keys, for samples of the stored format.
    #[cfg(any(test, feature = "test-util"))]
    pub fn sample(id: DomainId, repository: &RepositoryId, ring: &KeyRing) -> (Self, Vec<u8>) {
        let seed = |n| Zeroizing::new([n; 32]);
        Self::from_seeds(
            id,
            repository,
            ring,
            &Seeds { chunks: seed(21), metadata: seed(22), data: seed(23) },
            [24; 32],
        )
    }

    fn from_seeds(
        id: DomainId,
        repository: &RepositoryId,
        ring: &KeyRing,
        seeds: &Seeds,
        salt: [u8; 32],
    ) -> (Self, Vec<u8>) {
        let mut domain = Self::new(id, seeds);
        let mut e = Encoder::new();
        e.raw(MAGIC).u16(VERSION).u16(0).u32(id.number).raw(repository.as_bytes()).raw(id.app.as_bytes()).raw(&salt);
        e.raw(domain.data.public().as_bytes()).raw(domain.metadata.public().as_bytes());
        let head = e.as_slice().to_vec();
        let first = Zeroizing::new([seeds.chunks.as_slice(), seeds.metadata.as_slice()].concat());
        e.raw(&seal(&ring.domain_metadata, &salt, &head, &first)).raw(&seal(
            &ring.domain_data,
            &salt,
            &head,
            &*seeds.data,
        ));
        let signature = ring.sign(Label::Domain, e.as_slice());
        e.raw(&signature);
        domain.object = e.finish();
        let object = domain.object.clone();
        (domain, object)
    }

    fn new(id: DomainId, seeds: &Seeds) -> Self {
        Self {
            id,
            chunks: DomainKey::from_bytes(*seeds.chunks),
            data: HybridSecret::derive(&seeds.data),
            metadata: HybridSecret::derive(&seeds.metadata),
            object: Vec::new(),
        }
    }

    /// Opens an object found at `key`.
    ///
    /// # Errors
    /// [`DomainError`].
    pub fn open(object: &[u8], key: &Key, repository: &RepositoryId, ring: &KeyRing) -> Result<Self, DomainError> {
        let public = PublicDomain::decode(object, key, repository, &ring.public().signing)?;
        let (head, salt) = (&object[..HEAD_LEN], &object[56..88]);
        let first = open(&ring.domain_metadata, salt, head, &object[152..232]).ok_or(DomainError::Sealed)?;
        let second = open(&ring.domain_data, salt, head, &object[232..280]).ok_or(DomainError::Sealed)?;
        let seed = |bytes: &[u8]| bytes.try_into().map(Zeroizing::new).map_err(|_| DomainError::Sealed);
        let seeds = Seeds { chunks: seed(&first[..32])?, metadata: seed(&first[32..])?, data: seed(&second)? };
        let domain = Self { object: object.to_vec(), ..Self::new(public.id, &seeds) };
        let fits = domain.data.public() == public.data && domain.metadata.public() == public.metadata;
        if fits { Ok(domain) } else { Err(DomainError::Sealed) }
    }

    /// The stored object of this domain. It is sealed, so it can be written again as it is.
    pub fn object(&self) -> &[u8] {
        &self.object
    }

    /// Whether both hold the same keys.
    pub fn is_same(&self, other: &Self) -> bool {
        self.data.public() == other.data.public() && self.metadata.public() == other.metadata.public()
    }

    /// Which domain it is.
    pub fn id(&self) -> DomainId {
        self.id
    }

    /// The key that names chunks. An agent gets it for the volumes that it reads.
    pub fn chunks(&self) -> &DomainKey {
        &self.chunks
    }

    /// The key that opens packs of a kind; the one for metadata also opens the bodies of roots.
    pub fn secret(&self, kind: PackKind) -> &HybridSecret {
        match kind {
            PackKind::Data => &self.data,
            PackKind::Metadata => &self.metadata,
        }
    }

    /// The public key that packs of a kind are sealed to.
    pub fn recipient(&self, kind: PackKind) -> HybridPublic {
        self.secret(kind).public()
    }
}

impl PublicDomain {
    /// Parses an object and checks only its form.
    ///
    /// # Errors
    /// [`DomainError::Header`].
    pub fn parse(object: &[u8]) -> Result<(Self, RepositoryId), DomainError> {
        let mut d = Decoder::new(object);
        header(&mut d, MAGIC, VERSION)?;
        d.reserved(2, "reserved")?;
        let number = d.u32("number")?;
        let repository = RepositoryId::from_bytes(d.array("repository")?);
        let id = DomainId { app: AppHash::from_bytes(d.array("application")?), number };
        d.raw(32, "salt")?;
        let data = HybridPublic::from_bytes(d.array("data key")?);
        let metadata = HybridPublic::from_bytes(d.array("metadata key")?);
        d.raw(80 + 48, "sealed keys")?;
        d.raw(SIGNATURE_LEN, "signature")?;
        d.finish("end of domain")?;
        Ok((Self { id, data, metadata }, repository))
    }

    /// Parses an object found at `key` and checks its signature.
    ///
    /// # Errors
    /// [`DomainError`].
    pub fn decode(
        object: &[u8],
        key: &Key,
        repository: &RepositoryId,
        signer: &VerifyingKey,
    ) -> Result<Self, DomainError> {
        let (public, of) = Self::parse(object)?;
        let signed = object.len() - SIGNATURE_LEN;
        signer.verify(Label::Domain, &object[..signed], &object[signed..])?;
        if of != *repository || Key::domain(&public.id) != *key {
            return Err(DomainError::Misplaced);
        }
        Ok(public)
    }
}

#[expect(clippy::expect_used, reason = "a few bytes fit AES-GCM")]
fn seal(wrapping: &[u8; 32], salt: &[u8], head: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut out = plain.to_vec();
    let tag = cipher(wrapping, salt)
        .seal_in_place_separate_tag(nonce(), Aad::from(head), &mut out)
        .expect("a few bytes fit AES-GCM");
    out.extend_from_slice(tag.as_ref());
    out
}

fn open(wrapping: &[u8; 32], salt: &[u8], head: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut out = Zeroizing::new(sealed.to_vec());
    cipher(wrapping, salt).open_in_place(nonce(), Aad::from(head), &mut out).ok()?;
    out.truncate(sealed.len() - TAG_LEN);
    Some(out)
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[expect(clippy::expect_used, reason = "32 bytes are an AES-256 key")]
fn cipher(wrapping: &[u8; 32], salt: &[u8]) -> LessSafeKey {
    let key = blake3::keyed_hash(wrapping, salt);
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_bytes()).expect("32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Secret;

    fn id(number: u32) -> DomainId {
        DomainId { app: AppHash::from_bytes([5; 16]), number }
    }

    #[test]
    fn opens_at_its_own_place_with_its_own_secret_alone() {
        let (ring, other) = (KeyRing::from_secret(&Secret::from_bytes([1; 32])), Secret::from_bytes([2; 32]));
        let repository = RepositoryId::from_bytes([9; 16]);
        let key = Key::domain(&id(3));
        let (made, object) = Domain::generate(id(3), &repository, &ring);
        let opened = Domain::open(&object, &key, &repository, &ring).unwrap();
        for kind in [PackKind::Data, PackKind::Metadata] {
            assert_eq!(opened.recipient(kind), made.recipient(kind));
        }
        assert_eq!(opened.chunks().as_bytes(), made.chunks().as_bytes());
        let at = |key: &Key, repository: &RepositoryId| Domain::open(&object, key, repository, &ring).err();
        assert_eq!(at(&Key::domain(&id(4)), &repository), Some(DomainError::Misplaced));
        assert_eq!(at(&key, &RepositoryId::from_bytes([8; 16])), Some(DomainError::Misplaced));
        let stranger = KeyRing::from_secret(&other);
        assert!(matches!(Domain::open(&object, &key, &repository, &stranger), Err(DomainError::Signature(_))));
        for byte in 0..object.len() {
            let mut bad = object.clone();
            bad[byte] ^= 1;
            assert!(Domain::open(&bad, &key, &repository, &ring).is_err(), "byte {byte}");
            assert!(Domain::open(&object[..byte], &key, &repository, &ring).is_err(), "cut at {byte}");
        }
    }

    #[test]
    fn each_domain_has_keys_of_its_own() {
        let ring = KeyRing::from_secret(&Secret::from_bytes([1; 32]));
        let repository = RepositoryId::from_bytes([9; 16]);
        let (a, b) = (Domain::generate(id(0), &repository, &ring).0, Domain::generate(id(0), &repository, &ring).0);
        assert_ne!(a.chunks().identify(b"same"), b.chunks().identify(b"same"));
        assert_ne!(a.chunks().cut_seed(), b.chunks().cut_seed());
        assert_ne!(a.recipient(PackKind::Data), b.recipient(PackKind::Data));
        assert_ne!(a.recipient(PackKind::Data), a.recipient(PackKind::Metadata));
    }
}
