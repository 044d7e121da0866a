//! How many volumes all runs hold, as far as the cluster shows it.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::ListParams;
use kube::{Api, Client};
use milkrun_resources::labels;

/// Counts them in the work namespace.
///
/// # Errors
/// When the API server can't be asked.
pub(crate) async fn exposed(client: &Client, work: &str) -> Result<usize, kube::Error> {
    let of = |kind: &str| ListParams::default().labels(&format!("{}={kind}", labels::RUN_KIND));
    let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), work).list_metadata(&of("Backup")).await?;
    // The claims of a restore are there for longer than their volumes are held: some wait for people.
    let holders = Api::<Pod>::namespaced(client.clone(), work).list(&of("Restore")).await?;
    let held = |pod: &Pod| {
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        volumes.filter(|volume| volume.persistent_volume_claim.is_some()).count()
    };
    Ok(claims.items.len() + holders.items.iter().map(held).sum::<usize>())
}
