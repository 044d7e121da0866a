//! `keys/<id>`: the secret wrapped for one password. Canonical JSON, created once and never rewritten, so that keys can be added
//! and retired. The wrap is bound to the bytes of `repository.json`: with a swapped configuration it doesn't open. The file is
//! signed, so that a planted key file is recognised without the cost of a password's hash.

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::clock::entropy;
use crate::id::KeyId;
use crate::keys::{KeyRing, Label, Secret, VerifyingKey};

const VERSION: u16 = 2;
/// A higher cost than this is refused. Whoever may write can plant a key file, and finding out that it does not open must not
/// cost much. The bound is four times the memory of [`Cost::RECOMMENDED`], and that cost's passes over this memory.
const MEMORY_KIB_MAX: u32 = 4 * Cost::RECOMMENDED.memory_kib;
const PASSES_MAX: u32 = 12;
const LANES_MAX: u32 = 16;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    milkrun: String,
    version: u16,
    id: String,
    kdf: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: String,
    wrapped: String,
    signature: String,
}

/// What Argon2id costs: memory in KiB, passes, lanes.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Cost {
    /// The second recommended option of RFC 9106 (64 MiB, 3 passes, 4 lanes).
    pub const RECOMMENDED: Self = Self { memory_kib: 64 * 1024, passes: 3, lanes: 4 };
    /// For tests only: the least that Argon2 allows.
    pub const TEST: Self = Self { memory_kib: 8, passes: 1, lanes: 1 };
}

/// Why a key file did not give the secret.
#[derive(Debug, thiserror::Error)]
pub enum UnwrapError {
    /// Not a key file.
    #[error("the key file is damaged or not one of milkrun's")]
    Malformed,
    /// Written by a later release.
    #[error("the key file has format version {0}, which this release does not know")]
    Newer(u16),
    /// Not signed by this repository.
    #[error("the key file is not signed by this repository's key")]
    Stranger,
    /// It parses but does not open.
    #[error("wrong password (or repository.json was replaced)")]
    WrongPassword,
}

/// Wraps `secret` under `password`, bound to the bytes of the configuration. Returns the id and the object.
#[expect(clippy::expect_used, reason = "parameters are ours")]
pub fn wrap(secret: &Secret, password: &[u8], config: &[u8], cost: Cost) -> (KeyId, Vec<u8>) {
    let id = KeyId::random();
    let salt = entropy::<32>();
    let key = stretch(password, &salt, cost).expect("cost within Argon2's limits");
    let mut wrapped = secret.as_bytes().to_vec();
    let tag = cipher(&key)
        .seal_in_place_separate_tag(nonce(), Aad::from(aad(&id, config)), &mut wrapped)
        .expect("32 bytes fit AES-GCM");
    wrapped.extend_from_slice(tag.as_ref());
    let file = KeyFile {
        milkrun: "key".into(),
        version: VERSION,
        id: id.hex(),
        kdf: "argon2id".into(),
        memory_kib: cost.memory_kib,
        passes: cost.passes,
        lanes: cost.lanes,
        salt: hex::encode(salt),
        wrapped: hex::encode(&wrapped),
        signature: String::new(),
    };
    let signature = hex::encode(KeyRing::from_secret(secret).sign(Label::KeyFile, &json(&file)));
    (id, json(&KeyFile { signature, ..file }))
}

#[expect(clippy::expect_used, reason = "JSON of plain fields cannot fail")]
fn json(file: &KeyFile) -> Vec<u8> {
    serde_json::to_vec(file).expect("plain JSON")
}

/// A sound key file that this repository signed.
pub struct Authentic {
    id: KeyId,
    cost: Cost,
    salt: Vec<u8>,
    wrapped: Vec<u8>,
}

impl Authentic {
    /// Parses a key file and checks its signature. This costs next to nothing.
    ///
    /// # Errors
    /// [`UnwrapError`].
    pub fn decode(object: &[u8], signer: &VerifyingKey) -> Result<Self, UnwrapError> {
        #[derive(Deserialize)]
        struct Head {
            version: u16,
        }
        let malformed = || UnwrapError::Malformed;
        let head: Head = serde_json::from_slice(object).map_err(|_| malformed())?;
        if head.version > VERSION {
            return Err(UnwrapError::Newer(head.version));
        }
        let file: KeyFile = serde_json::from_slice(object).map_err(|_| malformed())?;
        let cost = Cost { memory_kib: file.memory_kib, passes: file.passes, lanes: file.lanes };
        if cost.memory_kib > MEMORY_KIB_MAX || cost.passes > PASSES_MAX || cost.lanes > LANES_MAX {
            return Err(malformed());
        }
        let salt = hex::decode(&file.salt).map_err(|_| malformed())?;
        let wrapped = hex::decode(&file.wrapped).map_err(|_| malformed())?;
        let signature = hex::decode(&file.signature).map_err(|_| malformed())?;
        let id: KeyId = file.id.parse().map_err(|_| malformed())?;
        // Only one encoding is accepted, as for every stored object: a file that we would write otherwise is not ours.
        let unsigned = KeyFile {
            milkrun: "key".into(),
            version: VERSION,
            id: id.hex(),
            kdf: "argon2id".into(),
            salt: hex::encode(&salt),
            wrapped: hex::encode(&wrapped),
            signature: String::new(),
            ..file
        };
        signer.verify(Label::KeyFile, &json(&unsigned), &signature).map_err(|_| UnwrapError::Stranger)?;
        if json(&KeyFile { signature: hex::encode(&signature), ..unsigned }) != object {
            return Err(malformed());
        }
        Ok(Self { id, cost, salt, wrapped })
    }

    /// Its id.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Opens it. This takes the time and the memory that its cost states.
    ///
    /// # Errors
    /// [`UnwrapError::WrongPassword`] when the password is not the one of this file.
    pub fn unwrap(&self, password: &[u8], config: &[u8]) -> Result<Secret, UnwrapError> {
        let mut wrapped = Zeroizing::new(self.wrapped.clone());
        let key = stretch(password, &self.salt, self.cost).ok_or(UnwrapError::Malformed)?;
        let plain = cipher(&key)
            .open_in_place(nonce(), Aad::from(aad(&self.id, config)), &mut wrapped)
            .map_err(|_| UnwrapError::WrongPassword)?;
        let bytes: [u8; 32] = (&*plain).try_into().map_err(|_| UnwrapError::Malformed)?;
        Ok(Secret::from_bytes(bytes))
    }
}

fn stretch(password: &[u8], salt: &[u8], cost: Cost) -> Option<Zeroizing<[u8; 32]>> {
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).ok()?;
    let mut out = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(password, salt, out.as_mut_slice())
        .ok()?;
    Some(out)
}

// The key is derived from a fresh salt and seals once, so the nonce may be fixed.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn aad(id: &KeyId, config: &[u8]) -> Vec<u8> {
    [id.as_bytes().as_slice(), blake3::hash(config).as_bytes()].concat()
}

#[expect(clippy::expect_used, reason = "32 bytes are an AES-256 key")]
fn cipher(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unwrap(object: &[u8], password: &[u8], config: &[u8]) -> Result<Secret, UnwrapError> {
        let signer = KeyRing::from_secret(&Secret::from_bytes([5; 32])).public().signing;
        Authentic::decode(object, &signer)?.unwrap(password, config)
    }

    #[test]
    fn opens_with_its_password_and_configuration_only() {
        let secret = Secret::from_bytes([5; 32]);
        let (_, object) = wrap(&secret, b"correct horse", b"config", Cost::TEST);
        assert_eq!(unwrap(&object, b"correct horse", b"config").unwrap().as_bytes(), secret.as_bytes());
        assert!(matches!(unwrap(&object, b"wrong", b"config"), Err(UnwrapError::WrongPassword)));
        assert!(matches!(unwrap(&object, b"correct horse", b"other"), Err(UnwrapError::WrongPassword)));
        assert!(matches!(unwrap(b"{}", b"x", b"config"), Err(UnwrapError::Malformed)));
        // A planted key file costs no hash of a password.
        let (_, planted) = wrap(&Secret::from_bytes([6; 32]), b"correct horse", b"config", Cost::RECOMMENDED);
        assert!(matches!(unwrap(&planted, b"correct horse", b"config"), Err(UnwrapError::Stranger)));
        let text = String::from_utf8(object.clone()).unwrap();
        for (from, to) in [
            ("\"version\":2", "\"version\":1"),
            ("{", "{ "),
            ("\"lanes\":1", "\"lanes\":1,\"more\":2"),
            ("argon2id", "argon2d"),
            ("\"lanes\":1", "\"lanes\":2"),
        ] {
            let other = text.replacen(from, to, 1);
            assert_ne!(other, text);
            let refused = unwrap(other.as_bytes(), b"correct horse", b"config");
            assert!(matches!(refused, Err(UnwrapError::Malformed | UnwrapError::Stranger)), "{other}");
        }
        for greedy in [4 << 20, MEMORY_KIB_MAX + 1] {
            let greedy = text.replace("\"memory_kib\":8", &format!("\"memory_kib\":{greedy}"));
            assert!(matches!(unwrap(greedy.as_bytes(), b"correct horse", b"config"), Err(UnwrapError::Malformed)));
        }
    }
}
