//! What is there of a backup's groups. A cluster that has no group snapshots is not asked.

use std::collections::BTreeMap;

use futures::try_join;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use milkrun_resources::{Backup, BackupStatus, labels};

use crate::group_snapshots::{VolumeGroupSnapshot, VolumeGroupSnapshotContent};
use crate::names::{RunOf, by_claim};
use crate::several::get_each;
use crate::snapshots::VolumeSnapshot;

/// What is there of a backup's groups.
#[derive(Clone, Debug, Default)]
pub struct GroupsSeen {
    /// The group snapshots, by name.
    pub snapshots: BTreeMap<String, VolumeGroupSnapshot>,
    /// Their contents, by the group snapshot's name.
    pub contents: BTreeMap<String, VolumeGroupSnapshotContent>,
    /// Claims that may have a group's label, by name.
    pub claims: BTreeMap<String, PersistentVolumeClaim>,
}

impl GroupsSeen {
    /// Looks.
    ///
    /// # Errors
    /// When the API server can't be asked.
    pub(super) async fn look(
        backup: &Backup,
        status: &BackupStatus,
        run: &RunOf,
        client: &Client,
    ) -> Result<Self, kube::Error> {
        if status.groups.is_empty() {
            return Ok(Self::default());
        }
        let namespace = backup.namespace().unwrap_or_default();
        let snapshots = Api::<VolumeGroupSnapshot>::namespaced(client.clone(), &namespace);
        let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), &namespace);
        let labelled = status.groups.values().filter(|group| !group.swept).flat_map(|group| &group.claims);
        let labelled = labelled.map(|claim| (claim.clone(), claim.clone())).collect();
        let ours = ListParams::default().labels(&run.selector());
        let (snapshots, claims) = try_join!(snapshots.list(&ours), get_each(&claims, labelled))?;
        let snapshots: BTreeMap<String, _> =
            snapshots.items.into_iter().map(|group| (group.name_any(), group)).collect();
        let contents = contents(status, &snapshots, client).await?;
        Ok(Self { snapshots, contents, claims: claims.into_iter().collect() })
    }
}

/// The contents of the groups: by name where the group is there, else they are looked for among all.
async fn contents(
    status: &BackupStatus,
    snapshots: &BTreeMap<String, VolumeGroupSnapshot>,
    client: &Client,
) -> Result<BTreeMap<String, VolumeGroupSnapshotContent>, kube::Error> {
    let api = Api::<VolumeGroupSnapshotContent>::all(client.clone());
    let name = |group: &VolumeGroupSnapshot| VolumeGroupSnapshotContent::name_for(&group.uid().unwrap_or_default());
    let named = snapshots.iter().map(|(group, found)| (group.clone(), name(found))).collect();
    let mut contents: BTreeMap<_, _> = get_each(&api, named).await?.into_iter().collect();
    if status.groups.keys().any(|group| !snapshots.contains_key(group)) {
        for content in api.list(&ListParams::default()).await?.items {
            let group = content.spec.volume_group_snapshot_ref.name.clone().unwrap_or_default();
            if status.groups.contains_key(&group) {
                contents.insert(group, content);
            }
        }
    }
    Ok(contents)
}

/// The snapshots of a run among those of its namespace, by claim: those with its label, and members of its groups, which name
/// their claim and their group.
pub(super) fn of_run(all: Vec<VolumeSnapshot>, run: &RunOf, status: &BackupStatus) -> BTreeMap<String, VolumeSnapshot> {
    let (ours, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|snapshot| snapshot.labels().get(labels::RUN) == Some(&run.uid));
    let is_member = |snapshot: &VolumeSnapshot| {
        let mut owners = snapshot.owner_references().iter();
        owners.any(|owner| owner.kind == "VolumeGroupSnapshot" && status.groups.contains_key(&owner.name))
    };
    let members = others.into_iter().filter(is_member);
    let of_claim = |member: VolumeSnapshot| Some((member.spec.source.persistent_volume_claim_name.clone()?, member));
    by_claim(ours).into_iter().chain(members.filter_map(of_claim)).collect()
}

/// The name of the content of a snapshot that does not say it yet.
pub(super) fn content_name(snapshot: &VolumeSnapshot) -> String {
    // The snapshot controller gives this name to the content of a member of a group.
    match snapshot.name_any().strip_prefix("snapshot-") {
        Some(of_member) if !snapshot.labels().contains_key(labels::RUN) => format!("snapcontent-{of_member}"),
        _ => format!("snapcontent-{}", snapshot.uid().unwrap_or_default()),
    }
}
