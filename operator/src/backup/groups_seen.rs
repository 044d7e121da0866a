//! What is there of a backup's groups. A cluster that has no group snapshots is not asked.

use std::collections::BTreeMap;

use futures::try_join;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use milkrun_resources::{Backup, BackupStatus, labels};
use sha2::{Digest, Sha256};

use crate::group_snapshots::{VolumeGroupSnapshot, VolumeGroupSnapshotContent, list};
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
        let (snapshots, claims) = try_join!(list(&snapshots, &ours), get_each(&claims, labelled))?;
        let snapshots: BTreeMap<String, _> = snapshots.into_iter().map(|group| (group.name_any(), group)).collect();
        let contents = contents(&namespace, status, &snapshots, client).await?;
        Ok(Self { snapshots, contents, claims: claims.into_iter().collect() })
    }

    /// The names of the members' contents, by claim: the snapshot controller makes them before it makes the members.
    pub(super) fn content_names(
        &self,
        status: &BackupStatus,
        volumes: &BTreeMap<String, PersistentVolume>,
    ) -> Vec<(String, String)> {
        let groups = status.groups.iter().filter_map(|(name, group)| Some((self.snapshots.get(name)?.uid()?, group)));
        let members = groups.flat_map(|(uid, group)| group.claims.iter().map(move |claim| (uid.clone(), claim)));
        let named = members.filter_map(|(uid, claim)| {
            let handle = &volumes.get(claim)?.spec.as_ref()?.csi.as_ref()?.volume_handle;
            let digest = Sha256::digest(format!("{uid}{handle}"));
            Some((claim.clone(), format!("snapcontent-{}", hex::encode(digest))))
        });
        named.collect()
    }
}

/// The contents of the groups: by name where the group is there, else they are looked for among all.
async fn contents(
    namespace: &str,
    status: &BackupStatus,
    snapshots: &BTreeMap<String, VolumeGroupSnapshot>,
    client: &Client,
) -> Result<BTreeMap<String, VolumeGroupSnapshotContent>, kube::Error> {
    let api = Api::<VolumeGroupSnapshotContent>::all(client.clone());
    let name = |group: &VolumeGroupSnapshot| VolumeGroupSnapshotContent::name_for(&group.uid().unwrap_or_default());
    let named = snapshots.iter().map(|(group, found)| (group.clone(), name(found))).collect();
    let mut contents: BTreeMap<_, _> = get_each(&api, named).await?.into_iter().collect();
    let gone = |group: &str| status.groups.contains_key(group) && !snapshots.contains_key(group);
    if status.groups.keys().any(|group| gone(group)) {
        for content in list(&api, &ListParams::default()).await? {
            let of = &content.spec.volume_group_snapshot_ref;
            if let Some(group) = of.name.clone().filter(|name| of.namespace.as_deref() == Some(namespace) && gone(name))
            {
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
