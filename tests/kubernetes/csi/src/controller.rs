//! The controller's calls. Volumes and snapshots do the work.

use tonic::{Request, Response, Status};

use crate::capabilities::unsupported;
use crate::csi::controller_server::Controller;
use crate::csi::controller_service_capability::{Rpc, Type, rpc};
use crate::csi::list_snapshots_response::Entry as SnapshotEntry;
use crate::csi::list_volumes_response::{Entry as VolumeEntry, VolumeStatus};
use crate::csi::validate_volume_capabilities_response::Confirmed;
use crate::csi::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetCapabilitiesRequest,
    ControllerGetCapabilitiesResponse, ControllerPublishVolumeRequest, ControllerPublishVolumeResponse,
    ControllerServiceCapability, ControllerUnpublishVolumeRequest, ControllerUnpublishVolumeResponse,
    CreateSnapshotRequest, CreateSnapshotResponse, CreateVolumeRequest, CreateVolumeResponse, DeleteSnapshotRequest,
    DeleteSnapshotResponse, DeleteVolumeRequest, DeleteVolumeResponse, ListSnapshotsRequest, ListSnapshotsResponse,
    ListVolumesRequest, ListVolumesResponse, ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse,
};
use crate::pages::page;
use crate::server::Driver;
use crate::switches::Switches;
use crate::{snapshots, volumes};

#[tonic::async_trait]
impl Controller for Driver {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let _lock = self.state.locked().await;
        let volume = self.make_volume(request.into_inner())?;
        Ok(Response::new(CreateVolumeResponse { volume: Some(volumes::answer(volume)) }))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let _lock = self.state.locked().await;
        self.delete_volume(&request.into_inner().volume_id)?;
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn controller_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        let _lock = self.state.locked().await;
        self.attach_volume(&request.into_inner())?;
        Ok(Response::new(ControllerPublishVolumeResponse {}))
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        let _lock = self.state.locked().await;
        let asked = request.into_inner();
        self.detach_volume(&asked.volume_id, &asked.node_id)?;
        Ok(Response::new(ControllerUnpublishVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let asked = request.into_inner();
        if asked.volume_id.is_empty() {
            return Err(Status::invalid_argument("no volume is named"));
        }
        let why = unsupported(&asked.volume_capabilities, &Switches::read(self.state.disk())?)?;
        self.state.volume(&asked.volume_id)?;
        let (volume_context, parameters) = (asked.volume_context, asked.parameters);
        let all = Confirmed { volume_context, volume_capabilities: asked.volume_capabilities, parameters };
        let confirmed = why.is_none().then_some(all);
        let message = why.unwrap_or_default();
        Ok(Response::new(ValidateVolumeCapabilitiesResponse { confirmed, message }))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let asked = request.into_inner();
        let (found, next_token) = page(self.state.volumes()?, |v| &v.id, &asked.starting_token, asked.max_entries)?;
        let entry = |volume: crate::state::Volume| {
            let published_node_ids = volume.attached.keys().cloned().collect();
            VolumeEntry { status: Some(VolumeStatus { published_node_ids }), volume: Some(volumes::answer(volume)) }
        };
        Ok(Response::new(ListVolumesResponse { entries: found.into_iter().map(entry).collect(), next_token }))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let all = [
            rpc::Type::CreateDeleteVolume,
            rpc::Type::PublishUnpublishVolume,
            rpc::Type::ListVolumes,
            rpc::Type::ListVolumesPublishedNodes,
            rpc::Type::CreateDeleteSnapshot,
            rpc::Type::ListSnapshots,
            rpc::Type::CloneVolume,
            rpc::Type::PublishReadonly,
            rpc::Type::ExpandVolume,
        ];
        let capability = |r#type: rpc::Type| {
            let rpc = Type::Rpc(Rpc { r#type: r#type.into() });
            ControllerServiceCapability { r#type: Some(rpc) }
        };
        let capabilities = all.map(capability).into();
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        let _lock = self.state.locked().await;
        let switches = Switches::read(self.state.disk())?;
        let asked = request.into_inner();
        let snapshot = self.cut_snapshot(&asked.source_volume_id, &asked.name, &switches).await?;
        Ok(Response::new(CreateSnapshotResponse { snapshot: Some(snapshots::answer(snapshot, &switches)) }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        let _lock = self.state.locked().await;
        self.delete_snapshot_of(&request.into_inner().snapshot_id)?;
        Ok(Response::new(DeleteSnapshotResponse {}))
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let asked = request.into_inner();
        let switches = Switches::read(self.state.disk())?;
        let mut all = self.state.snapshots()?;
        all.retain(|snapshot| {
            let is = |wanted: &str, has: &str| wanted.is_empty() || wanted == has;
            is(&asked.source_volume_id, &snapshot.volume) && is(&asked.snapshot_id, &snapshot.id)
        });
        // One that vanished is not known to the storage either.
        all.retain(|snapshot| self.state.snapshot_image(&snapshot.id).exists());
        let (found, next_token) = page(all, |s| &s.id, &asked.starting_token, asked.max_entries)?;
        let entry = |snapshot| SnapshotEntry { snapshot: Some(snapshots::answer(snapshot, &switches)) };
        Ok(Response::new(ListSnapshotsResponse { entries: found.into_iter().map(entry).collect(), next_token }))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        let _lock = self.state.locked().await;
        let asked = request.into_inner();
        let capacity_bytes = self.expand_volume(&asked.volume_id, asked.capacity_range)?;
        Ok(Response::new(ControllerExpandVolumeResponse { capacity_bytes, node_expansion_required: true }))
    }
}
