//! Keys: what each is for, how it is derived from the one secret, and who may hold it.
//!
//! ```text
//! secret (32 random bytes; wrapped in keys/<id>, and printed by `init` as the recovery key)
//!   ├─ signing    Ed25519 seed: roots, placements, repository.json, keys/, domains/
//!   ├─ names      keyed hash of applications in object keys
//!   ├─ envelope   seals unlocked objects (index, leases)
//!   └─ domains    two keys that seal the keys of dedup domains, in domains/<application>/<n>
//!
//! a domain's keys (random; one domain for each application)
//!   ├─ chunk ids  names chunks
//!   ├─ metadata   X25519: opens metadata packs and the sealed part of roots
//!   └─ data       X25519: opens data packs; only a restore needs it
//! ```
//! A node gets a [`DomainKey`] and the public data key, and nothing else: it can write but not read.

pub mod domain;
pub mod envelope;
pub mod hybrid;
pub mod recovery;
pub mod wrapped;

pub use domain::Domain;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use zeroize::Zeroizing;

use crate::chunk::pages::{PageDigest, PageHasher};
use crate::clock::entropy;
use crate::id::{AppHash, AppId, ChunkId, RunId};
use crate::wire::Encoder;

/// Length of an Ed25519 signature.
pub const SIGNATURE_LEN: usize = 64;

/// The one secret of a repository.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; 32]>);

impl Secret {
    /// A fresh secret.
    pub fn generate() -> Self {
        Self(Zeroizing::new(entropy()))
    }

    /// From raw bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn derive(&self, context: &str) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blake3::derive_key(context, self.0.as_slice()))
    }
}

/// The public keys, as stored in `repository.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKeys {
    /// Checks roots, placements and domains. An auditor keeps this key outside the bucket.
    pub signing: VerifyingKey,
}

/// All keys that are derived from the secret.
pub struct KeyRing {
    signing: Ed25519KeyPair,
    names: Zeroizing<[u8; 32]>,
    envelope: Zeroizing<[u8; 32]>,
    domain_metadata: Zeroizing<[u8; 32]>,
    domain_data: Zeroizing<[u8; 32]>,
}

impl KeyRing {
    /// Derives all keys.
    #[expect(clippy::expect_used, reason = "every 32 bytes are a valid Ed25519 seed")]
    pub fn from_secret(secret: &Secret) -> Self {
        let seed = secret.derive("milkrun v1 signing ed25519 seed");
        Self {
            signing: Ed25519KeyPair::from_seed_unchecked(seed.as_slice()).expect("32 bytes are a seed"),
            names: secret.derive("milkrun v2 application names"),
            envelope: secret.derive("milkrun v1 unlocked objects"),
            domain_metadata: secret.derive("milkrun v2 domain keys, metadata"),
            domain_data: secret.derive("milkrun v2 domain keys, data"),
        }
    }

    /// The public keys.
    pub fn public(&self) -> PublicKeys {
        let mut signing = [0; 32];
        signing.copy_from_slice(self.signing.public_key().as_ref());
        PublicKeys { signing: VerifyingKey(signing) }
    }

    /// The hash that stands for an application in object keys.
    pub fn app_hash(&self, app: &AppId) -> AppHash {
        let mut e = Encoder::new();
        app.encode(&mut e);
        let full = blake3::keyed_hash(&self.names, e.as_slice());
        let mut out = [0; AppHash::LEN];
        out.copy_from_slice(&full.as_bytes()[..AppHash::LEN]);
        AppHash::from_bytes(out)
    }

    /// The run of a request: the same request id always gives the same run.
    pub fn run_of_request(&self, request: &str) -> RunId {
        let key = blake3::derive_key("milkrun v2 runs of requests", self.envelope.as_slice());
        let full = blake3::keyed_hash(&key, request.as_bytes());
        let mut out = [0; RunId::LEN];
        out.copy_from_slice(&full.as_bytes()[..RunId::LEN]);
        RunId::from_bytes(out)
    }

    /// The key that authenticates files of the local index cache.
    pub(crate) fn cache_key(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blake3::derive_key("milkrun v1 local index cache", self.envelope.as_slice()))
    }

    pub(crate) fn envelope_key(&self) -> &[u8; 32] {
        &self.envelope
    }

    /// Signs `message`. The label keeps one kind of object from passing for another.
    pub fn sign(&self, label: Label, message: &[u8]) -> [u8; SIGNATURE_LEN] {
        let mut out = [0; SIGNATURE_LEN];
        out.copy_from_slice(self.signing.sign(&label.message(message)).as_ref());
        out
    }
}

/// The kind of object that a signature is for.
#[derive(Clone, Copy, Debug)]
pub enum Label {
    /// `repository.json`
    Config,
    /// A wrapped secret.
    KeyFile,
    /// The keys of a domain.
    Domain,
    /// A root or a tombstone.
    Root,
    /// A placement.
    Placement,
}

impl Label {
    // The digest is signed, so that signing a placement of megabytes needs no copy of it.
    fn message(self, body: &[u8]) -> [u8; 64] {
        let label = match self {
            Self::Config => "milkrun v1 signature repository.json",
            Self::KeyFile => "milkrun v2 signature key",
            Self::Domain => "milkrun v2 signature domain",
            Self::Root => "milkrun v2 signature root",
            Self::Placement => "milkrun v1 signature placement",
        };
        let mut out = [0; 64];
        out[..32].copy_from_slice(blake3::hash(label.as_bytes()).as_bytes());
        out[32..].copy_from_slice(blake3::hash(body).as_bytes());
        out
    }
}

/// Checks signatures of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyingKey([u8; 32]);

/// A signature that does not belong to the message and the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature is not by this repository's key")]
pub struct BadSignature;

impl VerifyingKey {
    /// From its 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Checks one signature.
    ///
    /// # Errors
    /// [`BadSignature`] unless this key's owner signed exactly this.
    pub fn verify(&self, label: Label, message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(&label.message(message), signature).map_err(|_| BadSignature)
    }
}

/// The chunk-id key of one dedup domain. A node holds it for the volumes that it reads.
#[derive(Clone)]
pub struct DomainKey(Zeroizing<[u8; 32]>);

impl DomainKey {
    /// From its bytes, as an agent receives them.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Its bytes, to hand to an agent.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The id of a plaintext.
    pub fn identify(&self, plain: &[u8]) -> ChunkId {
        ChunkId::from_bytes(*blake3::keyed_hash(&self.0, plain).as_bytes())
    }

    /// The id of a chunk and the digests of its pages. This costs no more than the id alone.
    pub fn identify_pages(&self, chunk: &[u8]) -> (ChunkId, Vec<PageDigest>) {
        PageHasher::new(&self.0).identify(chunk)
    }

    /// The digests of a part of a chunk. The part begins at `offset` in the chunk, a multiple of a page. It consists of whole
    /// pages, unless the chunk ends with it.
    ///
    /// # Panics
    /// If `offset` is not a multiple of a page.
    pub fn page_digests(&self, part: &[u8], offset: u32) -> Vec<PageDigest> {
        PageHasher::new(&self.0).digests(part, offset)
    }

    /// The seed that moves cut points, so that an outsider learns nothing from the lengths of chunks of known content.
    pub fn cut_seed(&self) -> u64 {
        let full = blake3::derive_key("milkrun v1 cut seed", self.0.as_slice());
        u64::from_le_bytes([full[0], full[1], full[2], full[3], full[4], full[5], full[6], full[7]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_bind_label_and_message() {
        let ring = KeyRing::from_secret(&Secret::from_bytes([1; 32]));
        let public = ring.public().signing;
        let sig = ring.sign(Label::Root, b"x");
        assert!(public.verify(Label::Root, b"x", &sig).is_ok());
        assert!(public.verify(Label::Placement, b"x", &sig).is_err());
        assert!(public.verify(Label::Root, b"y", &sig).is_err());
        let other = KeyRing::from_secret(&Secret::from_bytes([2; 32])).public().signing;
        assert!(other.verify(Label::Root, b"x", &sig).is_err());
    }

    /// A name that looks like a namespace and a name is not mistaken for the two.
    #[test]
    fn applications_are_told_apart_by_cluster_namespace_and_name() {
        let ring = KeyRing::from_secret(&Secret::from_bytes([1; 32]));
        let app = |cluster: &str, namespace: &str, name: &str| AppId {
            cluster: cluster.parse().unwrap(),
            namespace: namespace.parse().ok(),
            name: name.parse().unwrap(),
        };
        let all = [
            app("a", "", "shop"),
            app("b", "", "shop"),
            app("a", "b", "shop"),
            app("a", "", "b/shop"),
            app("ab", "", "shop"),
        ];
        let hashes: std::collections::HashSet<_> = all.iter().map(|a| ring.app_hash(a)).collect();
        assert_eq!(hashes.len(), all.len());
    }
}
