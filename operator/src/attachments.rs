//! Which volumes are attached: a volume must be free of its node before it goes or is given to somebody else.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

/// Volumes that an attachment, or the kubelet of one of these nodes, still knows: by their names, and as
/// `kubernetes.io/csi/<driver>^<handle>`.
///
/// # Errors
/// When the API server can't be asked.
pub(crate) async fn attached(client: &Client, nodes: BTreeSet<&String>) -> Result<Vec<String>, kube::Error> {
    let attachments = Api::<VolumeAttachment>::all(client.clone()).list(&ListParams::default()).await?.items;
    let mut names: Vec<String> =
        attachments.into_iter().filter_map(|attachment| attachment.spec.source.persistent_volume_name).collect();
    for node in nodes {
        // A node that is gone uses nothing, and what the status of a dead one says stays for ever: its attachments count alone.
        let Some(status) = Api::<Node>::all(client.clone()).get_opt(node).await?.and_then(|node| node.status) else {
            continue;
        };
        let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        if ready {
            names.extend(status.volumes_in_use.unwrap_or_default());
        }
    }
    Ok(names)
}

/// Whether a volume is among those that are attached.
pub(crate) fn is_attached(volume: &PersistentVolume, attached: &[String]) -> bool {
    let handle = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()).map(|csi| format!("^{}", csi.volume_handle));
    let is =
        |known: &String| *known == volume.name_any() || handle.as_ref().is_some_and(|handle| known.ends_with(handle));
    attached.iter().any(is)
}
