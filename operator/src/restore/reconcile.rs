//! One look at a restore: observe, plan, write status, apply. Status comes first: what is to be made must be known before its
//! predecessor goes.

use std::sync::Arc;

use kube::runtime::controller::Action as Next;
use kube::runtime::events::EventType;
use kube::{Api, ResourceExt};
use milkrun_resources::restore::RestoreStep;
use milkrun_resources::{Restore, RestoreStatus};

use super::observe::observe;
use super::plan::{Call, Plan, plan};
use crate::actions::ActionError;
use crate::controller::{Context, ReconcileError, keep_finalizer, patch_status};
use crate::coordinator::AskError;

/// Looks once, and does what is next.
///
/// # Errors
/// [`ReconcileError`]: it is tried again.
pub async fn reconcile(restore: Arc<Restore>, context: Arc<Context>) -> Result<Next, ReconcileError> {
    let status = restore.status.clone().unwrap_or_default();
    let api: Api<Restore> = Api::namespaced(context.client.clone(), &restore.namespace().unwrap_or_default());
    if status.step == RestoreStep::Done {
        keep_finalizer(&api, &*restore, false).await?;
        return Ok(Next::await_change());
    }
    if restore.metadata.deletion_timestamp.is_none() {
        keep_finalizer(&api, &*restore, true).await?;
    }
    let seen = observe(&restore, &status, &context).await?;
    let plan = plan(&restore, &seen, &context.settings, crate::steps::now());
    let mut after = plan.status.clone();
    write(&api, &restore, &status, &after, &context).await?;
    apply(&plan, &mut after, &context).await;
    write(&api, &restore, &plan.status, &after, &context).await?;
    Ok(plan.again.map_or_else(Next::await_change, Next::requeue))
}

async fn write(
    api: &Api<Restore>,
    restore: &Restore,
    before: &RestoreStatus,
    after: &RestoreStatus,
    context: &Context,
) -> Result<(), ReconcileError> {
    if before == after {
        return Ok(());
    }
    patch_status(api, restore, before, after).await?;
    let step = after.step;
    if step != before.step {
        tracing::info!(restore = restore.name_any(), namespace = restore.namespace(), ?step, "step");
    }
    match &after.failure {
        Some(why) if before.failure.is_none() => context.tell(restore, EventType::Warning, "Failed", why).await,
        None if step == RestoreStep::Done && before.step != step => {
            context.tell(restore, EventType::Normal, "Complete", "all volumes are restored").await;
        }
        _ if step != before.step => {
            context.tell(restore, EventType::Normal, &format!("{step:?}"), &after.message).await;
        }
        _ => {}
    }
    Ok(())
}

/// Does what was planned. What can never work fails the restore; what may work later is tried again at the next look.
async fn apply(plan: &Plan, status: &mut RestoreStatus, context: &Context) {
    let fails = status.step < RestoreStep::CleanUp;
    for action in &plan.actions {
        match action.apply(&context.client).await {
            Ok(()) => {}
            Err(e @ ActionError::Refused { .. }) if fails => {
                status.failure.get_or_insert(e.to_string());
                return;
            }
            Err(e) => {
                let why = milkrun_repository::point::catalog::chain(&e);
                tracing::warn!(why, "tried again");
                status.message = why;
            }
        }
    }
    for call in plan.calls.clone() {
        let done = match call {
            Call::AddTarget(request) => context.coordinator.add_target(*request).await,
            Call::Finish(order) => context.coordinator.finish(order).await,
            // A run that ended is no longer known.
            Call::Cancel(run) => context.coordinator.cancel(run).await.or(Ok(())),
        };
        match done {
            Ok(()) => {}
            Err(AskError::Refused(why)) if fails => {
                status.failure.get_or_insert(why);
                return;
            }
            Err(e) => {
                status.message = e.to_string();
                return;
            }
        }
    }
}
