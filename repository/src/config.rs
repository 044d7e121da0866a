//! `repository.json`: settings that are decided once. Canonical JSON, signed, created once and never rewritten.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::chunk::page_cutter::PageCutter;
use crate::chunk::stream_cutter::StreamCutter;
use crate::clock::Moment;
use crate::id::RepositoryId;
use crate::keys::{BadSignature, KeyRing, Label, PublicKeys, VerifyingKey};
use crate::store::Firmness;

/// The format that this release writes, and the only one that it reads. Version 1 was given up.
pub const VERSION: u16 = 2;

/// Bytes of a volume that one leaf of its map covers, and one region of the pipeline.
pub const REGION_BYTES: u64 = 16 << 20;

/// Whether and how objects are locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockMode {
    /// Not at all.
    None,
    /// Locked; a principal with the bypass right may still delete.
    Governance,
    /// Locked; nobody may delete before the time.
    Compliance,
}

impl LockMode {
    /// How firm its locks are; `None` without locks.
    pub fn firmness(self) -> Option<Firmness> {
        match self {
            Self::None => None,
            Self::Governance => Some(Firmness::Governance),
            Self::Compliance => Some(Firmness::Compliance),
        }
    }
}

impl std::fmt::Display for LockMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Governance => "governance",
            Self::Compliance => "compliance",
        })
    }
}

/// How long things are locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockPolicy {
    /// The mode.
    pub mode: LockMode,
    /// How long a point is locked, unless a backup says otherwise.
    pub period: Duration,
}

impl LockPolicy {
    /// Nothing is locked.
    pub const NONE: Self = Self { mode: LockMode::None, period: Duration::ZERO };

    /// Packs are locked until a multiple of this: half the period, and at least a minute. So a pack is extended at most once per
    /// quantum, however often it is reused.
    pub fn quantum(&self) -> Duration {
        (self.period / 2).max(Duration::from_secs(60))
    }
}

/// The configuration of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Its id.
    pub id: RepositoryId,
    /// When it was made.
    pub created: Moment,
    /// How volumes are cut.
    pub pages: PageCutter,
    /// How streams and manifests are cut.
    pub streams: StreamCutter,
    /// Locking.
    pub lock: LockPolicy,
    /// Public keys.
    pub keys: PublicKeys,
}

/// Why `repository.json` was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not one of milkrun's, or altered.
    #[error("repository.json is damaged or not one of milkrun's: {0}")]
    Malformed(String),
    /// Written by a later release.
    #[error("the repository has format version {found}; this release knows version {VERSION}")]
    Newer {
        /// Its version.
        found: u16,
    },
    /// Written by a release before the first that is supported.
    #[error(
        "the repository has format version {found}; this release reads version {VERSION} alone. \
         Restore from it with the release that made it, and begin a new repository"
    )]
    Older {
        /// Its version.
        found: u16,
    },
    /// Not signed by the key that it names.
    #[error("repository.json: {0}")]
    Signature(#[from] BadSignature),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    milkrun: String,
    version: u16,
    id: String,
    created: String,
    chunking: Chunking,
    suites: Suites,
    lock: Lock,
    keys: Keys,
    signature: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Chunking {
    region_bytes: u64,
    page: PageCutter,
    stream: StreamCutter,
}

#[derive(Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Suites {
    id: String,
    aead: String,
    kem: String,
    signature: String,
    compression: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lock {
    mode: LockMode,
    period_seconds: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    signing: String,
}

fn suites() -> Suites {
    Suites {
        id: "blake3-keyed".into(),
        aead: "aes-256-gcm".into(),
        kem: "hpke-x25519-hkdf-sha256-aes-256-gcm".into(),
        signature: "ed25519".into(),
        compression: "zstd".into(),
    }
}

impl Config {
    /// The bytes of `repository.json`.
    pub fn encode(&self, ring: &KeyRing) -> Vec<u8> {
        let mut file = self.file();
        file.signature = hex::encode(ring.sign(Label::Config, &json(&file)));
        json(&file)
    }

    fn file(&self) -> File {
        File {
            milkrun: "repository".into(),
            version: VERSION,
            id: self.id.hex(),
            created: self.created.to_string(),
            chunking: Chunking { region_bytes: REGION_BYTES, page: self.pages, stream: self.streams },
            suites: suites(),
            lock: Lock { mode: self.lock.mode, period_seconds: self.lock.period.as_secs() },
            keys: Keys { signing: hex::encode(self.keys.signing.as_bytes()) },
            signature: String::new(),
        }
    }

    /// Parses, and checks the signature by the key that the file itself names. Only somebody who holds the secret, or a public
    /// key from outside, can tell whether that key is the right one.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ConfigError> {
        #[derive(Deserialize)]
        struct Head {
            milkrun: String,
            version: u16,
        }
        let bad = |why: &str| ConfigError::Malformed(why.to_owned());
        let head: Head = serde_json::from_slice(bytes).map_err(|e| ConfigError::Malformed(e.to_string()))?;
        if head.milkrun != "repository" {
            return Err(bad("another kind of object"));
        }
        if head.version > VERSION {
            return Err(ConfigError::Newer { found: head.version });
        }
        if head.version < VERSION {
            return Err(ConfigError::Older { found: head.version });
        }
        let file: File = serde_json::from_slice(bytes).map_err(|e| ConfigError::Malformed(e.to_string()))?;
        if file.suites != suites() || file.chunking.region_bytes != REGION_BYTES {
            return Err(bad("unknown suites"));
        }
        let config = Self {
            id: file.id.parse().map_err(|_| bad("id"))?,
            created: Moment::parse(&file.created).map_err(|_| bad("created"))?,
            pages: file.chunking.page,
            streams: file.chunking.stream,
            lock: LockPolicy { mode: file.lock.mode, period: Duration::from_secs(file.lock.period_seconds) },
            keys: PublicKeys { signing: VerifyingKey::from_bytes(key(&file.keys.signing).ok_or_else(|| bad("keys"))?) },
        };
        config.pages.check().map_err(|_| bad("chunking"))?;
        config.streams.check().map_err(|_| bad("chunking"))?;
        let signature = hex::decode(&file.signature).map_err(|_| bad("signature"))?;
        let unsigned = config.file();
        config.keys.signing.verify(Label::Config, &json(&unsigned), &signature)?;
        if json(&File { signature: hex::encode(&signature), ..unsigned }) != bytes {
            return Err(bad("not in canonical form"));
        }
        Ok(config)
    }
}

fn key(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    hex::decode_to_slice(text, &mut out).ok().map(|()| out)
}

#[expect(clippy::expect_used, reason = "JSON of plain fields cannot fail")]
fn json(file: &File) -> Vec<u8> {
    serde_json::to_vec(file).expect("plain JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Secret;

    fn sample() -> (KeyRing, Config) {
        let ring = KeyRing::from_secret(&Secret::from_bytes([1; 32]));
        let config = Config {
            id: RepositoryId::from_bytes([2; 16]),
            created: Moment::from_millis(1_700_000_000_000),
            pages: PageCutter::DEFAULT,
            streams: StreamCutter::DEFAULT,
            lock: LockPolicy { mode: LockMode::Compliance, period: Duration::from_secs(30 * 86400) },
            keys: ring.public(),
        };
        (ring, config)
    }

    #[test]
    fn round_trips_and_refuses_every_flipped_bit() {
        let (ring, config) = sample();
        let bytes = config.encode(&ring);
        assert_eq!(Config::decode(&bytes).unwrap(), config);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(Config::decode(&bad).is_err(), "byte {at}: {}", String::from_utf8_lossy(&bad));
        }
    }

    #[test]
    fn another_format_is_named_as_such() {
        let (ring, config) = sample();
        let text = String::from_utf8(config.encode(&ring)).unwrap();
        let other = |version: u16| {
            text.replace("\"version\":2", &format!("\"version\":{version}")).replace("\"chunking\"", "\"cutting\"")
        };
        assert!(matches!(Config::decode(other(3).as_bytes()), Err(ConfigError::Newer { found: 3 })));
        let older = Config::decode(other(1).as_bytes()).unwrap_err();
        assert!(matches!(older, ConfigError::Older { found: 1 }));
        assert!(older.to_string().contains("reads version 2 alone"), "{older}");
    }
}
