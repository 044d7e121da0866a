//! One process leads: it holds the Lease `milkrun-coordinator`.

use kube::Client;
use kube_lease_manager::LeaseManagerBuilder;
use tokio::sync::watch;

use super::error::ClusterError;

const NAME: &str = "milkrun-coordinator";
/// After so many seconds without a renewal, another process may lead.
const DURATION_S: u64 = 15;
/// So many seconds before that, the holder renews it.
const GRACE_S: u64 = 5;

/// The Lease, held.
pub(crate) struct Lease {
    held: watch::Receiver<bool>,
    task: tokio::task::JoinHandle<kube_lease_manager::Result<kube_lease_manager::LeaseManager>>,
}

impl Lease {
    /// Waits until this process holds the Lease.
    pub(crate) async fn take(client: Client, namespace: &str) -> Result<Self, ClusterError> {
        let manager = LeaseManagerBuilder::new(client, NAME).with_namespace(namespace);
        let manager = manager.with_duration(DURATION_S).with_grace(GRACE_S).build().await?;
        let (mut held, task) = manager.watch().await;
        // If the channel ends, so has the task, and `lost` returns at once.
        let _ = held.wait_for(|held| *held).await;
        Ok(Self { held, task })
    }

    /// Returns when this process does not hold it any more.
    pub(crate) async fn lost(&self) {
        let _ = self.held.clone().wait_for(|held| !*held).await;
    }

    /// Gives it up, so that the next process need not wait.
    pub(crate) async fn release(self) {
        drop(self.held);
        // If this fails, the next process waits for the Lease to end.
        if let Ok(Ok(manager)) = self.task.await {
            let _ = manager.release().await;
        }
    }
}
