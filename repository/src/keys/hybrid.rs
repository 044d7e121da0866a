//! Sealing small secrets to a public key: HPKE (RFC 9180) base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256,
//! AES-256-GCM. Used for pack keys and the sealed part of roots, never on the data path itself.

use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable, single_shot_open, single_shot_seal};

type PrivateKey = <X25519HkdfSha256 as Kem>::PrivateKey;

/// Bytes of an encapsulated key.
pub const ENCAPSULATED_LEN: usize = 32;
/// How many bytes sealing adds to the plaintext.
pub const TAG_LEN: usize = 16;

const INFO: &[u8] = b"milkrun v1 hybrid";

/// An X25519 public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HybridPublic([u8; 32]);

/// An X25519 private key.
pub struct HybridSecret {
    secret: PrivateKey,
    public: HybridPublic,
}

/// Sealed bytes with their encapsulated key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The sender's ephemeral public key.
    pub encapsulated: [u8; ENCAPSULATED_LEN],
    /// Ciphertext and tag.
    pub ciphertext: Vec<u8>,
}

/// Why sealing or opening failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HybridError {
    /// Not a usable public key: of small order, for example.
    #[error("not a usable X25519 public key")]
    Key,
    /// Sealed to another key, or altered.
    #[error("can't be opened with this key: sealed to another one, or altered")]
    Open,
}

impl HybridPublic {
    /// From its 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Eight bytes that identify the key in the headers of packs: the first bytes of its BLAKE3.
    pub fn tag(&self) -> [u8; 8] {
        let full = blake3::hash(&self.0);
        let b = full.as_bytes();
        [b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]
    }

    /// Seals `plain`, bound to `aad`.
    ///
    /// # Errors
    /// [`HybridError::Key`] when the public key can't be used.
    pub fn seal(&self, plain: &[u8], aad: &[u8]) -> Result<Sealed, HybridError> {
        let key = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(&self.0).map_err(|_| HybridError::Key)?;
        let (encapsulated, ciphertext) =
            single_shot_seal::<AesGcm256, HkdfSha256, X25519HkdfSha256>(&OpModeS::Base, &key, INFO, plain, aad)
                .map_err(|_| HybridError::Key)?;
        let mut enc = [0; ENCAPSULATED_LEN];
        enc.copy_from_slice(&encapsulated.to_bytes());
        Ok(Sealed { encapsulated: enc, ciphertext })
    }
}

impl HybridSecret {
    /// Derives a key pair from key material.
    pub fn derive(material: &[u8; 32]) -> Self {
        let (secret, public) = X25519HkdfSha256::derive_keypair(material);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(&public.to_bytes());
        Self { secret, public: HybridPublic(bytes) }
    }

    /// The public half.
    pub fn public(&self) -> HybridPublic {
        self.public
    }

    /// Opens bytes that were sealed to the public half with the same `aad`.
    ///
    /// # Errors
    /// [`HybridError::Open`] for anything else.
    pub fn open(&self, encapsulated: &[u8], ciphertext: &[u8], aad: &[u8]) -> Result<Vec<u8>, HybridError> {
        let enc = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(encapsulated).map_err(|_| HybridError::Open)?;
        single_shot_open::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &self.secret,
            &enc,
            INFO,
            ciphertext,
            aad,
        )
        .map_err(|_| HybridError::Open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_with_the_right_key_and_binding() {
        let secret = HybridSecret::derive(&[3; 32]);
        let sealed = secret.public().seal(b"pack key", b"pack 1").unwrap();
        assert_eq!(secret.open(&sealed.encapsulated, &sealed.ciphertext, b"pack 1").unwrap(), b"pack key");
        assert!(secret.open(&sealed.encapsulated, &sealed.ciphertext, b"pack 2").is_err());
        assert!(HybridSecret::derive(&[4; 32]).open(&sealed.encapsulated, &sealed.ciphertext, b"pack 1").is_err());
    }
}
