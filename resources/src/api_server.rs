//! The way to the API server, for every process of milkrun in a cluster.

use std::time::Duration;

use kube::{Client, Config};

/// After how many seconds a watch is begun anew. After an API server went away, watches were seen to hear nothing until their time was
/// over, which is five minutes if nobody says otherwise.
pub const WATCH_S: u32 = 60;
/// An answer that stands still for so long has failed: the connection may lead to a machine that is gone. Longer than a quiet watch.
const SILENT: Duration = Duration::from_secs(WATCH_S as u64 + 15);

/// Connects as the pod's account, or as KUBECONFIG says.
///
/// # Errors
/// There is neither, or it can't be used.
pub async fn connect() -> Result<Client, kube::Error> {
    let mut config = Config::infer().await.map_err(kube::Error::InferConfig)?;
    config.read_timeout = Some(SILENT);
    // A connection that was idle has its whole time again for the next answer.
    config.reset_reader_on_write = true;
    Client::try_from(config)
}
