//! Asks the cluster whether it would let a restore make what it has to: quotas, admission, rights. Nothing is made.

use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, ResourceQuota,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use milkrun_repository::point::catalog::chain;
use milkrun_resources::Restore;
use milkrun_resources::restore::RestoredVolume;

use super::data::{reserve, work_claim, work_holder};
use super::hand_over::successor;
use super::observe::{Observed, target};
use super::quota::NewClaims;
use crate::Settings;
use crate::actions::{Action, ActionError, Kind};
use crate::claim_facts::bytes;

/// How the API server says that a quota has no room.
const OVER_QUOTA: &str = "exceeded quota";

/// What the cluster says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Admission {
    /// Nobody asked.
    #[default]
    Unknown,
    /// It would let the restore make all of it.
    Granted,
    /// It can't say now.
    Away(String),
    /// It would not, for these reasons.
    Refused(Vec<String>),
}

/// Asks.
pub(super) async fn ask(
    restore: &Restore,
    planned: &[(String, RestoredVolume)],
    seen: &Observed,
    settings: &Settings,
    client: &Client,
) -> Admission {
    let mut refused = match quotas(restore, planned, settings, client).await {
        Ok(refused) => refused,
        Err(e) => return Admission::Away(format!("quotas can't be read: {}", chain(&e))),
    };
    for (action, quota_counts) in all(restore, planned, seen, settings) {
        match action.try_out(client).await {
            Ok(()) => {}
            Err(e @ ActionError::Refused { .. }) if quota_counts || !e.to_string().contains(OVER_QUOTA) => {
                refused.push(e.to_string());
            }
            Err(ActionError::Refused { .. }) => {}
            Err(e @ ActionError::Later { .. }) => return Admission::Away(chain(&e)),
        }
    }
    if refused.is_empty() { Admission::Granted } else { Admission::Refused(refused) }
}

async fn quotas(
    restore: &Restore,
    planned: &[(String, RestoredVolume)],
    settings: &Settings,
    client: &Client,
) -> Result<Vec<String>, kube::Error> {
    let (mut at_target, mut at_work) = (NewClaims::default(), NewClaims::default());
    for (_, volume) in planned {
        at_work.add(&volume.storage_class, volume.bytes);
        if volume.replaces.is_none() {
            at_target.add(&volume.storage_class, bytes(&volume.size).unwrap_or(0).max(volume.bytes));
        }
    }
    let mut refused = Vec::new();
    // What other runs use of the work namespace they give back.
    for (namespace, claims, now) in
        [(target(restore), at_target, true), (settings.work_namespace.clone(), at_work, false)]
    {
        let quotas = Api::<ResourceQuota>::namespaced(client.clone(), &namespace);
        let quotas = quotas.list(&ListParams::default()).await?.items;
        refused.extend(quotas.iter().flat_map(|quota| claims.exceed(quota, now)));
    }
    Ok(refused)
}

/// All that will be made, as it will be made; and whether it counts for the restore that a quota has no room for it now. Of the work
/// namespace, others give back what they use; and a claim that is replaced goes before its successor comes.
fn all(
    restore: &Restore,
    planned: &[(String, RestoredVolume)],
    seen: &Observed,
    settings: &Settings,
) -> Vec<(Action, bool)> {
    let mut actions = Vec::new();
    let mut with_claims = seen.clone();
    for (name, volume) in planned {
        let before = volume.replaces.as_ref().map(|before| {
            let before = serde_json::from_str::<PersistentVolumeClaim>(&before.claim).unwrap_or_default();
            before.metadata
        });
        actions.push((reserve(restore, name, volume, before), volume.replaces.is_none()));
        let last = successor(restore, name, volume, &written(volume, seen));
        actions.extend(last.map(|last| (Action::create(Kind::Volume, &last), true)));
        let claim = work_claim(restore, name, volume, settings);
        if let Action::Create(_, object) = &claim
            && let Ok(mut object) = serde_json::from_value::<PersistentVolumeClaim>(object.clone())
        {
            // The holder belongs to it. An owner has a UID, and any will do.
            object.metadata.uid.clone_from(&restore.metadata.uid);
            with_claims.work_claims.insert(name.clone(), object);
        }
        actions.push((claim, false));
    }
    let mut groups: Vec<&str> = planned.iter().map(|(_, volume)| volume.group.as_str()).collect();
    groups.sort_unstable();
    groups.dedup();
    for group in groups {
        let members: Vec<&(String, RestoredVolume)> = planned.iter().filter(|(_, v)| v.group == group).collect();
        let names: Vec<String> = members.iter().map(|(name, _)| name.clone()).collect();
        let consumer = members.first().and_then(|(_, volume)| volume.consumer.as_ref());
        actions.push((work_holder(restore, group, &names, consumer, &with_claims, settings), false));
    }
    actions
}

/// A volume as the class's driver would make it.
fn written(volume: &RestoredVolume, seen: &Observed) -> PersistentVolume {
    let class = seen.classes.iter().find(|class| class.name_any() == volume.storage_class);
    let csi = CSIPersistentVolumeSource {
        driver: class.map(|class| class.provisioner.clone()).unwrap_or_default(),
        volume_handle: "not-made-yet".into(),
        ..CSIPersistentVolumeSource::default()
    };
    let spec = PersistentVolumeSpec {
        capacity: Some([("storage".to_owned(), Quantity(volume.bytes.to_string()))].into()),
        csi: Some(csi),
        storage_class_name: Some(volume.storage_class.clone()),
        ..PersistentVolumeSpec::default()
    };
    PersistentVolume { spec: Some(spec), ..PersistentVolume::default() }
}
