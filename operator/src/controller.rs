//! The controllers: they look at each object again and again, until its run is over.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::{Action, Config};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::{Controller, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use milkrun_resources::patch::changes;
use milkrun_resources::{Backup, Restore};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::actions::MANAGER;
use crate::coordinator::Coordinator;
use crate::settings::Settings;
use crate::{backup, restore};

/// Keeps an object while something of its run is in the cluster.
const FINALIZER: &str = "milkrun.dev/run";
/// How soon a look that failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// Runs that are looked at at once.
const AT_ONCE: u16 = 16;
/// The longest note of an event.
const NOTE_MAX: usize = 1000;

/// What all looks share.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// The coordinator.
    pub coordinator: Coordinator,
    /// How the operator was started.
    pub settings: Settings,
    recorder: Recorder,
}

/// Why a look failed. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server.
    #[error("the API server: {0}")]
    Api(#[from] kube::Error),
}

impl Context {
    /// With these.
    #[must_use]
    pub fn new(client: Client, coordinator: Coordinator, settings: Settings) -> Self {
        let reporter = Reporter { controller: MANAGER.into(), instance: std::env::var("HOSTNAME").ok() };
        Self { recorder: Recorder::new(client.clone(), reporter), client, coordinator, settings }
    }

    /// Says something about an object, as an event.
    pub async fn tell<K: Resource<DynamicType = ()>>(&self, object: &K, kind: EventType, reason: &str, note: &str) {
        let note: String = note.chars().take(NOTE_MAX).collect();
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            note: Some(note).filter(|note| !note.is_empty()),
            action: reason.to_owned(),
            secondary: None,
        };
        if let Err(e) = self.recorder.publish(&event, &object.object_ref(&())).await {
            tracing::warn!(why = %e, reason, "an event is lost");
        }
    }
}

/// Adds the finalizer, or takes it away.
pub(crate) async fn keep_finalizer<K>(api: &Api<K>, object: &K, keep: bool) -> Result<(), kube::Error>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let has = object.finalizers().iter().any(|f| f == FINALIZER);
    if has == keep {
        return Ok(());
    }
    let mut all: Vec<String> = object.finalizers().iter().filter(|f| *f != FINALIZER).cloned().collect();
    if keep {
        all.push(FINALIZER.to_owned());
    }
    // With the version that was seen: another finalizer that came meanwhile is not lost.
    let patch = json!({"metadata": {"finalizers": all, "resourceVersion": object.resource_version()}});
    match api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

/// Writes a status: what is in `before` and not in `after` is removed.
pub(crate) async fn patch_status<K, S>(api: &Api<K>, object: &K, before: &S, after: &S) -> Result<(), kube::Error>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
    S: Serialize,
{
    let patch = json!({ "status": changes(before, after) });
    match api.patch_status(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

/// Looks at all objects until the process ends.
pub async fn run(context: Arc<Context>) {
    let config = || Config::default().concurrency(AT_ONCE);
    let backups = Controller::new(Api::<Backup>::all(context.client.clone()), watcher::Config::default())
        .with_config(config())
        .run(backup::reconcile, |_, e, _| again(e), context.clone())
        .for_each(|_| std::future::ready(()));
    let restores = Controller::new(Api::<Restore>::all(context.client.clone()), watcher::Config::default())
        .with_config(config())
        .run(restore::reconcile, |_, e, _| again(e), context.clone())
        .for_each(|_| std::future::ready(()));
    let points = crate::points::project(&context);
    tokio::join!(backups, restores, points);
}

fn again(e: &ReconcileError) -> Action {
    tracing::warn!(why = %e, "tried again");
    Action::requeue(AGAIN)
}
