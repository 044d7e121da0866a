//! The coordinator in a Kubernetes cluster. It reviews tokens, reads `Repository` objects and the Secrets that they name, and
//! keeps its authority in a Secret: nothing else, and this folder is its only door to Kubernetes.
//!
//! ```text
//! lease         one process leads; the other waits
//! authority     Secret milkrun-authority, published as ConfigMap milkrun-authority ─> own certificate, enrollment;
//!               Secret milkrun-authority-trusted: former ones, while certificates of theirs are in use
//! enrollment    ServiceAccount token ─ TokenReview ─> certificate of an agent (its node's) or of the operator
//! repositories  Repository + Secret ─> opened, led, served; status says how that went
//! ```

mod authority;
mod create;
mod enrollment;
pub(crate) mod error;
mod inventory;
mod lease;
mod open;
mod repositories;
mod status;

use std::sync::Arc;

use milkrun_coordinator::repositories::Repositories;
use milkrun_coordinator::rpc::transport::accept::accept;
use milkrun_coordinator::rpc::transport::connections::Connections;
use milkrun_coordinator::rpc::transport::limits::Limits;
use milkrun_coordinator::{Shared, rpc};
use milkrun_observe::http;
use milkrun_observe::signals::Stop;
use milkrun_resources::api_server;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::args::Args;
use crate::error::ServeError;
use error::ClusterError;
use inventory::AnyNode;

/// Leads, serves, and stops in order.
pub(crate) async fn serve(args: Args) -> Result<(), ServeError> {
    let client = api_server::connect().await.map_err(ClusterError::Client)?;
    let namespace = client.default_namespace().to_owned();
    let (leads, ready) = watch::channel(false);
    if let Some(address) = args.metrics {
        http::serve(address, ready).await?;
    }
    let stop = Stop::on_signal()?;
    let lease = tokio::select! {
        lease = lease::Lease::take(client.clone(), &namespace) => lease?,
        () = stop.wanted() => return Ok(()),
    };
    let authority = authority::Authority::in_cluster(&client, &namespace, &args.service, args.authority);
    let authority = tokio::select! {
        authority = authority => Arc::new(authority?),
        () = stop.wanted() => {
            lease.release().await;
            return Ok(());
        }
    };
    let listener = listen(args.listen).await?;
    let strangers = listen(std::net::SocketAddr::new(args.listen.ip(), milkrun_identity::enrollment::PORT)).await?;
    let repositories = Repositories::new(Shared::new(AnyNode, args.cluster_id.clone()));
    let accepted = accept(listener, authority.credentials(), Connections::new(Limits::of_process()));
    tracing::info!(namespace, "serving");
    leads.send_replace(true);
    tokio::select! {
        served = rpc::serve_all(repositories.clone(), accepted) => served?,
        served = enrollment::serve(strangers, authority.clone(), &client, &namespace) => served?,
        () = authority.keep() => {}
        why = repositories::serve(&client, &namespace, &args, &repositories) => return Err(ServeError::Superseded(why)),
        () = lease.lost() => return Err(ServeError::Superseded("another process has the Lease".into())),
        () = stop.wanted() => {}
    }
    tracing::info!("stopping; the next coordinator goes on with what is under way");
    lease.release().await;
    Ok(())
}

async fn listen(address: std::net::SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|e| ServeError::Listen(address, e))
}
