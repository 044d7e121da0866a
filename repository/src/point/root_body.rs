//! The sealed part of a root: what was backed up, and what the point holds.
//!
//! [`RootBody::encode`] writes the fields in the order of the structures below; FORMAT.md has the table.

use crate::clock::Moment;
use crate::id::{AppId, ChunkId, PointId, VolumeName};
use crate::wire::{Decoder, Encoder, Malformed};

/// The sealed part of a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootBody {
    /// The application.
    pub application: AppId,
    /// The UID of its namespace. It distinguishes the namespace from a later one of the same name. Empty outside of Kubernetes.
    pub namespace_uid: String,
    /// The host or node that coordinated.
    pub host: String,
    /// The release that wrote it.
    pub writer: String,
    /// The parent, whose maps predicted this point's maps.
    pub parent: Option<PointId>,
    /// How long the backup took, in ms.
    pub duration_ms: u64,
    /// How many bytes the repository grew by, with metadata but without this root.
    pub stored_bytes: u64,
    /// The requested lock period of the point, in ms; 0: the repository's.
    pub lock_ms: u64,
    /// Volumes and streams.
    pub volumes: Vec<VolumeEntry>,
    /// Volumes that the application has and this point does not have.
    pub skipped: Vec<Skipped>,
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

/// The map of a volume as the root signs it: ids of plaintext. The placement says where they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapId {
    /// Bytes of the volume.
    pub len: u64,
    /// Level of the topmost chunk.
    pub level: u8,
    /// The topmost chunk; `None`: the volume is one hole.
    pub chunk: Option<ChunkId>,
}

/// A note of a volume begins with this if space that its file system reports as free was left out, or some of it. Its holes then
/// do not show what the device has there.
pub const FREE_LEFT_OUT: &str = "free space was left out: ";
/// The note of a volume that is only a member of a set of devices begins with this. Then come how many devices the set has, and
/// which set it is.
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
    /// Problems that were reported while it was read but did not fail it.
    pub notes: Vec<String>,
    /// How it was read, and how it lies in the repository.
    pub layout: Layout,
    /// When its own snapshot was taken.
    pub moment: Moment,
    /// The file system that its superblock names.
    pub file_system: FileSystem,
    /// Facts about its claim and its persistent volume: a JSON object in one line with sorted keys; empty outside of Kubernetes.
    pub claim: String,
}

/// A file system, as described by its superblock. Empty if there is no known one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileSystem {
    /// Its kind: `ext4`, `xfs`, `btrfs` and the like.
    pub kind: String,
    /// Its label.
    pub label: String,
}

/// A volume that was not backed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its name.
    pub name: VolumeName,
    /// Why.
    pub reason: String,
}

/// How a volume was read, and how it lies in the repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// This many points in a row, including this one, rest on changed-block lists that somebody else made; 0: all of it was read.
    pub by_lists: u32,
    /// Bytes outside of this point's changed-block list that were read as a sample and compared with the parent.
    pub sampled_bytes: u64,
    /// How many reads from the store a restore takes.
    pub ranges: u64,
    /// Bytes of plaintext that a restore opens in these reads: more than the volume's data if it uses parts of chunks.
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

impl VolumeEntry {
    fn encode(&self, e: &mut Encoder) {
        e.text(self.name.as_str()).u8(self.kind as u8).u32(self.sector_bytes);
        self.map.encode(e);
        e.u64(self.hole_bytes).u64(self.new_bytes).u64(self.stored_bytes).count(self.notes.len());
        for note in &self.notes {
            e.text(note);
        }
        self.layout.encode(e);
        self.file_system.encode(e.i64(self.moment.millis()));
        e.text(&self.claim);
    }

    fn decode(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            name: d.text("volume name")?.parse().map_err(|_| d.bad("volume name"))?,
            kind: match d.u8("volume kind")? {
                1 => VolumeKind::Image,
                2 => VolumeKind::Stream,
                _ => return Err(d.bad("volume kind")),
            },
            sector_bytes: d.u32("sector size")?,
            map: MapId::decode(d)?,
            hole_bytes: d.u64("hole bytes")?,
            new_bytes: d.u64("new bytes")?,
            stored_bytes: d.u64("stored bytes")?,
            notes: {
                let n = d.count(4, "note count")?;
                (0..n).map(|_| d.text("note")).collect::<Result<_, _>>()?
            },
            layout: Layout::decode(d)?,
            moment: Moment::from_millis(d.i64("moment of the volume")?),
            file_system: FileSystem::decode(d)?,
            claim: d.text("claim")?,
        })
    }
}

impl Skipped {
    pub(super) fn encode_all(all: &[Self], e: &mut Encoder) {
        e.count(all.len());
        for skipped in all {
            e.text(skipped.name.as_str()).text(&skipped.reason);
        }
    }

    pub(super) fn decode_all(d: &mut Decoder<'_>) -> Result<Vec<Self>, Malformed> {
        let n = d.count(8, "count of skipped volumes")?;
        let one = |d: &mut Decoder<'_>| {
            let name = d.text("skipped volume")?.parse().map_err(|_| d.bad("skipped volume"))?;
            Ok(Self { name, reason: d.text("reason")? })
        };
        (0..n).map(|_| one(d)).collect()
    }
}

impl FileSystem {
    pub(super) fn encode(&self, e: &mut Encoder) {
        e.text(&self.kind).text(&self.label);
    }

    pub(super) fn decode(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Ok(Self { kind: d.text("file system")?, label: d.text("file system's label")? })
    }
}

impl RootBody {
    /// Whether the volumes' snapshots were taken at different moments: no snapshot shows all volumes at once.
    pub fn moments_differ(&self) -> bool {
        self.volumes.windows(2).any(|v| v[0].moment != v[1].moment)
    }

    /// Its bytes, before sealing.
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new();
        self.application.encode(&mut e);
        e.text(&self.namespace_uid).text(&self.host).text(&self.writer);
        e.text(&self.parent.map(|p| p.to_string()).unwrap_or_default());
        e.u64(self.duration_ms).u64(self.stored_bytes).u64(self.lock_ms).count(self.volumes.len());
        for volume in &self.volumes {
            volume.encode(&mut e);
        }
        Skipped::encode_all(&self.skipped, &mut e);
        e.u8(u8::from(self.manifests.is_some()));
        if let Some(m) = &self.manifests {
            e.u32(m.objects);
            m.map.encode(&mut e);
        }
        e.finish()
    }

    /// Parses the opened part of a root.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut d = Decoder::new(bytes);
        let (application, namespace_uid) = (AppId::decode(&mut d)?, d.text("namespace's UID")?);
        let (host, writer) = (d.text("host")?, d.text("writer")?);
        let parent = Some(d.text("parent")?).filter(|p| !p.is_empty());
        let parent = parent.map(|p| p.parse()).transpose().map_err(|_| d.bad("parent"))?;
        let (duration_ms, stored_bytes, lock_ms) = (d.u64("duration")?, d.u64("stored bytes")?, d.u64("wished lock")?);
        let n = d.count(100, "volume count")?;
        let volumes = (0..n).map(|_| VolumeEntry::decode(&mut d)).collect::<Result<_, _>>()?;
        let skipped = Skipped::decode_all(&mut d)?;
        let manifests = match d.u8("manifests")? {
            0 => None,
            1 => Some(ManifestEntry { objects: d.u32("object count")?, map: MapId::decode(&mut d)? }),
            _ => return Err(d.bad("manifests")),
        };
        d.finish("end of root body")?;
        Ok(Self {
            application,
            namespace_uid,
            host,
            writer,
            parent,
            duration_ms,
            stored_bytes,
            lock_ms,
            volumes,
            skipped,
            manifests,
        })
    }
}
