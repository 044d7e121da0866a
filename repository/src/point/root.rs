//! The root of a restore point: the one object whose creation makes the point exist.
//!
//! ```text
//!   0  16  magic "milkrun point\0\0\0"
//!  16   2  version u16 = 2
//!  18   1  kind u8: 1 point, 2 tombstone of a run that was aborted
//!  19   1  class u8: 0 none, 1 hourly, 2 daily, 3 weekly, 4 monthly, 5 yearly
//!  20   4  number of the domain, u32
//!  24  16  repository id
//!  40  16  application hash
//!  56   8  run id
//!  64   8  moment of the snapshot, ms since 1970, i64
//!  72   8  lock-until, ms since 1970, i64 (0: not locked)
//!  80  32  encapsulated key ┐ sealed body (HPKE to the domain's metadata key, AAD: bytes 0..80)
//! 112   4  length u32       │
//! 116   n  ciphertext       ┘
//!   …  64  Ed25519 signature of everything before
//! ```
//! Bytes 0..80 can be read with the public key alone. That is enough to list points, find placements and prove that every stored
//! byte is there. Names and maps are sealed, in a [`RootBody`].

pub use super::root_body::{
    FREE_LEFT_OUT, FileSystem, Layout, ManifestEntry, MapId, RootBody, SET_MEMBER, Skipped, VolumeEntry, VolumeKind,
};

use crate::clock::Moment;
use crate::id::{AppHash, DomainId, PointId, RepositoryId, RunId};
use crate::keys::hybrid::{HybridError, HybridPublic, HybridSecret};
use crate::keys::{BadSignature, KeyRing, Label, SIGNATURE_LEN, VerifyingKey};
use crate::store::Key;
use crate::wire::{Decoder, Encoder, HeaderError, Malformed, header};

const MAGIC: &[u8; 16] = b"milkrun point\0\0\0";
const VERSION: u16 = 2;
const READABLE_LEN: usize = 80;

/// The readable part of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// Whether this is a tombstone.
    pub tombstone: bool,
    /// The repository.
    pub repository: RepositoryId,
    /// The application.
    pub app: AppHash,
    /// Which keys of the application: its [domain](DomainId)'s number.
    pub domain: u32,
    /// The class by which retention counts it.
    pub class: Class,
    /// The run that made it.
    pub run: RunId,
    /// The moment of the snapshot.
    pub moment: Moment,
    /// Everything that the point needs is locked at least until this moment.
    pub lock_until: Option<Moment>,
}

/// The class of a point, by which retention counts it: how long it is meant to be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// No class was given.
    #[default]
    None = 0,
    /// One of the hourlies.
    Hourly = 1,
    /// One of the dailies.
    Daily = 2,
    /// One of the weeklies.
    Weekly = 3,
    /// One of the monthlies.
    Monthly = 4,
    /// One of the yearlies.
    Yearly = 5,
}

impl Class {
    const ALL: [(Self, &str); 6] = [
        (Self::None, "none"),
        (Self::Hourly, "hourly"),
        (Self::Daily, "daily"),
        (Self::Weekly, "weekly"),
        (Self::Monthly, "monthly"),
        (Self::Yearly, "yearly"),
    ];

    /// From its stored number.
    pub fn from_u8(n: u8) -> Option<Self> {
        Self::ALL.get(usize::from(n)).map(|(class, _)| *class)
    }

    /// As people write it.
    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// Not a class.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no class: write hourly, daily, weekly, monthly, yearly or none")]
pub struct BadClass(String);

impl std::str::FromStr for Class {
    type Err = BadClass;
    fn from_str(s: &str) -> Result<Self, BadClass> {
        Self::ALL.into_iter().find(|(_, name)| *name == s).map(|(class, _)| class).ok_or_else(|| BadClass(s.to_owned()))
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a root was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// Not a root, or of a later format.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Not signed by this repository.
    #[error(transparent)]
    Signature(#[from] BadSignature),
    /// An authentic root at another key than its own.
    #[error("is the root of another point, moved here")]
    Misplaced,
    /// Its sealed part can't be opened with the metadata key.
    #[error("its sealed part: {0}")]
    Sealed(#[from] HybridError),
}

impl From<Malformed> for RootError {
    fn from(m: Malformed) -> Self {
        Self::Header(m.into())
    }
}

impl Root {
    /// Its id.
    pub fn id(&self) -> PointId {
        PointId::new(self.moment, self.run)
    }

    /// The domain whose keys open it.
    pub fn domain(&self) -> DomainId {
        DomainId { app: self.app, number: self.domain }
    }

    /// Its key.
    pub fn key(&self) -> Key {
        Key::point(&self.app, &self.id())
    }

    /// The sealed and signed bytes.
    ///
    /// # Errors
    /// When the metadata public key can't be used.
    pub fn encode(&self, body: &RootBody, ring: &KeyRing, recipient: &HybridPublic) -> Result<Vec<u8>, HybridError> {
        self.encode_bytes(&body.encode(), ring, recipient)
    }

    /// The bytes of a tombstone for a run that was aborted. It has no body.
    ///
    /// # Errors
    /// When the metadata public key can't be used.
    pub fn encode_tombstone(&self, ring: &KeyRing, recipient: &HybridPublic) -> Result<Vec<u8>, HybridError> {
        Self { tombstone: true, ..*self }.encode_bytes(&[], ring, recipient)
    }

    fn encode_bytes(&self, body: &[u8], ring: &KeyRing, recipient: &HybridPublic) -> Result<Vec<u8>, HybridError> {
        let mut e = Encoder::new();
        e.raw(MAGIC).u16(VERSION).u8(if self.tombstone { 2 } else { 1 }).u8(self.class as u8).u32(self.domain);
        e.raw(self.repository.as_bytes()).raw(self.app.as_bytes()).raw(self.run.as_bytes());
        e.i64(self.moment.millis()).i64(self.lock_until.map_or(0, Moment::millis));
        let sealed = recipient.seal(body, e.as_slice())?;
        e.raw(&sealed.encapsulated).bytes(&sealed.ciphertext);
        let signature = ring.sign(Label::Root, e.as_slice());
        e.raw(&signature);
        Ok(e.finish())
    }

    /// Parses a root found at `key` and checks its signature.
    ///
    /// # Errors
    /// [`RootError`].
    pub fn decode(
        bytes: &[u8],
        key: &Key,
        repository: &RepositoryId,
        signer: &VerifyingKey,
    ) -> Result<Self, RootError> {
        let root = Self::parse(bytes)?;
        let signed = bytes.len() - SIGNATURE_LEN;
        signer.verify(Label::Root, &bytes[..signed], &bytes[signed..])?;
        if &root.repository != repository || &root.key() != key {
            return Err(RootError::Misplaced);
        }
        Ok(root)
    }

    /// Parses a root and checks only its form.
    ///
    /// # Errors
    /// [`RootError::Header`].
    pub fn parse(bytes: &[u8]) -> Result<Self, RootError> {
        let mut d = Decoder::new(bytes);
        header(&mut d, MAGIC, VERSION)?;
        let tombstone = match d.u8("kind")? {
            1 => false,
            2 => true,
            _ => return Err(d.bad("kind").into()),
        };
        let class = Class::from_u8(d.u8("class")?).ok_or_else(|| d.bad("class"))?;
        let domain = d.u32("domain")?;
        let root = Self {
            tombstone,
            domain,
            class,
            repository: RepositoryId::from_bytes(d.array("repository")?),
            app: AppHash::from_bytes(d.array("application")?),
            run: RunId::from_bytes(d.array("run")?),
            moment: Moment::from_millis(d.i64("moment")?),
            lock_until: Some(d.i64("lock-until")?).filter(|&ms| ms != 0).map(Moment::from_millis),
        };
        d.raw(32, "encapsulated key")?;
        d.bytes("sealed body")?;
        d.raw(SIGNATURE_LEN, "signature")?;
        d.finish("end of root")?;
        Ok(root)
    }

    /// Opens the sealed part of bytes that [`Root::decode`] accepted.
    ///
    /// # Errors
    /// [`RootError`].
    pub fn open(bytes: &[u8], secret: &HybridSecret) -> Result<RootBody, RootError> {
        let mut d = Decoder::new(bytes);
        let aad = d.raw(READABLE_LEN, "root")?;
        let encapsulated = d.raw(32, "encapsulated key")?;
        let sealed = d.bytes("sealed body")?;
        Ok(RootBody::decode(&secret.open(encapsulated, sealed, aad)?)?)
    }
}
