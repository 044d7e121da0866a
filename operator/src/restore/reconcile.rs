//! One look at a restore: observe, plan, write status, apply. Status comes first: what is to be made must be known before its
//! predecessor goes.

use std::sync::Arc;

use kube::runtime::controller::Action as Next;
use kube::runtime::events::EventType;
use kube::{Api, ResourceExt};
use milkrun_resources::restore::RestoreStep;
use milkrun_resources::{Restore, RestoreStatus};

use super::observe::observe;
use super::plan::plan;
use crate::controller::{Context, ReconcileError, as_it_is, keep_finalizer, patch_status};
use crate::run::{apply, next};

/// Looks once, and does what is next.
///
/// # Errors
/// [`ReconcileError`]: it is tried again.
pub async fn reconcile(restore: Arc<Restore>, context: Arc<Context>) -> Result<Next, ReconcileError> {
    let api: Api<Restore> = Api::namespaced(context.client.clone(), &restore.namespace().unwrap_or_default());
    let Some(restore) = as_it_is(&api, &restore).await? else { return Ok(Next::await_change()) };
    let status = restore.status.clone().unwrap_or_default();
    if status.step == RestoreStep::Done {
        keep_finalizer(&api, &restore, false).await?;
        return Ok(Next::await_change());
    }
    if restore.metadata.deletion_timestamp.is_none() {
        keep_finalizer(&api, &restore, true).await?;
    }
    let seen = observe(&restore, &status, &context).await?;
    let plan = plan(&restore, &seen, &context.settings, crate::steps::now());
    // The message is written once, after all was tried: each change of status is looked at again at once.
    let first = RestoreStatus { message: status.message.clone(), ..plan.status.clone() };
    write(&api, &restore, &status, &first, &context).await?;
    let mut after = plan.status.clone();
    let applied = apply(&plan.actions, &plan.calls, after.step >= RestoreStep::CleanUp, &context).await;
    after.failure = after.failure.or(applied.refused);
    after.message = applied.later.unwrap_or(after.message);
    write(&api, &restore, &first, &after, &context).await?;
    Ok(next(&context.coordinator, plan.follow, plan.again).await)
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
