//! Snapshots of many volumes at one moment.

use std::fs;
use std::time::SystemTime;

use tonic::{Request, Response, Status};

use crate::csi::group_controller_server::GroupController;
use crate::csi::group_controller_service_capability::{Rpc, Type, rpc};
use crate::csi::{
    CreateVolumeGroupSnapshotRequest, CreateVolumeGroupSnapshotResponse, DeleteVolumeGroupSnapshotRequest,
    DeleteVolumeGroupSnapshotResponse, GetVolumeGroupSnapshotRequest, GetVolumeGroupSnapshotResponse,
    GroupControllerGetCapabilitiesRequest, GroupControllerGetCapabilitiesResponse, GroupControllerServiceCapability,
    VolumeGroupSnapshot,
};
use crate::server::Driver;
use crate::snapshots::{answer, now, timestamp};
use crate::state::{Snapshot, id, make_image};
use crate::switches::Switches;

/// How often a group is cut again because somebody wrote meanwhile.
const TRIES: u32 = 100;

impl Driver {
    /// Copies all images at one moment: copies that were made while an image was written are made again.
    fn cut_all(&self, snapshots: &[Snapshot]) -> Result<(), Status> {
        for _ in 0..TRIES {
            let before = self.written(snapshots)?;
            for snapshot in snapshots {
                let source = self.state.volume_image(&snapshot.volume);
                make_image(&self.state.snapshot_image(&snapshot.id), Some(&source), snapshot.bytes)?;
            }
            if self.written(snapshots)? == before {
                return Ok(());
            }
        }
        Err(Status::aborted("the volumes are written too often for one moment"))
    }

    /// When each image was last written.
    fn written(&self, snapshots: &[Snapshot]) -> Result<Vec<SystemTime>, Status> {
        let modified = |snapshot: &Snapshot| {
            let image = self.state.volume_image(&snapshot.volume);
            let time = fs::metadata(&image).and_then(|found| found.modified());
            time.map_err(|e| Status::internal(format!("{}: {e}", image.display())))
        };
        snapshots.iter().map(modified).collect()
    }

    async fn cut_group(&self, name: &str, volumes: &[String], switches: &Switches) -> Result<Vec<Snapshot>, Status> {
        if name.is_empty() || volumes.is_empty() {
            return Err(Status::invalid_argument("a group needs a name and volumes"));
        }
        let group = id("group", name);
        let before = self.group(&group)?;
        if !before.is_empty() {
            let mut of: Vec<&String> = before.iter().map(|snapshot| &snapshot.volume).collect();
            let mut asked: Vec<&String> = volumes.iter().collect();
            of.sort();
            asked.sort();
            let taken = || Status::already_exists(format!("{name} is there, of other volumes"));
            return if of == asked { Ok(before.clone()) } else { Err(taken()) };
        }
        if let Some(text) = &switches.groups_fail {
            return Err(Status::failed_precondition(text.clone()));
        }
        switches.delay_cut().await?;
        let snapshot = |volume: &String| {
            let bytes = self.state.volume(volume)?.bytes;
            let name = format!("{name}/{volume}");
            let (id, group) = (id("snapshot", &name), group.clone());
            Ok(Snapshot { id, name, volume: volume.clone(), bytes, cut: now(), group })
        };
        let snapshots = volumes.iter().map(snapshot).collect::<Result<Vec<Snapshot>, Status>>()?;
        self.cut_all(&snapshots)?;
        for snapshot in &snapshots {
            self.state.put_snapshot(snapshot)?;
            self.vanish(snapshot, switches)?;
        }
        Ok(snapshots)
    }

    fn group(&self, group: &str) -> Result<Vec<Snapshot>, Status> {
        let mut all = self.state.snapshots()?;
        all.retain(|snapshot| snapshot.group == group);
        Ok(all)
    }

    fn show_group(&self, id: String, found: Vec<Snapshot>) -> Result<VolumeGroupSnapshot, Status> {
        let switches = Switches::read(self.state.disk())?;
        let cut = found.iter().map(|snapshot| snapshot.cut).max().map(timestamp);
        let snapshots: Vec<_> = found.into_iter().map(|snapshot| answer(snapshot, &switches)).collect();
        let ready_to_use = snapshots.iter().all(|snapshot| snapshot.ready_to_use);
        Ok(VolumeGroupSnapshot { group_snapshot_id: id, snapshots, creation_time: cut, ready_to_use })
    }
}

#[tonic::async_trait]
impl GroupController for Driver {
    async fn group_controller_get_capabilities(
        &self,
        _: Request<GroupControllerGetCapabilitiesRequest>,
    ) -> Result<Response<GroupControllerGetCapabilitiesResponse>, Status> {
        let rpc = Type::Rpc(Rpc { r#type: rpc::Type::CreateDeleteGetVolumeGroupSnapshot.into() });
        let capabilities = vec![GroupControllerServiceCapability { r#type: Some(rpc) }];
        Ok(Response::new(GroupControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<CreateVolumeGroupSnapshotRequest>,
    ) -> Result<Response<CreateVolumeGroupSnapshotResponse>, Status> {
        let _lock = self.state.locked().await;
        let asked = request.into_inner();
        let switches = Switches::read(self.state.disk())?;
        let snapshots = self.cut_group(&asked.name, &asked.source_volume_ids, &switches).await?;
        let group_snapshot = Some(self.show_group(id("group", &asked.name), snapshots)?);
        Ok(Response::new(CreateVolumeGroupSnapshotResponse { group_snapshot }))
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<DeleteVolumeGroupSnapshotRequest>,
    ) -> Result<Response<DeleteVolumeGroupSnapshotResponse>, Status> {
        let _lock = self.state.locked().await;
        let asked = request.into_inner();
        if asked.group_snapshot_id.is_empty() {
            return Err(Status::invalid_argument("no group is named"));
        }
        for snapshot in self.group(&asked.group_snapshot_id)? {
            self.delete_snapshot_of(&snapshot.id)?;
        }
        Ok(Response::new(DeleteVolumeGroupSnapshotResponse {}))
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<GetVolumeGroupSnapshotRequest>,
    ) -> Result<Response<GetVolumeGroupSnapshotResponse>, Status> {
        let asked = request.into_inner();
        if asked.group_snapshot_id.is_empty() {
            return Err(Status::invalid_argument("no group is named"));
        }
        let found = self.group(&asked.group_snapshot_id)?;
        if found.is_empty() {
            return Err(Status::not_found(format!("there is no group {}", asked.group_snapshot_id)));
        }
        let group_snapshot = Some(self.show_group(asked.group_snapshot_id, found)?);
        Ok(Response::new(GetVolumeGroupSnapshotResponse { group_snapshot }))
    }
}
