//! Manifests as they follow an order, in pieces.

use bytes::Bytes;
use tonic::{Status, Streaming};

use crate::manifests;
use crate::rpc::status;

/// The most bytes of manifests in an order.
const MANIFESTS_MAX: usize = 256 << 20;

/// Receives the manifests that follow an order, and checks them. `piece` gets one out of a message; of a message without one, the
/// refusal says `otherwise`.
///
/// # Errors
/// When they are too long, no manifests, or more or less than announced.
pub(super) async fn receive<M>(
    incoming: &mut Streaming<M>,
    announced: u32,
    piece: impl Fn(M) -> Option<Bytes>,
    otherwise: &'static str,
) -> Result<Vec<u8>, Status> {
    let mut lines = Vec::new();
    while let Some(message) = incoming.message().await? {
        lines.extend_from_slice(&piece(message).ok_or_else(|| status::nonsense(otherwise))?);
        if lines.len() > MANIFESTS_MAX {
            return Err(status::nonsense("more than 256 MiB of manifests"));
        }
    }
    let checked = tokio::task::spawn_blocking(move || check(&lines, announced).map(|()| lines));
    checked.await.map_err(|_| Status::internal("the manifests could not be looked at"))?
}

/// Checks that the lines are manifests, and that there are as many as announced: others could not be restored.
fn check(lines: &[u8], announced: u32) -> Result<(), Status> {
    let objects = manifests::decode(lines)
        .map_err(|line| Status::invalid_argument(format!("line {line} of the manifests is no Kubernetes object")))?;
    if objects.len() == announced as usize {
        return Ok(());
    }
    let what = format!("{} manifests came, and {} were announced", objects.len(), announced);
    Err(Status::invalid_argument(what))
}
