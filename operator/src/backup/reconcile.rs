//! One look at a backup: observe, plan, apply, write status.

use std::sync::Arc;

use kube::runtime::controller::Action as Next;
use kube::runtime::events::EventType;
use kube::{Api, ResourceExt};
use milkrun_resources::Backup;
use milkrun_resources::backup::BackupStep;

use super::observe::observe;
use super::plan::{Call, Plan, plan};
use crate::actions::ActionError;
use crate::controller::{Context, ReconcileError, keep_finalizer, patch_status};
use crate::coordinator::AskError;

/// Looks once, and does what is next.
///
/// # Errors
/// [`ReconcileError`]: it is tried again.
pub async fn reconcile(backup: Arc<Backup>, context: Arc<Context>) -> Result<Next, ReconcileError> {
    let status = backup.status.clone().unwrap_or_default();
    let api: Api<Backup> = Api::namespaced(context.client.clone(), &backup.namespace().unwrap_or_default());
    let done = status.step == BackupStep::Done;
    if done {
        keep_finalizer(&api, &*backup, false).await?;
        return Ok(Next::await_change());
    }
    if backup.metadata.deletion_timestamp.is_none() {
        keep_finalizer(&api, &*backup, true).await?;
    }
    let seen = observe(&backup, &status, &context).await?;
    let mut plan = plan(&backup, &seen, &context.settings, crate::steps::now());
    apply(&mut plan, &context).await;
    if plan.status != status {
        let step = plan.status.step;
        patch_status(&api, &*backup, &status, &plan.status).await?;
        if step != status.step {
            tracing::info!(backup = backup.name_any(), namespace = backup.namespace(), ?step, "step");
        }
        match (&plan.status.failure, step == BackupStep::Done) {
            (Some(why), _) if status.failure.is_none() => {
                context.tell(&*backup, EventType::Warning, "Failed", why).await;
            }
            (None, true) => {
                let point = plan.status.point.clone().unwrap_or_default();
                context.tell(&*backup, EventType::Normal, "Complete", &format!("made the restore point {point}")).await;
            }
            _ if step != status.step => {
                context.tell(&*backup, EventType::Normal, &format!("{step:?}"), &plan.status.message).await;
            }
            _ => {}
        }
    }
    Ok(plan.again.map_or_else(Next::await_change, Next::requeue))
}

/// Does what was planned. What can never work fails the backup; what may work later is tried again at the next look.
async fn apply(plan: &mut Plan, context: &Context) {
    for action in &plan.actions {
        match action.apply(&context.client).await {
            Ok(()) => {}
            Err(e @ ActionError::Refused { .. }) if plan.status.step < BackupStep::CleanUp => {
                plan.status.failure.get_or_insert(e.to_string());
                return;
            }
            Err(e) => {
                let why = milkrun_repository::point::catalog::chain(&e);
                tracing::warn!(why, "tried again");
                plan.status.message = why;
            }
        }
    }
    for call in plan.calls.clone() {
        let done = match call {
            Call::AddSource(request) => context.coordinator.add_source(*request).await,
            Call::Finish(order) => context.coordinator.finish(order).await,
            // A run that ended is no longer known.
            Call::Cancel(run) => context.coordinator.cancel(run).await.or(Ok(())),
        };
        match done {
            Ok(()) => {}
            Err(AskError::Refused(why)) if plan.status.step < BackupStep::CleanUp => {
                plan.status.failure.get_or_insert(why);
                return;
            }
            Err(e) => plan.status.message = e.to_string(),
        }
    }
}
