//! One look at a policy: observe, plan, apply, write status.

use std::sync::Arc;

use futures::StreamExt;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::runtime::controller::{Action, Config};
use kube::runtime::events::EventType;
use kube::runtime::{Controller, watcher};
use kube::{Api, ResourceExt};
use milkrun_resources::api_server::WATCH_S;
use milkrun_resources::condition::{Conditions, READY};
use milkrun_resources::{Backup, BackupPolicy, labels};

use super::plan::plan;
use crate::actions::MANAGER;
use crate::controller::{Context, DEBOUNCE, ReconcileError, again, as_it_is, patch_status};

/// Looks at all policies until the process ends.
pub async fn run(context: &Arc<Context>) {
    let watch = || watcher::Config::default().timeout(WATCH_S);
    Controller::new(Api::<BackupPolicy>::all(context.client.clone()), watch())
        .owns(Api::<Backup>::all(context.client.clone()), watch().labels(labels::POLICY))
        .with_config(Config::default().debounce(DEBOUNCE))
        .run(reconcile, |_, e, _| again(e), context.clone())
        .for_each(|_| std::future::ready(()))
        .await;
}

async fn reconcile(policy: Arc<BackupPolicy>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let namespace = policy.namespace().unwrap_or_default();
    let api: Api<BackupPolicy> = Api::namespaced(context.client.clone(), &namespace);
    let backups: Api<Backup> = Api::namespaced(context.client.clone(), &namespace);
    let Some(policy) = as_it_is(&api, &policy).await? else { return Ok(Action::await_change()) };
    let ours = format!("{}={}", labels::POLICY, policy.uid().unwrap_or_default());
    let made = backups.list(&ListParams::default().labels(&ours)).await?.items;
    let mut plan = plan(&policy, made, crate::steps::now());
    for backup in &plan.remove {
        let only = Preconditions { uid: backup.uid(), resource_version: None };
        let params = DeleteParams { preconditions: Some(only), ..DeleteParams::default() };
        match backups.delete(&backup.name_any(), &params).await {
            // It is gone, or another one has its name.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            other => drop(other?),
        }
    }
    let before = policy.status.clone().unwrap_or_default();
    let mut wrong = !plan.status.conditions.is_true(READY);
    if let Some(backup) = &plan.make
        && let Err(why) = make(&backups, &policy, backup).await?
    {
        // The moment is not over: it is tried again at the next one, or when the policy changes.
        wrong = true;
        plan.status.message = format!("can't make Backup {}: {why}", backup.name_any());
        (plan.status.last_schedule, plan.status.last_backup) =
            (before.last_schedule.clone(), before.last_backup.clone());
    }
    if plan.status != before {
        patch_status(&api, &policy, &before, &plan.status).await?;
    }
    if plan.status.message != before.message && !plan.status.message.is_empty() {
        let (kind, reason) = if wrong { (EventType::Warning, "NotMade") } else { (EventType::Normal, "Waits") };
        context.tell(&policy, kind, reason, &plan.status.message).await;
    }
    Ok(plan.again.map_or_else(Action::await_change, Action::requeue))
}

/// Makes a backup, if it is not there. The reason, if the API server refuses it.
async fn make(
    backups: &Api<Backup>,
    policy: &BackupPolicy,
    backup: &Backup,
) -> Result<Result<(), String>, kube::Error> {
    let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
    match backups.create(&params, backup).await {
        Ok(_) => Ok(Ok(())),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let found = backups.get_opt(&backup.name_any()).await?;
            let ours = |found: &Backup| found.labels().get(labels::POLICY) == policy.uid().as_ref();
            Ok(if found.as_ref().is_none_or(ours) { Ok(()) } else { Err("there is another one of this name".into()) })
        }
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 422) => Ok(Err(status.message.clone())),
        Err(e) => Err(e),
    }
}
