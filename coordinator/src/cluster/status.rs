//! Writes into the status of a `Repository` whether it can be used.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use milkrun_coordinator::repositories::{Standing, State};
use milkrun_repository::clock::Moment;
use milkrun_resources::condition::{Conditions, READY};
use milkrun_resources::patch::changes;
use milkrun_resources::{Repository, RepositoryStatus};

/// What status says of a repository in this state.
fn wanted(object: &Repository, state: &State) -> RepositoryStatus {
    let mut status = object.status.clone().unwrap_or_default();
    status.observed_generation = object.metadata.generation;
    let (ready, reason, message) = match &state.standing {
        Standing::Ready(coordinator) => {
            let config = &coordinator.repository.config;
            status.id = Some(config.id.to_string());
            status.public_key = Some(hex(config.keys.signing.as_bytes()));
            (true, "Open", String::new())
        }
        Standing::NotReady(why) => (false, "NotOpen", why.clone()),
    };
    status.conditions.set(READY, ready, reason, &message, object.metadata.generation, now());
    status.message = message;
    status
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn now() -> Time {
    Time(k8s_openapi::jiff::Timestamp::from_millisecond(Moment::now().millis()).unwrap_or_default())
}

/// Writes the status if it says something else.
pub(crate) async fn show(api: &Api<Repository>, object: &Repository, state: &State) {
    let status = wanted(object, state);
    if object.status.as_ref() == Some(&status) {
        return;
    }
    let before = object.status.clone().unwrap_or_default();
    let patch = serde_json::json!({ "status": changes(&before, &status) });
    let params = PatchParams { field_manager: Some("milkrun-coordinator".into()), ..PatchParams::default() };
    if let Err(e) = api.patch_status(&object.name_any(), &params, &Patch::Merge(&patch)).await {
        // It is written again at the next look.
        tracing::warn!(repository = object.name_any(), why = %e, "its status can't be written");
    }
}
