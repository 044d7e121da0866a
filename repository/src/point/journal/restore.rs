//! The journal's record of a restore.

use super::{flag, volume};
use crate::id::{AppId, PointId, VolumeName};
use crate::wire::{Decoder, Encoder, Malformed};

/// The order of a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restore {
    /// The application.
    pub application: AppId,
    /// The point.
    pub point: PointId,
    /// Who ordered it, for people.
    pub ordered_by: String,
    /// Overwrite what is there.
    pub force: bool,
    /// Zero the part of a larger target that lies beyond the volume.
    pub discard_rest: bool,
    /// An operator ordered it: targets need not be listed in an inventory.
    pub by_operator: bool,
    /// The targets.
    pub targets: Vec<Target>,
}

/// A target of a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The volume.
    pub volume: VolumeName,
    /// On which node.
    pub node: String,
    /// The device, file or pipe there.
    pub path: String,
    /// Whether it is written in order.
    pub stream: bool,
}

/// What a restore did for a target, over all attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes of holes.
    pub hole_bytes: u64,
    /// Bytes fetched.
    pub fetched_bytes: u64,
    /// Ranged reads.
    pub requests: u64,
}

impl Restore {
    pub(super) fn encode(&self, e: &mut Encoder) {
        self.application.encode(e);
        e.text(&self.point.to_string()).text(&self.ordered_by);
        e.u8(u8::from(self.force))
            .u8(u8::from(self.discard_rest))
            .u8(u8::from(self.by_operator))
            .count(self.targets.len());
        for t in &self.targets {
            e.text(t.volume.as_str()).text(&t.node).text(&t.path).u8(u8::from(t.stream));
        }
    }

    pub(super) fn decode(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let application = AppId::decode(d)?;
        let point = d.text("point")?.parse().map_err(|_| d.bad("point"))?;
        let ordered_by = d.text("ordered by")?;
        let (force, discard_rest) = (flag(d, "force")?, flag(d, "discard rest")?);
        let by_operator = flag(d, "by an operator")?;
        let n = d.count(4 + 4 + 4 + 1, "target count")?;
        let mut targets = Vec::with_capacity(n);
        for _ in 0..n {
            let (volume, node, path) = (volume(d)?, d.text("node")?, d.text("path")?);
            targets.push(Target { volume, node, path, stream: flag(d, "stream")? });
        }
        Ok(Self { application, point, ordered_by, force, discard_rest, by_operator, targets })
    }
}

impl Work {
    pub(super) fn encode(&self, e: &mut Encoder) {
        e.u64(self.written_bytes).u64(self.hole_bytes).u64(self.fetched_bytes).u64(self.requests);
    }

    pub(super) fn decode(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            written_bytes: d.u64("written bytes")?,
            hole_bytes: d.u64("hole bytes")?,
            fetched_bytes: d.u64("fetched bytes")?,
            requests: d.u64("requests")?,
        })
    }
}

impl std::ops::Add for Work {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        Self {
            written_bytes: self.written_bytes.saturating_add(o.written_bytes),
            hole_bytes: self.hole_bytes.saturating_add(o.hole_bytes),
            fetched_bytes: self.fetched_bytes.saturating_add(o.fetched_bytes),
            requests: self.requests.saturating_add(o.requests),
        }
    }
}
