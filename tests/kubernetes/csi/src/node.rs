//! What the driver does on a node: devices, file systems, mounts.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use tonic::{Request, Response, Status};

use crate::capabilities::{Use, read_only, wanted};
use crate::csi::node_server::Node;
use crate::csi::node_service_capability::{Rpc, Type, rpc};
use crate::csi::volume_usage::Unit;
use crate::csi::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse,
    NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
    NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest,
    NodeUnstageVolumeResponse, Topology, VolumeUsage,
};
use crate::file_systems::{bind, format_and_mount, grow, is_mounted, unmount};
use crate::server::Driver;
use crate::switches::Switches;
use crate::{layer, loops};

/// The part of the topology that volumes are bound to.
pub(crate) const ZONE: &str = "topology.csi.milkrun.test/zone";
/// The part that names the node.
const NODE: &str = "topology.csi.milkrun.test/node";

fn given<'a>(what: &str, text: &'a str) -> Result<&'a str, Status> {
    if text.is_empty() { Err(Status::invalid_argument(format!("no {what} is given"))) } else { Ok(text) }
}

fn failed(path: &Path, e: &std::io::Error) -> Status {
    Status::internal(format!("{}: {e}", path.display()))
}

impl Driver {
    pub(crate) fn topology(&self) -> BTreeMap<String, String> {
        [(ZONE.into(), self.args.zone.clone()), (NODE.into(), self.args.node.clone())].into()
    }

    /// Whether a driver runs on the node: each leaves a file with its name.
    pub(crate) fn knows_node(&self, node: &str) -> bool {
        node == self.args.node || self.node_file(node).is_some_and(|file| file.exists())
    }

    fn node_file(&self, node: &str) -> Option<PathBuf> {
        (!node.contains('/')).then(|| self.state.disk().join(format!("{node}.node")))
    }

    /// The device of a volume on this node, if it is attached.
    fn device(&self, volume: &str) -> Result<Option<String>, Status> {
        let kept = self.state.device(&self.args.node, volume)?;
        loops::attached(&self.state.volume_image(volume), kept.as_ref())
    }

    fn stage(&self, asked: &NodeStageVolumeRequest) -> Result<(), Status> {
        let id = given("volume", &asked.volume_id)?;
        let place = Path::new(given("staging path", &asked.staging_target_path)?);
        let wanted = wanted(asked.volume_capability.as_ref())?;
        let volume = self.state.volume(id)?;
        let Some(reads) = volume.attached.get(&self.args.node) else {
            return Err(Status::failed_precondition(format!("volume {id} is not attached to {}", self.args.node)));
        };
        let reads = *reads || asked.volume_capability.as_ref().is_some_and(read_only);
        let device = if let Some(device) = self.device(id)? {
            device
        } else {
            let device = loops::attach(&self.state.volume_image(id), volume.sector, reads)?;
            self.state.put_device(&self.args.node, id, Some(&device))?;
            device
        };
        match wanted {
            Use::Mount { kind, flags } if !is_mounted(place)? => {
                let device = layer::open(&device, Switches::read(self.state.disk())?.layer)?;
                format_and_mount(&device, &kind, place, &flags, reads)
            }
            _ => Ok(()),
        }
    }

    fn unstage(&self, asked: &NodeUnstageVolumeRequest) -> Result<(), Status> {
        let id = given("volume", &asked.volume_id)?;
        unmount(Path::new(given("staging path", &asked.staging_target_path)?))?;
        if let Some(device) = self.device(id)? {
            layer::close(&device)?;
            loops::detach(&device)?;
        }
        self.state.put_device(&self.args.node, id, None)
    }

    fn publish(&self, asked: &NodePublishVolumeRequest) -> Result<(), Status> {
        let id = given("volume", &asked.volume_id)?;
        let place = Path::new(given("target path", &asked.target_path)?);
        let wanted = wanted(asked.volume_capability.as_ref())?;
        self.state.volume(id)?;
        let staged = given("staging path", &asked.staging_target_path)?;
        if is_mounted(place)? {
            return Ok(());
        }
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).map_err(|e| failed(parent, &e))?;
        }
        match wanted {
            Use::Mount { .. } => {
                fs::create_dir_all(place).map_err(|e| failed(place, &e))?;
                bind(Path::new(staged), place, asked.readonly)
            }
            Use::Block => {
                let device = self.device(id)?;
                let device = device.ok_or_else(|| Status::failed_precondition(format!("volume {id} is not staged")))?;
                File::create(place).map_err(|e| failed(place, &e))?;
                bind(Path::new(&device), place, false)
            }
        }
    }

    fn usage(asked: &NodeGetVolumeStatsRequest) -> Result<Vec<VolumeUsage>, Status> {
        let place = Path::new(&asked.volume_path);
        let found = fs::metadata(place).map_err(|e| Status::not_found(format!("{}: {e}", place.display())))?;
        let sized = |total: u64, free: u64, unit: Unit| {
            let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            VolumeUsage { available: whole(free), total: whole(total), used: whole(total - free), unit: unit.into() }
        };
        if found.file_type().is_block_device() {
            let mut device = File::open(place).map_err(|e| failed(place, &e))?;
            let bytes = std::io::Seek::seek(&mut device, std::io::SeekFrom::End(0)).map_err(|e| failed(place, &e))?;
            return Ok(vec![sized(bytes, 0, Unit::Bytes)]);
        }
        let stat = nix::sys::statvfs::statvfs(place).map_err(|e| failed(place, &e.into()))?;
        let unit = stat.fragment_size();
        let bytes = sized(stat.blocks() * unit, stat.blocks_free() * unit, Unit::Bytes);
        Ok(vec![bytes, sized(stat.files(), stat.files_free(), Unit::Inodes)])
    }

    fn expand(&self, asked: &NodeExpandVolumeRequest) -> Result<i64, Status> {
        let id = given("volume", &asked.volume_id)?;
        let place = Path::new(given("path", &asked.volume_path)?);
        let volume = self.state.volume(id)?;
        let device = self.device(id)?;
        let device = device.ok_or_else(|| Status::not_found(format!("volume {id} is not on {}", self.args.node)))?;
        loops::grow(&device)?;
        if let Some(Use::Mount { kind, .. }) = asked.volume_capability.as_ref().map(|c| wanted(Some(c))).transpose()? {
            grow(&device, &kind, place)?;
        }
        Ok(volume.bytes)
    }
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let _lock = self.state.locked().await;
        self.stage(&request.into_inner())?;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let _lock = self.state.locked().await;
        self.unstage(&request.into_inner())?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let _lock = self.state.locked().await;
        self.publish(&request.into_inner())?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let _lock = self.state.locked().await;
        let asked = request.into_inner();
        given("volume", &asked.volume_id)?;
        let place = Path::new(given("target path", &asked.target_path)?);
        unmount(place)?;
        let removed = if place.is_dir() { fs::remove_dir(place) } else { fs::remove_file(place) };
        match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(place, &e)),
            _ => Ok(Response::new(NodeUnpublishVolumeResponse {})),
        }
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let asked = request.into_inner();
        given("volume", &asked.volume_id)?;
        given("path", &asked.volume_path)?;
        self.state.volume(&asked.volume_id)?;
        Ok(Response::new(NodeGetVolumeStatsResponse { usage: Self::usage(&asked)? }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let _lock = self.state.locked().await;
        let capacity_bytes = self.expand(&request.into_inner())?;
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let all = [rpc::Type::StageUnstageVolume, rpc::Type::GetVolumeStats, rpc::Type::ExpandVolume];
        let capability =
            |r#type: rpc::Type| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: r#type.into() })) };
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities: all.map(capability).into() }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        let file = self.node_file(&self.args.node).ok_or_else(|| Status::internal("a node's name with a slash"))?;
        fs::write(&file, "").map_err(|e| failed(&file, &e))?;
        let segments = self.topology().into_iter().collect();
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.args.node.clone(),
            max_volumes_per_node: Switches::read(self.state.disk())?.volumes_per_node,
            accessible_topology: Some(Topology { segments }),
        }))
    }
}
