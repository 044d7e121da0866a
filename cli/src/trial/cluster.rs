//! The cluster that a trial runs in.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Namespace, PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use milkrun_resources::backup::BackupStep;
use milkrun_resources::condition::READY;
use milkrun_resources::restore::RestoreStep;
use milkrun_resources::{Backup, Conditions, Repository, Restore};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::Trial;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The operator's Deployment, whose image the pods of a trial have.
const OPERATOR: &str = "milkrun-operator";

/// Why a class can't be tried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrialError {
    #[error("can't find a cluster: set KUBECONFIG, or run in a pod")]
    NoCluster(#[source] kube::Error),
    #[error("there is no storage class {0}; there are: {1}")]
    NoClass(String, String),
    #[error(
        "there is no milkrun in the namespace {0}: install the chart, or name its namespace with --milkrun-namespace"
    )]
    NoMilkrun(String),
    #[error("there is no Repository that is ready in the namespace {0}")]
    NoRepository(String),
    #[error("which repository? --repository-name {0}")]
    SeveralRepositories(String),
    #[error("the API server refuses")]
    Api(#[from] kube::Error),
}

/// How a step ended.
pub(super) struct Ended {
    /// Why it failed.
    pub(super) failure: Option<String>,
    /// How long its parts took, in seconds.
    pub(super) parts: Vec<(String, f64)>,
}

impl Ended {
    fn well() -> Self {
        Self { failure: None, parts: Vec::new() }
    }

    fn failed(why: impl Into<String>) -> Self {
        Self { failure: Some(why.into()), parts: Vec::new() }
    }
}

/// The cluster that a trial runs in.
pub(super) struct Cluster {
    pub(super) client: Client,
    /// milkrun's image.
    pub(super) image: String,
    /// The repository that the point goes to.
    pub(super) repository: String,
}

impl Cluster {
    /// Finds all that a trial needs.
    pub(super) async fn of(trial: &Trial) -> Result<Self, TrialError> {
        let client = Client::try_default().await.map_err(TrialError::NoCluster)?;
        let classes = Api::<StorageClass>::all(client.clone()).list(&ListParams::default()).await?.items;
        if !classes.iter().any(|class| class.name_any() == trial.class) {
            return Err(TrialError::NoClass(trial.class.clone(), names(&classes)));
        }
        let deployments = Api::<Deployment>::namespaced(client.clone(), &trial.namespace);
        let operator = deployments.get_opt(OPERATOR).await?;
        let image = operator.and_then(|found| found.spec?.template.spec?.containers.first()?.image.clone());
        let image = image.ok_or_else(|| TrialError::NoMilkrun(trial.namespace.clone()))?;
        let repository = match &trial.repository {
            Some(name) => name.clone(),
            None => only_repository(&client, &trial.namespace).await?,
        };
        Ok(Self { client, image, repository })
    }

    pub(super) async fn create<K>(&self, namespace: &str, object: &K) -> Result<(), TrialError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Serialize
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        Ok(api.create(&PostParams::default(), object).await.map(drop)?)
    }

    /// Waits until a pod has ended.
    pub(super) async fn pod_ends(&self, namespace: &str, name: &str, limit: Duration) -> Result<Ended, TrialError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let began = Instant::now();
        while began.elapsed() < limit {
            let status = pods.get(name).await?.status.unwrap_or_default();
            match status.phase.as_deref() {
                Some("Succeeded") => return Ok(Ended::well()),
                Some("Failed") => {
                    let ended =
                        status.container_statuses.iter().flatten().find_map(|c| c.state.as_ref()?.terminated.clone());
                    let said = ended.and_then(|ended| ended.message).or(status.message);
                    return Ok(Ended::failed(said.unwrap_or_else(|| "the pod failed".into()).trim()));
                }
                _ => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
        Ok(Ended::failed(format!("time-out: {}", self.warnings(namespace).await?)))
    }

    /// Waits until a backup has ended. Returns its point.
    pub(super) async fn backup_ends(
        &self,
        namespace: &str,
        name: &str,
        limit: Duration,
    ) -> Result<(Ended, Option<String>), TrialError> {
        let api: Api<Backup> = Api::namespaced(self.client.clone(), namespace);
        let began = Instant::now();
        let mut message = String::new();
        while began.elapsed() < limit {
            let status = api.get(name).await?.status.unwrap_or_default();
            if status.step == BackupStep::Done {
                return Ok((Ended { failure: status.failure, parts: parts(&status.steps) }, status.point));
            }
            message = status.message;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok((Ended::failed(format!("time-out: {message}")), None))
    }

    /// Waits until a restore has ended.
    pub(super) async fn restore_ends(&self, namespace: &str, name: &str, limit: Duration) -> Result<Ended, TrialError> {
        let api: Api<Restore> = Api::namespaced(self.client.clone(), namespace);
        let began = Instant::now();
        let mut message = String::new();
        while began.elapsed() < limit {
            let status = api.get(name).await?.status.unwrap_or_default();
            if status.step == RestoreStep::Done {
                return Ok(Ended { failure: status.failure, parts: parts(&status.steps) });
            }
            message = status.message;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(Ended::failed(format!("time-out: {message}")))
    }

    /// Waits until a backup that was deleted has cleaned up.
    pub(super) async fn backup_is_gone(&self, namespace: &str, name: &str, limit: Duration) -> Result<(), TrialError> {
        let api: Api<Backup> = Api::namespaced(self.client.clone(), namespace);
        let began = Instant::now();
        while began.elapsed() < limit && api.get_opt(name).await?.is_some() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Removes the trial's namespace, and waits until it and its volumes are gone.
    pub(super) async fn remove_namespace(&self, name: &str, limit: Duration) -> Ended {
        match self.try_remove_namespace(name, limit).await {
            Ok(left) if left.is_empty() => Ended::well(),
            Ok(left) => Ended::failed(format!("time-out: these stay: {left}")),
            Err(e) => Ended::failed(milkrun_repository::point::catalog::chain(&e)),
        }
    }

    async fn try_remove_namespace(&self, name: &str, limit: Duration) -> Result<String, TrialError> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let volumes = Api::<PersistentVolume>::all(self.client.clone());
        let of_trial = |volume: &PersistentVolume| {
            let of = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
            of.is_some_and(|of| of.namespace.as_deref() == Some(name))
        };
        // A class may keep its volumes; nobody wants those of a trial.
        for volume in volumes.list(&ListParams::default()).await?.items.iter().filter(|volume| of_trial(volume)) {
            let patch = Patch::Merge(json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}}));
            volumes.patch(&volume.name_any(), &PatchParams::default(), &patch).await?;
        }
        namespaces.delete(name, &DeleteParams::default()).await?;
        let began = Instant::now();
        loop {
            let there = namespaces.get_opt(name).await?;
            let mut all = volumes.list(&ListParams::default()).await?.items;
            all.retain(of_trial);
            if there.is_none() && all.is_empty() {
                return Ok(String::new());
            }
            if began.elapsed() > limit {
                let namespace = there.map(|_| format!("namespace {name} ")).unwrap_or_default();
                return Ok(format!("{namespace}{}", names(&all)).trim_end().to_owned());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// What Kubernetes warns of in a namespace, the last of each object.
    async fn warnings(&self, namespace: &str) -> Result<String, TrialError> {
        let of = ListParams::default().fields("type=Warning");
        let events = Api::<Event>::namespaced(self.client.clone(), namespace).list(&of).await?.items;
        let said = |event: Event| Some((event.involved_object.name?, event.message?));
        let last: BTreeMap<String, String> = events.into_iter().filter_map(said).collect();
        Ok(last.into_iter().map(|(name, said)| format!("{name}: {said}")).collect::<Vec<_>>().join("; "))
    }
}

fn names<K: Resource>(all: &[K]) -> String {
    all.iter().map(ResourceExt::name_any).collect::<Vec<_>>().join(", ")
}

/// The repository that is meant where none is named: the only one that can be used.
async fn only_repository(client: &Client, namespace: &str) -> Result<String, TrialError> {
    let mut all = Api::<Repository>::namespaced(client.clone(), namespace).list(&ListParams::default()).await?.items;
    all.retain(|found| found.status.as_ref().is_some_and(|status| status.conditions.is_true(READY)));
    match &all[..] {
        [] => Err(TrialError::NoRepository(namespace.to_owned())),
        [only] => Ok(only.name_any()),
        several => Err(TrialError::SeveralRepositories(names(several).replace(", ", "|"))),
    }
}

/// How long each step of a run took, in seconds, in their order.
fn parts(steps: &BTreeMap<String, Time>) -> Vec<(String, f64)> {
    let mut all: Vec<(&String, &Time)> = steps.iter().collect();
    all.sort_by_key(|(_, began)| began.0);
    let ends = all.iter().skip(1).map(|(_, began)| began.0);
    let took = |((name, began), end): (&(&String, &Time), jiff::Timestamp)| {
        let seconds = end.duration_since(began.0).as_secs_f64();
        ((*name).clone(), seconds)
    };
    all.iter().zip(ends).map(took).collect()
}
