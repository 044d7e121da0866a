//! Volumes: made, deleted, attached, expanded.

use std::collections::BTreeMap;

use tonic::Status;

use crate::capabilities::{many_nodes, read_only, unsupported};
use crate::csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
use crate::csi::{
    CapacityRange, ControllerPublishVolumeRequest, CreateVolumeRequest, Topology, TopologyRequirement,
    Volume as Answer, VolumeContentSource,
};
use crate::server::Driver;
use crate::state::{Source, Volume, id, make_image};
use crate::switches::Switches;

const MIB: i64 = 1 << 20;
const GIB: i64 = 1 << 30;
/// The size of a volume that nobody named one for.
const DEFAULT_BYTES: i64 = GIB;
const LARGEST_BYTES: i64 = 1 << 46;
/// The parameter of a class that names the bytes of a sector of its devices.
const SECTOR_PARAMETER: &str = "sectorBytes";

/// A volume as the interface shows it.
pub(crate) fn answer(volume: Volume) -> Answer {
    let r#type = volume.source.map(|source| match source {
        Source::Snapshot(snapshot_id) => Type::Snapshot(SnapshotSource { snapshot_id }),
        Source::Volume(volume_id) => Type::Volume(VolumeSource { volume_id }),
    });
    Answer {
        capacity_bytes: volume.bytes,
        volume_id: volume.id,
        volume_context: [].into(),
        content_source: r#type.map(|r#type| VolumeContentSource { r#type: Some(r#type) }),
        accessible_topology: vec![Topology { segments: volume.topology.into_iter().collect() }],
    }
}

/// The size that a range asks for, for something that has at least `least` bytes.
fn size(range: Option<CapacityRange>, least: i64, switches: &Switches) -> Result<i64, Status> {
    let (required, limit) = range.map_or((0, 0), |range| (range.required_bytes, range.limit_bytes));
    if required < 0 || limit < 0 {
        return Err(Status::invalid_argument("a size is negative"));
    }
    let wanted = match (required, limit) {
        (0, 0) => DEFAULT_BYTES.max(least),
        (0, limit) => DEFAULT_BYTES.min(limit),
        (required, _) => required,
    };
    if wanted < least {
        return Err(Status::out_of_range(format!("{wanted} bytes are less than the source's {least}")));
    }
    let unit = if switches.whole_gibibytes { GIB } else { MIB };
    let bytes = if wanted > LARGEST_BYTES { wanted } else { round_up(wanted, unit) };
    if bytes > LARGEST_BYTES || (limit > 0 && bytes > limit) {
        return Err(Status::out_of_range(format!("{bytes} bytes are more than can be had")));
    }
    Ok(bytes)
}

fn round_up(bytes: i64, unit: i64) -> i64 {
    (bytes + unit - 1) / unit * unit
}

/// The zone that a new volume lies in: what is preferred, or anything that is allowed, or this node's.
fn zone(driver: &Driver, required: Option<TopologyRequirement>) -> BTreeMap<String, String> {
    let required = required.unwrap_or_default();
    let chosen = required.preferred.into_iter().chain(required.requisite).next();
    let segments = chosen.map_or_else(|| driver.topology(), |topology| topology.segments.into_iter().collect());
    segments.into_iter().filter(|(name, _)| name == crate::node::ZONE).collect()
}

impl Driver {
    fn source(&self, asked: Option<VolumeContentSource>) -> Result<Option<(Source, i64)>, Status> {
        match asked.and_then(|asked| asked.r#type) {
            Some(Type::Snapshot(SnapshotSource { snapshot_id })) => {
                let snapshot = self.state.snapshot(&snapshot_id)?;
                if !self.state.snapshot_image(&snapshot_id).exists() {
                    return Err(Status::not_found(format!("snapshot {snapshot_id} is gone from the storage")));
                }
                Ok(Some((Source::Snapshot(snapshot_id), snapshot.bytes)))
            }
            Some(Type::Volume(VolumeSource { volume_id })) => {
                let volume = self.state.volume(&volume_id)?;
                Ok(Some((Source::Volume(volume_id), volume.bytes)))
            }
            None => Ok(None),
        }
    }

    pub(crate) fn make_volume(&self, asked: CreateVolumeRequest) -> Result<Volume, Status> {
        if asked.name.is_empty() {
            return Err(Status::invalid_argument("a volume needs a name"));
        }
        let switches = Switches::read(self.state.disk())?;
        if let Some(why) = unsupported(&asked.volume_capabilities, &switches)? {
            return Err(Status::invalid_argument(why));
        }
        let source = self.source(asked.volume_content_source)?;
        let writes = asked.volume_capabilities.iter().any(|capability| !read_only(capability));
        if switches.snapshots_are_read_only && writes && matches!(source, Some((Source::Snapshot(_), _))) {
            return Err(Status::invalid_argument("a volume from a snapshot can only be read here: ReadOnlyMany"));
        }
        let bytes = size(asked.capacity_range, source.as_ref().map_or(0, |(_, bytes)| *bytes), &switches)?;
        let id = id("volume", &asked.name);
        if let Ok(volume) = self.state.volume(&id) {
            let limit = asked.capacity_range.map_or(0, |range| range.limit_bytes);
            let fits = volume.bytes >= bytes && (limit == 0 || volume.bytes <= limit);
            let same = volume.name == asked.name && volume.source.as_ref() == source.as_ref().map(|(source, _)| source);
            let taken = || Status::already_exists(format!("{} is there, and another one", asked.name));
            return if fits && same { Ok(volume) } else { Err(taken()) };
        }
        let sector = asked.parameters.get(SECTOR_PARAMETER).map_or(Ok(512), |text| text.parse());
        let sector = sector.map_err(|_| Status::invalid_argument(format!("{SECTOR_PARAMETER} is no number")))?;
        let image = source.as_ref().map(|(source, _)| match source {
            Source::Snapshot(id) => self.state.snapshot_image(id),
            Source::Volume(id) => self.state.volume_image(id),
        });
        make_image(&self.state.volume_image(&id), image.as_deref(), bytes)?;
        let topology = zone(self, asked.accessibility_requirements);
        let source = source.map(|(source, _)| source);
        let volume = Volume { id, name: asked.name, bytes, topology, source, sector, attached: BTreeMap::new() };
        self.state.put_volume(&volume)?;
        Ok(volume)
    }

    pub(crate) fn delete_volume(&self, id: &str) -> Result<(), Status> {
        if id.is_empty() {
            return Err(Status::invalid_argument("no volume is named"));
        }
        match self.state.volume(id) {
            Ok(volume) if !volume.attached.is_empty() => {
                Err(Status::failed_precondition(format!("volume {id} is attached to {:?}", volume.attached.keys())))
            }
            Ok(_) => self.state.remove_volume(id),
            // It was deleted before.
            Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
            Err(status) => Err(status),
        }
    }

    pub(crate) fn attach_volume(&self, asked: &ControllerPublishVolumeRequest) -> Result<(), Status> {
        if asked.volume_id.is_empty() || asked.node_id.is_empty() {
            return Err(Status::invalid_argument("a volume and a node must be named"));
        }
        let capability = asked.volume_capability.as_ref();
        let capability = capability.ok_or_else(|| Status::invalid_argument("no capability is given"))?;
        let mut volume = self.state.volume(&asked.volume_id)?;
        if !self.knows_node(&asked.node_id) {
            return Err(Status::not_found(format!("there is no node {}", asked.node_id)));
        }
        let reads = asked.readonly || read_only(capability);
        match volume.attached.get(&asked.node_id) {
            Some(before) if *before == reads => return Ok(()),
            Some(_) => return Err(Status::already_exists("it is attached to this node in the other way")),
            None => {}
        }
        if let Some(other) = volume.attached.keys().next().filter(|_| !many_nodes(capability)) {
            return Err(Status::failed_precondition(format!("volume {} is attached to {other}", volume.id)));
        }
        let limit = Switches::read(self.state.disk())?.volumes_per_node;
        let attached = self.state.volumes()?.iter().filter(|v| v.attached.contains_key(&asked.node_id)).count();
        if limit > 0 && i64::try_from(attached).is_ok_and(|count| count >= limit) {
            return Err(Status::resource_exhausted(format!("{limit} volumes are attached to {}", asked.node_id)));
        }
        volume.attached.insert(asked.node_id.clone(), reads);
        self.state.put_volume(&volume)
    }

    pub(crate) fn detach_volume(&self, id: &str, node: &str) -> Result<(), Status> {
        if id.is_empty() {
            return Err(Status::invalid_argument("no volume is named"));
        }
        match self.state.volume(id) {
            Ok(mut volume) => {
                if node.is_empty() {
                    volume.attached.clear();
                } else if volume.attached.remove(node).is_none() {
                    return Ok(());
                }
                self.state.put_volume(&volume)
            }
            Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
            Err(status) => Err(status),
        }
    }

    /// Makes a volume larger. Returns its size.
    pub(crate) fn expand_volume(&self, id: &str, range: Option<CapacityRange>) -> Result<i64, Status> {
        if id.is_empty() {
            return Err(Status::invalid_argument("no volume is named"));
        }
        let range = range.ok_or_else(|| Status::invalid_argument("no size is given"))?;
        let mut volume = self.state.volume(id)?;
        let bytes = size(Some(range), 0, &Switches::read(self.state.disk())?)?;
        if bytes > volume.bytes {
            make_image(&self.state.volume_image(id), None, bytes)?;
            volume.bytes = bytes;
            self.state.put_volume(&volume)?;
        }
        Ok(volume.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_and_stay_in_their_limits() {
        let range = |required_bytes, limit_bytes| Some(CapacityRange { required_bytes, limit_bytes });
        let plain = Switches::default();
        assert_eq!(size(None, 0, &plain).unwrap(), GIB);
        assert_eq!(size(range(1, 0), 0, &plain).unwrap(), MIB);
        assert_eq!(size(range(0, 5 * MIB), 0, &plain).unwrap(), 5 * MIB);
        assert!(size(range(MIB + 1, MIB + 2), 0, &plain).is_err());
        assert!(size(range(MIB, 0), 2 * MIB, &plain).is_err());
        let whole = Switches { whole_gibibytes: true, ..Switches::default() };
        assert_eq!(size(range(GIB + 1, 0), 0, &whole).unwrap(), 2 * GIB);
    }
}
