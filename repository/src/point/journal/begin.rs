//! The journal's record of a backup: all that is needed to begin the backup again.

use super::flag;
use crate::clock::Moment;
use crate::id::{AppId, PointId, VolumeName};
use crate::point::root::{Class, Skipped};
use crate::wire::{Decoder, Encoder, Malformed};

/// The order of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// The application.
    pub application: AppId,
    /// The UID of its namespace; empty outside of Kubernetes.
    pub namespace_uid: String,
    /// Which of the application's keys it uses.
    pub domain: u32,
    /// The class by which retention counts the point.
    pub class: Class,
    /// How long the point stays locked, in ms; 0: as the repository says.
    pub lock_ms: u64,
    /// The parent, which is used for prediction.
    pub parent: Option<PointId>,
    /// zstd level.
    pub level: i32,
    /// Compress harder while the volume waits for the line to the store.
    pub adapt_level: bool,
    /// Store a chunk with a changed page whole.
    pub whole_chunks: bool,
    /// Read devices that are mounted read-write.
    pub allow_mounted: bool,
    /// Accept files that change.
    pub allow_changing: bool,
    /// Accept volumes and streams without a byte.
    pub allow_empty: bool,
    /// Sources are added while the run is under way.
    pub open: bool,
    /// Who ordered it, for people.
    pub ordered_by: String,
    /// The host that coordinates, for people.
    pub host: String,
    /// Volumes and streams.
    pub sources: Vec<Source>,
    /// Volumes that are left out.
    pub skipped: Vec<Skipped>,
    /// How many manifests.
    pub manifest_objects: u32,
    /// The manifests as JSON lines.
    pub manifests: Vec<u8>,
}

/// A volume or stream of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name.
    pub name: VolumeName,
    /// Whether it is a stream.
    pub stream: bool,
    /// Its bytes; 0: not known.
    pub size: u64,
    /// When its snapshot was taken, where that is known.
    pub moment: Option<Moment>,
    /// Facts of its claim and its persistent volume, in JSON; empty outside of Kubernetes.
    pub claim: String,
    /// Where it can be read: node and path.
    pub reach: Vec<(String, String)>,
}

/// What completes a run that was opened without sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complete {
    /// Volumes that are left out.
    pub skipped: Vec<Skipped>,
    /// How many manifests.
    pub manifest_objects: u32,
    /// The manifests as JSON lines.
    pub manifests: Vec<u8>,
}

impl Complete {
    pub(super) fn encode(&self, e: &mut Encoder) {
        Skipped::encode_all(&self.skipped, e);
        e.u32(self.manifest_objects).bytes(&self.manifests);
    }

    pub(super) fn decode(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let skipped = Skipped::decode_all(d)?;
        Ok(Self { skipped, manifest_objects: d.u32("object count")?, manifests: d.bytes("manifests")?.to_vec() })
    }
}

impl Source {
    pub(super) fn encode(&self, e: &mut Encoder) {
        e.text(self.name.as_str()).u8(u8::from(self.stream)).u64(self.size);
        e.i64(self.moment.map_or(0, Moment::millis)).text(&self.claim).count(self.reach.len());
        for (node, path) in &self.reach {
            e.text(node).text(path);
        }
    }

    pub(super) fn decode(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let name = d.text("source")?.parse().map_err(|_| d.bad("source"))?;
        let (stream, size) = (flag(d, "stream")?, d.u64("size")?);
        let moment = Some(d.i64("moment")?).filter(|&ms| ms != 0).map(Moment::from_millis);
        let claim = d.text("claim")?;
        let n = d.count(8, "place count")?;
        let reach = (0..n).map(|_| Ok((d.text("node")?, d.text("path")?))).collect::<Result<_, Malformed>>()?;
        Ok(Self { name, stream, size, moment, claim, reach })
    }
}

impl Begin {
    pub(super) fn encode(&self, e: &mut Encoder) {
        self.application.encode(e);
        e.text(&self.namespace_uid).u32(self.domain).u8(self.class as u8).u64(self.lock_ms);
        e.text(&self.parent.map(|p| p.to_string()).unwrap_or_default()).i64(self.level.into());
        for flag in
            [self.adapt_level, self.whole_chunks, self.allow_mounted, self.allow_changing, self.allow_empty, self.open]
        {
            e.u8(u8::from(flag));
        }
        e.text(&self.ordered_by).text(&self.host).count(self.sources.len());
        for source in &self.sources {
            source.encode(e);
        }
        Skipped::encode_all(&self.skipped, e);
        e.u32(self.manifest_objects).bytes(&self.manifests);
    }

    pub(super) fn decode(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let (application, namespace_uid) = (AppId::decode(d)?, d.text("namespace's UID")?);
        let domain = d.u32("domain")?;
        let class = Class::from_u8(d.u8("class")?).ok_or_else(|| d.bad("class"))?;
        let lock_ms = d.u64("lock period")?;
        let parent = Some(d.text("parent")?).filter(|p| !p.is_empty());
        let parent = parent.map(|p| p.parse()).transpose().map_err(|_| d.bad("parent"))?;
        Ok(Self {
            application,
            namespace_uid,
            domain,
            class,
            lock_ms,
            parent,
            level: i32::try_from(d.i64("level")?).map_err(|_| d.bad("level"))?,
            adapt_level: flag(d, "adapt level")?,
            whole_chunks: flag(d, "whole chunks")?,
            allow_mounted: flag(d, "allow mounted")?,
            allow_changing: flag(d, "allow changing")?,
            allow_empty: flag(d, "allow empty")?,
            open: flag(d, "open")?,
            ordered_by: d.text("ordered by")?,
            host: d.text("host")?,
            sources: {
                let n = d.count(4 + 1 + 8 + 8 + 4 + 4, "source count")?;
                (0..n).map(|_| Source::decode(d)).collect::<Result<_, _>>()?
            },
            skipped: Skipped::decode_all(d)?,
            manifest_objects: d.u32("object count")?,
            manifests: d.bytes("manifests")?.to_vec(),
        })
    }
}
