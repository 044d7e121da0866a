//! What the operator does in the cluster. Each action may be done twice: the second time changes nothing.

use std::fmt;

use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Resource};
use milkrun_resources::labels;
use serde::Serialize;
use serde_json::Value;

/// The field manager of what the operator writes.
pub const MANAGER: &str = "milkrun-operator";

/// The API group of group snapshots.
const GROUPS: &str = "groupsnapshot.storage.k8s.io";
/// What the API server says when a webhook has side effects.
const NO_DRY_RUN: &str = "does not support dry run";

/// Kinds of objects that are made, changed or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `PersistentVolumeClaim`
    Claim,
    /// `PersistentVolume`
    Volume,
    /// `Pod`
    Pod,
    /// `VolumeSnapshot`
    Snapshot,
    /// `VolumeSnapshotContent`
    Content,
    /// `VolumeGroupSnapshot`
    Group,
    /// `VolumeGroupSnapshotContent`
    GroupContent,
}

impl Kind {
    fn resource(self) -> ApiResource {
        let (group, kind, plural) = match self {
            Self::Claim => ("", "PersistentVolumeClaim", "persistentvolumeclaims"),
            Self::Volume => ("", "PersistentVolume", "persistentvolumes"),
            Self::Pod => ("", "Pod", "pods"),
            Self::Snapshot => ("snapshot.storage.k8s.io", "VolumeSnapshot", "volumesnapshots"),
            Self::Content => ("snapshot.storage.k8s.io", "VolumeSnapshotContent", "volumesnapshotcontents"),
            Self::Group => (GROUPS, "VolumeGroupSnapshot", "volumegroupsnapshots"),
            Self::GroupContent => (GROUPS, "VolumeGroupSnapshotContent", "volumegroupsnapshotcontents"),
        };
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural)
    }
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Which {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, if it has one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl Which {
    /// This object.
    pub fn of<K: Resource>(kind: Kind, object: &K) -> Self {
        let meta = object.meta();
        Self { kind, namespace: meta.namespace.clone(), name: meta.name.clone().unwrap_or_default() }
    }

    fn api(&self, client: &Client) -> Api<DynamicObject> {
        let resource = self.kind.resource();
        match &self.namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        }
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.resource().kind;
        match &self.namespace {
            Some(namespace) => write!(f, "{kind} {namespace}/{}", self.name),
            None => write!(f, "{kind} {}", self.name),
        }
    }
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Makes an object.
    Create(Which, Value),
    /// Merges into an object.
    Merge(Which, Value),
    /// Removes an object, if it is still the one with this UID.
    Delete(Which, Option<String>),
}

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    /// It never works as it is: the run fails with this.
    #[error("{which}: {why}")]
    Refused {
        /// Which object.
        which: Which,
        /// What the API server says.
        why: String,
    },
    /// It may work later.
    #[error("{which}")]
    Later {
        /// Which object.
        which: Which,
        /// What the API server says.
        #[source]
        source: Box<kube::Error>,
    },
}

impl Action {
    /// Makes `object`.
    pub fn create<K: Resource + Serialize>(kind: Kind, object: &K) -> Self {
        // Our own types always have a form in JSON.
        Self::Create(Which::of(kind, object), serde_json::to_value(object).unwrap_or_default())
    }

    /// Removes `object`; nothing, if it is on its way already.
    pub fn delete<K: Resource>(kind: Kind, object: &K) -> Option<Self> {
        let meta = object.meta();
        meta.deletion_timestamp.is_none().then(|| Self::Delete(Which::of(kind, object), meta.uid.clone()))
    }

    /// Which object it is about.
    #[must_use]
    pub fn which(&self) -> &Which {
        match self {
            Self::Create(which, _) | Self::Merge(which, _) | Self::Delete(which, _) => which,
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn apply(&self, client: &Client) -> Result<(), ActionError> {
        let which = self.which();
        let api = which.api(client);
        let done = match self {
            Self::Create(_, object) => match serde_json::from_value::<DynamicObject>(object.clone()) {
                Ok(object) => match api.create(&params(), &object).await {
                    Err(e) if code(&e) == Some(409) => return self.is_ours(&api, &object).await,
                    other => other.map(drop),
                },
                Err(e) => return Err(ActionError::Refused { which: which.clone(), why: e.to_string() }),
            },
            Self::Merge(_, patch) => api.patch(&which.name, &patch_params(), &Patch::Merge(patch)).await.map(drop),
            Self::Delete(_, uid) => {
                let only = Preconditions { uid: uid.clone(), resource_version: None };
                let params = DeleteParams { preconditions: Some(only), ..DeleteParams::default() };
                api.delete(&which.name, &params).await.map(drop)
            }
        };
        match done {
            Ok(()) => Ok(()),
            // It is gone already. If it should not be, the next look says so.
            Err(e) if code(&e) == Some(404) && !matches!(self, Self::Create(..)) => Ok(()),
            Err(e) => Err(self.failed(e)),
        }
    }

    /// Asks the API server whether it would do it, with all that admission, quotas and rights say. Nothing is made.
    ///
    /// # Errors
    /// [`ActionError`]. Webhooks that can't answer such questions refuse nothing, and an object that is there is another's concern.
    pub async fn try_out(&self, client: &Client) -> Result<(), ActionError> {
        let Self::Create(which, object) = self else { return Ok(()) };
        let refused = |e: serde_json::Error| ActionError::Refused { which: which.clone(), why: e.to_string() };
        let object = serde_json::from_value::<DynamicObject>(object.clone()).map_err(refused)?;
        match which.api(client).create(&PostParams { dry_run: true, ..params() }, &object).await {
            Ok(_) => Ok(()),
            Err(e) if code(&e) == Some(409) || e.to_string().contains(NO_DRY_RUN) => Ok(()),
            Err(e) => Err(self.failed(e)),
        }
    }

    /// An object of this name is there: it must be the one that this run made.
    async fn is_ours(&self, api: &Api<DynamicObject>, wanted: &DynamicObject) -> Result<(), ActionError> {
        let which = self.which();
        let run = |object: &DynamicObject| object.metadata.labels.as_ref().and_then(|l| l.get(labels::RUN)).cloned();
        match api.get_opt(&which.name).await {
            Ok(Some(found)) if run(&found) == run(wanted) => Ok(()),
            Ok(Some(_)) => {
                Err(ActionError::Refused { which: which.clone(), why: "there is another object of this name".into() })
            }
            Ok(None) => Ok(()),
            Err(e) => Err(self.failed(e)),
        }
    }

    fn failed(&self, e: kube::Error) -> ActionError {
        let which = self.which().clone();
        match &e {
            kube::Error::Api(status) if matches!(status.code, 400 | 403 | 404 | 405 | 422) => {
                ActionError::Refused { which, why: status.message.clone() }
            }
            _ => ActionError::Later { which, source: Box::new(e) },
        }
    }
}

/// How the operator changes objects.
pub(crate) fn patch_params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() }
}

fn params() -> PostParams {
    PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() }
}

fn code(e: &kube::Error) -> Option<u16> {
    match e {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}
