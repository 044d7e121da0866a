//! Group snapshots as the snapshot controller knows them (`groupsnapshot.storage.k8s.io/v1`): the fields that are used here. A cluster
//! may be without them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::api::{ListParams, ObjectMeta};
use kube::core::ClusterResourceScope;
use kube::{Api, Client, CustomResource, Resource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::snapshots::SnapshotError;

/// A snapshot of many claims of a namespace at one moment.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "groupsnapshot.storage.k8s.io",
    version = "v1",
    kind = "VolumeGroupSnapshot",
    namespaced,
    status = "VolumeGroupSnapshotStatus",
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotSpec {
    /// What it is of.
    pub source: VolumeGroupSnapshotSource,
    /// How it is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_group_snapshot_class_name: Option<String>,
}

/// What a group snapshot is of.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct VolumeGroupSnapshotSource {
    /// Claims of the namespace. The snapshot controller reads `matchLabels` alone.
    pub selector: LabelSelector,
}

/// How far a group snapshot is.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotStatus {
    /// Its content.
    pub bound_volume_group_snapshot_content_name: Option<String>,
    /// What went wrong last.
    pub error: Option<SnapshotError>,
}

/// A group snapshot as the storage knows it.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "groupsnapshot.storage.k8s.io",
    version = "v1",
    kind = "VolumeGroupSnapshotContent",
    status = "VolumeGroupSnapshotContentStatus",
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotContentSpec {
    /// `Delete` or `Retain`: what becomes of the storage's group with this object.
    pub deletion_policy: String,
    /// Where it comes from.
    pub source: VolumeGroupSnapshotContentSource,
    /// The group snapshot that it belongs to.
    pub volume_group_snapshot_ref: ObjectReference,
}

/// Where a group's content comes from.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotContentSource {
    /// The driver's names of the volumes.
    #[serde(default)]
    pub volume_handles: Vec<String>,
}

/// How far it is.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotContentStatus {
    /// When it was cut.
    pub creation_time: Option<Time>,
    /// Whether volumes can be made from it.
    pub ready_to_use: Option<bool>,
    /// The snapshot of each volume.
    #[serde(default)]
    pub volume_snapshot_info_list: Vec<VolumeSnapshotInfo>,
    /// What went wrong last.
    pub error: Option<SnapshotError>,
}

/// One snapshot of a group.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotInfo {
    /// The driver's name of the volume.
    #[serde(default)]
    pub volume_handle: String,
    /// When it was cut, in nanoseconds since 1970; the group's own time is text.
    pub creation_time: Option<i64>,
}

impl VolumeGroupSnapshotContent {
    /// The name that the snapshot controller gives to the content of a group with this UID.
    #[must_use]
    pub fn name_for(uid: &str) -> String {
        format!("groupsnapcontent-{uid}")
    }

    /// When the snapshot of a volume was cut.
    #[must_use]
    pub fn cut(&self, volume_handle: &str) -> Option<Time> {
        let status = self.status.as_ref()?;
        let of = status.volume_snapshot_info_list.iter().find(|info| info.volume_handle == volume_handle)?;
        let exact = of.creation_time.and_then(|nanos| Timestamp::from_nanosecond(nanos.into()).ok());
        exact.map(Time).or_else(|| status.creation_time.clone())
    }
}

/// A class of group snapshots. It has no spec.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct VolumeGroupSnapshotClass {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// The CSI driver.
    pub driver: String,
    /// Of the driver, and where its secrets are.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
}

impl Resource for VolumeGroupSnapshotClass {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "VolumeGroupSnapshotClass".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "groupsnapshot.storage.k8s.io".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "volumegroupsnapshotclasses".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// All classes of group snapshots; none where the cluster does not know group snapshots, or only versions before `v1`.
///
/// # Errors
/// When the API server can't be asked.
pub async fn classes(client: &Client) -> Result<Vec<VolumeGroupSnapshotClass>, kube::Error> {
    list(&Api::all(client.clone()), &ListParams::default()).await
}

/// All that match; none where the cluster does not know group snapshots.
pub(crate) async fn list<K>(api: &Api<K>, which: &ListParams) -> Result<Vec<K>, kube::Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    match api.list(which).await {
        Ok(found) => Ok(found.items),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}
