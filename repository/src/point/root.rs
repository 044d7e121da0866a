//! The root of a restore point: the one object whose creation makes the point exist.
//!
//! ```text
//!   0  16  magic "milkrun point\0\0\0"
//!  16   2  version u16: 1, or 2 if the body says how a volume was read and lies
//!  18   1  kind u8: 1 point, 2 tombstone of a run that was aborted
//!  19   5  reserved
//!  24  16  repository id
//!  40  16  application hash
//!  56   8  run id
//!  64   8  moment of the snapshot, ms since 1970, i64
//!  72   8  lock-until, ms since 1970, i64 (0: not locked)
//!  80  32  encapsulated key ┐ sealed body (HPKE to the metadata key, AAD: bytes 0..80)
//! 112   4  length u32       │
//! 116   n  ciphertext       ┘
//!   …  64  Ed25519 signature of everything before
//! ```
//! Bytes 0..80 can be read with the public key alone: enough to list points, find placements and prove that every stored
//! byte is there. Names and maps are sealed.

use crate::clock::Moment;
use crate::id::{AppHash, AppName, ChunkId, PointId, RepositoryId, RunId, VolumeName};
use crate::keys::hybrid::{HybridError, HybridPublic, HybridSecret};
use crate::keys::{BadSignature, KeyRing, Label, SIGNATURE_LEN, VerifyingKey};
use crate::store::Key;
use crate::wire::{Decoder, Encoder, HeaderError, Malformed, headers};

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
    /// The run that made it.
    pub run: RunId,
    /// The moment of the snapshot.
    pub moment: Moment,
    /// Everything that the point needs is locked at least until then.
    pub lock_until: Option<Moment>,
}

/// The sealed part of a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootBody {
    /// The application's name.
    pub application: AppName,
    /// The host or node that coordinated.
    pub host: String,
    /// The release that wrote it.
    pub writer: String,
    /// The point whose maps predicted this one's.
    pub parent: Option<PointId>,
    /// How long the backup took, in ms.
    pub duration_ms: u64,
    /// What the repository grew by, metadata included, without this root.
    pub stored_bytes: u64,
    /// Volumes and streams.
    pub volumes: Vec<VolumeEntry>,
    /// The manifests, as one stream of JSON lines.
    pub manifests: Option<ManifestEntry>,
}

/// What a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeKind {
    /// A block device or an image of one.
    Image = 1,
    /// A byte stream.
    Stream = 2,
    // 3 is reserved for trees of files (volumes that are no block device).
}

/// The map of a volume as the root signs it: ids of plaintext; where they are stands in the placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapId {
    /// Bytes of the volume.
    pub len: u64,
    /// Level of the topmost chunk.
    pub level: u8,
    /// The topmost chunk; none for holes alone.
    pub chunk: Option<ChunkId>,
}

/// A note of a volume begins so if what its file system had free was left out, or some of it: its holes do not say what the device
/// has there.
pub const FREE_LEFT_OUT: &str = "free space was left out: ";
/// The note of a volume that is nothing by itself begins so; then come how many devices its set has, and which set it is.
pub const SET_MEMBER: &str = "one of a set of ";

/// A volume in a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeEntry {
    /// Its name.
    pub name: VolumeName,
    /// Its kind.
    pub kind: VolumeKind,
    /// The logical sector size of the device that was read (0: none).
    pub sector_bytes: u32,
    /// Its map.
    pub map: MapId,
    /// Bytes that are holes.
    pub hole_bytes: u64,
    /// Bytes that were not known before.
    pub new_bytes: u64,
    /// Bytes that were stored for it.
    pub stored_bytes: u64,
    /// What was reported while it was read and did not fail it.
    pub notes: Vec<String>,
    /// How it was read, and how it lies. Unknown of points that a release before 0.2 wrote.
    pub layout: Option<Layout>,
}

/// How a volume was read, and how it lies in the repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// So many points in a row, this one included, rest on lists of changes that somebody else made; 0: all of it was read.
    pub by_lists: u32,
    /// Bytes outside of this point's list that were read and compared with the parent, as a sample.
    pub sampled_bytes: u64,
    /// Reads from the store that a restore takes.
    pub ranges: u64,
    /// Bytes of plaintext that a restore opens for them: more than the volume's data, when it uses parts of chunks.
    pub opened_bytes: u64,
}

/// The manifests in a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestEntry {
    /// How many objects.
    pub objects: u32,
    /// The map of the stream.
    pub map: MapId,
}

/// Why a root was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// No root, or of a later format.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Not signed by this repository.
    #[error(transparent)]
    Signature(#[from] BadSignature),
    /// A true root that stands under another key than its own.
    #[error("is the root of another point, moved here")]
    Misplaced,
    /// Can't be opened with the metadata key.
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

    /// Its key.
    pub fn key(&self) -> Key {
        Key::point(&self.app, &self.id())
    }

    /// Seals and signs.
    ///
    /// # Errors
    /// When the metadata public key can't be used.
    pub fn encode(&self, body: &RootBody, ring: &KeyRing, recipient: &HybridPublic) -> Result<Vec<u8>, HybridError> {
        self.encode_bytes(body.version(), &body.encode(), ring, recipient)
    }

    /// The tombstone of a run that was aborted: no body.
    ///
    /// # Errors
    /// When the metadata public key can't be used.
    pub fn encode_tombstone(&self, ring: &KeyRing, recipient: &HybridPublic) -> Result<Vec<u8>, HybridError> {
        Self { tombstone: true, ..*self }.encode_bytes(1, &[], ring, recipient)
    }

    fn encode_bytes(
        &self,
        version: u16,
        body: &[u8],
        ring: &KeyRing,
        recipient: &HybridPublic,
    ) -> Result<Vec<u8>, HybridError> {
        let mut e = Encoder::new();
        e.raw(MAGIC).u16(version).u8(if self.tombstone { 2 } else { 1 }).raw(&[0; 5]);
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

    /// Parses without checking anything but the form.
    ///
    /// # Errors
    /// [`RootError::Header`].
    pub fn parse(bytes: &[u8]) -> Result<Self, RootError> {
        let mut d = Decoder::new(bytes);
        let version = headers(&mut d, MAGIC, VERSION)?;
        let tombstone = match d.u8("kind")? {
            1 => false,
            2 if version == 1 => true,
            _ => return Err(d.bad("kind").into()),
        };
        d.reserved(5, "reserved")?;
        let root = Self {
            tombstone,
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
        let version = headers(&mut Decoder::new(bytes), MAGIC, VERSION)?;
        let aad = d.raw(READABLE_LEN, "root")?;
        let encapsulated = d.raw(32, "encapsulated key")?;
        let sealed = d.bytes("sealed body")?;
        Ok(RootBody::decode(&secret.open(encapsulated, sealed, aad)?, version)?)
    }
}

impl MapId {
    fn encode(&self, e: &mut Encoder) {
        e.u64(self.len).u8(self.level).u8(u8::from(self.chunk.is_some()));
        e.raw(self.chunk.map_or([0; 32], |c| *c.as_bytes()).as_slice());
    }

    fn decode(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let (len, level) = (d.u64("map length")?, d.u8("map level")?);
        let some = d.u8("map chunk")?;
        let id: [u8; 32] = d.array("map chunk")?;
        let chunk = match some {
            0 if id == [0; 32] => None,
            1 => Some(ChunkId::from_bytes(id)),
            _ => return Err(d.bad("map chunk")),
        };
        Ok(Self { len, level, chunk })
    }
}

impl Layout {
    fn encode(&self, e: &mut Encoder) {
        e.u32(self.by_lists).u64(self.sampled_bytes).u64(self.ranges).u64(self.opened_bytes);
    }

    fn decode(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            by_lists: d.u32("lists in a row")?,
            sampled_bytes: d.u64("sampled bytes")?,
            ranges: d.u64("ranges")?,
            opened_bytes: d.u64("opened bytes")?,
        })
    }
}

impl RootBody {
    /// The version of a root that says all of it.
    pub fn version(&self) -> u16 {
        if self.volumes.iter().any(|v| v.layout.is_some()) { 2 } else { 1 }
    }

    /// Its bytes, before sealing.
    pub fn encode(&self) -> Vec<u8> {
        let version = self.version();
        let mut e = Encoder::new();
        e.text(self.application.as_str()).text(&self.host).text(&self.writer);
        e.text(&self.parent.map(|p| p.to_string()).unwrap_or_default());
        e.u64(self.duration_ms).u64(self.stored_bytes).count(self.volumes.len());
        for v in &self.volumes {
            e.text(v.name.as_str()).u8(v.kind as u8).u32(v.sector_bytes);
            v.map.encode(&mut e);
            e.u64(v.hole_bytes).u64(v.new_bytes).u64(v.stored_bytes).count(v.notes.len());
            for note in &v.notes {
                e.text(note);
            }
            if version > 1 {
                e.u8(u8::from(v.layout.is_some()));
                if let Some(layout) = &v.layout {
                    layout.encode(&mut e);
                }
            }
        }
        e.u8(u8::from(self.manifests.is_some()));
        if let Some(m) = &self.manifests {
            e.u32(m.objects);
            m.map.encode(&mut e);
        }
        e.finish()
    }

    /// Parses the opened part of a root of this version.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8], version: u16) -> Result<Self, Malformed> {
        let mut d = Decoder::new(bytes);
        let application = d.text("application")?.parse().map_err(|_| d.bad("application"))?;
        let (host, writer) = (d.text("host")?, d.text("writer")?);
        let parent = Some(d.text("parent")?).filter(|p| !p.is_empty());
        let parent = parent.map(|p| p.parse()).transpose().map_err(|_| d.bad("parent"))?;
        let (duration_ms, stored_bytes) = (d.u64("duration")?, d.u64("stored bytes")?);
        let n = d.count(60, "volume count")?;
        let mut volumes = Vec::with_capacity(n);
        for _ in 0..n {
            let name = d.text("volume name")?.parse().map_err(|_| d.bad("volume name"))?;
            let kind = match d.u8("volume kind")? {
                1 => VolumeKind::Image,
                2 => VolumeKind::Stream,
                _ => return Err(d.bad("volume kind")),
            };
            let sector_bytes = d.u32("sector size")?;
            let map = MapId::decode(&mut d)?;
            let bytes = (d.u64("hole bytes")?, d.u64("new bytes")?, d.u64("stored bytes")?);
            let n = d.count(4, "note count")?;
            let notes = (0..n).map(|_| d.text("note")).collect::<Result<_, _>>()?;
            let layout = match if version > 1 { d.u8("layout")? } else { 0 } {
                0 => None,
                1 => Some(Layout::decode(&mut d)?),
                _ => return Err(d.bad("layout")),
            };
            let (hole_bytes, new_bytes, stored_bytes) = bytes;
            volumes.push(VolumeEntry {
                name,
                kind,
                sector_bytes,
                map,
                hole_bytes,
                new_bytes,
                stored_bytes,
                notes,
                layout,
            });
        }
        let manifests = match d.u8("manifests")? {
            0 => None,
            1 => Some(ManifestEntry { objects: d.u32("object count")?, map: MapId::decode(&mut d)? }),
            _ => return Err(d.bad("manifests")),
        };
        d.finish("end of root body")?;
        let body = Self { application, host, writer, parent, duration_ms, stored_bytes, volumes, manifests };
        // One body has one encoding.
        if body.version() == version { Ok(body) } else { Err(Malformed { what: "version", at: 0 }) }
    }
}
