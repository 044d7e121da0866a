//! The controllers: they look at each object again and again, until its run is over.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::Patch;
use kube::runtime::controller::{Action, Config};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Controller, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use milkrun_resources::api_server::WATCH_S;
use milkrun_resources::patch::changes;
use milkrun_resources::{Backup, Restore, labels};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::actions::{MANAGER, patch_params};
use crate::coordinator::Coordinator;
use crate::memory::Memory;
use crate::settings::Settings;
use crate::snapshots::{VolumeSnapshot, VolumeSnapshotContent};
use crate::{backup, restore};

/// Keeps an object while something of its run is in the cluster.
const FINALIZER: &str = "milkrun.dev/run";
/// How soon a look that failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// Changes of one run that are so near are one look.
pub(crate) const DEBOUNCE: Duration = Duration::from_millis(20);
/// Runs that are looked at at once. Most of them wait for the coordinator.
const AT_ONCE: u16 = 64;
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
    /// What this process remembers of runs.
    pub memory: Memory,
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
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            coordinator,
            settings,
            memory: Memory::default(),
        }
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

/// The object as the API server has it now, if it is still there. What a watch has told may be minutes old: after an API server went
/// away, one was seen to hear nothing for five minutes.
pub(crate) async fn as_it_is<K>(api: &Api<K>, told: &K) -> Result<Option<K>, kube::Error>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let now = api.get_opt(&told.name_any()).await?;
    Ok(now.filter(|now| now.uid() == told.uid()))
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
    match api.patch(&object.name_any(), &patch_params(), &Patch::Merge(&patch)).await {
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
    match api.patch_status(&object.name_any(), &patch_params(), &Patch::Merge(&patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

/// Looks at all objects until the process ends.
pub async fn run(context: Arc<Context>) {
    let backups = controller::<Backup>("Backup", &context)
        .run(backup::reconcile, |_, e, _| again(e), context.clone())
        .for_each(|_| std::future::ready(()));
    let restores = controller::<Restore>("Restore", &context)
        .run(restore::reconcile, |_, e, _| again(e), context.clone())
        .for_each(|_| std::future::ready(()));
    let points = crate::points::project(&context);
    let policies = crate::policy::run(&context);
    tokio::join!(backups, restores, points, policies);
}

/// Looks at a run when it changes, and when one of the objects that were made for it does.
fn controller<R>(kind: &'static str, context: &Context) -> Controller<R>
where
    R: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let client = &context.client;
    let work = &context.settings.work_namespace;
    let watch = || watcher::Config::default().timeout(WATCH_S);
    let made = || watch().labels(&format!("{}={kind}", labels::RUN_KIND));
    // Several changes of one moment are one look.
    let config = Config::default().concurrency(AT_ONCE).debounce(DEBOUNCE);
    Controller::new(Api::<R>::all(client.clone()), watch())
        .with_config(config)
        .watches(Api::<Pod>::namespaced(client.clone(), work), made(), run_of)
        .watches(Api::<PersistentVolumeClaim>::all(client.clone()), made(), run_of)
        .watches(Api::<PersistentVolume>::all(client.clone()), made(), run_of)
        .watches(Api::<VolumeSnapshot>::all(client.clone()), made(), run_of)
        .watches(Api::<VolumeSnapshotContent>::all(client.clone()), made(), run_of)
}

/// The run that an object was made for.
#[expect(clippy::needless_pass_by_value, reason = "as the controller calls it")]
fn run_of<K: Resource, R: Resource<DynamicType = ()>>(object: K) -> Option<ObjectRef<R>> {
    let annotations = object.meta().annotations.as_ref()?;
    let name = annotations.get(labels::RUN_NAME)?;
    Some(ObjectRef::new(name).within(annotations.get(labels::RUN_NAMESPACE)?))
}

/// A look that failed is tried again.
pub(crate) fn again(e: &ReconcileError) -> Action {
    tracing::warn!(why = %e, "tried again");
    Action::requeue(AGAIN)
}
