//! A trial of a storage class: a volume of it is made, written, backed up, restored, mounted and compared, in a namespace of its
//! own that goes afterwards. Whether a class works can't be seen from its objects.

mod cluster;
mod objects;
mod outcome;

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use milkrun_resources::Backup;

pub(crate) use cluster::TrialError;
use cluster::{Cluster, Ended};
pub(crate) use outcome::{Outcome, Step};

/// What is tried.
#[derive(Clone, Debug)]
pub(crate) struct Trial {
    /// The storage class.
    pub(crate) class: String,
    /// The `Repository` that holds the point.
    pub(crate) repository: Option<String>,
    /// milkrun's namespace.
    pub(crate) namespace: String,
    /// The size of the volumes, as Kubernetes writes sizes.
    pub(crate) size: String,
    /// How long each step may take.
    pub(crate) limit: Duration,
}

/// Rules for a class that are tried, one after the other, until one works.
const RULES: [(&str, bool); 2] = [("", false), ("readOnlyMany", true)];

impl Trial {
    /// Tries. `tell` hears of each step that has ended.
    ///
    /// # Errors
    /// Why it can't be tried at all. That a class does not work is an [`Outcome`].
    pub(crate) async fn run(&self, tell: &mut dyn FnMut(&Step)) -> Result<Outcome, TrialError> {
        let cluster = Cluster::of(self).await?;
        let namespace = objects::namespace();
        let name = namespace.metadata.name.clone().unwrap_or_default();
        Api::<Namespace>::all(cluster.client.clone()).create(&PostParams::default(), &namespace).await?;
        let mut outcome = Outcome::of(&self.class, &name);
        let tried = self.steps(&cluster, &name, &mut outcome, tell).await;
        // Also when the trial itself broke off.
        let removed = cluster.remove_namespace(&name, self.limit).await;
        outcome.end("clean up", removed, tell);
        tried.map(|()| outcome)
    }

    async fn steps(
        &self,
        cluster: &Cluster,
        namespace: &str,
        outcome: &mut Outcome,
        tell: &mut dyn FnMut(&Step),
    ) -> Result<(), TrialError> {
        for claim in objects::claims(self, namespace) {
            cluster.create(namespace, &claim).await?;
        }
        cluster.create(namespace, &objects::writer(namespace, &cluster.image)).await?;
        if !outcome.end("make and write", cluster.pod_ends(namespace, objects::WRITER, self.limit).await?, tell) {
            return Ok(());
        }
        let mut point = None;
        for (rule, read_only_many) in RULES {
            let name = if read_only_many { "read-only-many" } else { "plain" };
            let backup = objects::backup(self, &cluster.repository, namespace, name, read_only_many);
            let api: Api<Backup> = Api::namespaced(cluster.client.clone(), namespace);
            api.create(&PostParams::default(), &backup).await?;
            let (ended, made) = cluster.backup_ends(namespace, name, self.limit).await?;
            let works = outcome.end(&format!("back up{}", with(rule)), ended, tell);
            if works {
                outcome.rule = rule;
                point = made;
                break;
            }
            // One that still waits is given up.
            api.delete(name, &DeleteParams::default()).await?;
            cluster.backup_is_gone(namespace, name, self.limit).await?;
        }
        let Some(point) = point else { return Ok(()) };
        cluster.create(namespace, &objects::restore(&cluster.repository, namespace, &point)).await?;
        if !outcome.end("restore", cluster.restore_ends(namespace, objects::RESTORE, self.limit).await?, tell) {
            return Ok(());
        }
        cluster.create(namespace, &objects::reader(namespace, &cluster.image)).await?;
        let compared: Ended = cluster.pod_ends(namespace, objects::READER, self.limit).await?;
        outcome.end("mount and compare", compared, tell);
        Ok(())
    }
}

fn with(rule: &str) -> String {
    if rule.is_empty() { String::new() } else { format!(" with {rule}") }
}
