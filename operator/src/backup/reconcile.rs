//! One look at a backup: observe, plan, apply, write status.

use std::sync::Arc;

use kube::runtime::controller::Action as Next;
use kube::runtime::events::EventType;
use kube::{Api, ResourceExt};
use milkrun_resources::Backup;
use milkrun_resources::backup::BackupStep;

use super::observe::observe;
use super::plan::plan;
use crate::controller::{Context, ReconcileError, as_it_is, keep_finalizer, patch_status};
use crate::run::{apply, next};

/// Looks once, and does what is next.
///
/// # Errors
/// [`ReconcileError`]: it is tried again.
pub async fn reconcile(backup: Arc<Backup>, context: Arc<Context>) -> Result<Next, ReconcileError> {
    let api: Api<Backup> = Api::namespaced(context.client.clone(), &backup.namespace().unwrap_or_default());
    let Some(backup) = as_it_is(&api, &backup).await? else { return Ok(Next::await_change()) };
    let status = backup.status.clone().unwrap_or_default();
    let done = status.step == BackupStep::Done;
    if done {
        context.memory.forget(&backup.uid().unwrap_or_default());
        keep_finalizer(&api, &backup, false).await?;
        return Ok(Next::await_change());
    }
    if backup.metadata.deletion_timestamp.is_none() {
        keep_finalizer(&api, &backup, true).await?;
    }
    let seen = observe(&backup, &status, &context).await?;
    let mut plan = plan(&backup, &seen, &context.settings, crate::steps::now());
    // What fails is logged there, and planned again.
    let _ = apply(&plan.tidying, &[], true, &context).await;
    let applied = apply(&plan.actions, &plan.calls, plan.status.step >= BackupStep::CleanUp, &context).await;
    plan.status.failure = plan.status.failure.or(applied.refused);
    plan.status.message = applied.later.unwrap_or(plan.status.message);
    if plan.status != status {
        let step = plan.status.step;
        patch_status(&api, &backup, &status, &plan.status).await?;
        if step != status.step {
            tracing::info!(backup = backup.name_any(), namespace = backup.namespace(), ?step, "step");
        }
        match (&plan.status.failure, step == BackupStep::Done) {
            (Some(why), _) if status.failure.is_none() => {
                context.tell(&backup, EventType::Warning, "Failed", why).await;
            }
            (None, true) => {
                let point = plan.status.point.clone().unwrap_or_default();
                context.tell(&backup, EventType::Normal, "Complete", &format!("made the restore point {point}")).await;
            }
            _ if step != status.step => {
                context.tell(&backup, EventType::Normal, &format!("{step:?}"), &plan.status.message).await;
            }
            _ => {}
        }
    }
    Ok(next(&context.coordinator, plan.follow, plan.again).await)
}
