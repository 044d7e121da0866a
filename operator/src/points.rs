//! `RestorePoint` objects: what repositories hold, shown in the cluster. They are made again from the repositories alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams};
use kube::{Api, ResourceExt};
use milkrun_proto::control::v1 as control;
use milkrun_resources::{RestorePoint, RestorePointSpec, labels};

use crate::actions::MANAGER;
use crate::controller::Context;
use crate::coordinator::AskError;
use crate::settings::Settings;

/// How often repositories are asked.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Why a look failed. It is tried again.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("the API server: {0}")]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Coordinator(#[from] AskError),
}

/// Shows all points, again and again.
pub(crate) async fn project(context: &Context) {
    loop {
        if let Err(e) = look(context).await {
            tracing::warn!(why = %e, "the restore points can't be shown now");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The namespace in which a point is shown: that of its application, if it is the same one; else milkrun's.
fn home<'a>(point: &'a control::Point, namespaces: &BTreeMap<String, String>, settings: &'a Settings) -> &'a str {
    let same = namespaces.get(&point.namespace).is_some_and(|uid| *uid == point.namespace_uid);
    if point.cluster == settings.cluster && same { &point.namespace } else { &settings.namespace }
}

fn object(repository: &str, point: &control::Point, namespace: &str) -> RestorePoint {
    // Objects write whole seconds, and what is read back is compared.
    let time = |ms: i64| jiff::Timestamp::from_millisecond(ms).map(crate::steps::time).ok();
    let whole = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let spec = RestorePointSpec {
        repository: repository.to_owned(),
        point: point.point.clone(),
        application: point.application.clone(),
        cluster: point.cluster.clone(),
        namespace: point.namespace.clone(),
        moment: time(point.moment_ms).unwrap_or(Time(jiff::Timestamp::UNIX_EPOCH)),
        locked_until: time(point.lock_until_ms).filter(|_| point.lock_until_ms > 0),
        bytes: whole(point.size_bytes),
        volumes: point.volumes.clone(),
        skipped: point.skipped.iter().map(|skipped| skipped.name.clone()).collect(),
    };
    let mut made = RestorePoint::new(&format!("{repository}-{}", point.point), spec);
    let labels = [(labels::MANAGED_BY.0.to_owned(), labels::MANAGED_BY.1.to_owned())];
    made.metadata = ObjectMeta { namespace: Some(namespace.to_owned()), labels: Some(labels.into()), ..made.metadata };
    made
}

async fn look(context: &Context) -> Result<(), LookError> {
    let client = &context.client;
    let namespaces = Api::<Namespace>::all(client.clone()).list(&ListParams::default()).await?.items;
    let namespaces: BTreeMap<String, String> =
        namespaces.into_iter().map(|n| (n.name_any(), n.uid().unwrap_or_default())).collect();
    let there = Api::<RestorePoint>::all(client.clone()).list(&ListParams::default()).await?.items;
    let (mut wanted, mut listed) = (BTreeSet::new(), BTreeSet::new());
    for repository in context.coordinator.repositories().await? {
        let points = match context.coordinator.points(&repository).await {
            Ok(points) => points,
            // It may be away; the points of the others are shown all the same.
            Err(e) => {
                tracing::warn!(why = %e, repository, "its restore points can't be listed now");
                continue;
            }
        };
        for point in points.iter().filter(|point| !point.hidden) {
            let made = object(&repository, point, home(point, &namespaces, &context.settings));
            let key = (made.namespace().unwrap_or_default(), made.name_any());
            let same =
                there.iter().any(|t| (t.namespace().unwrap_or_default(), t.name_any()) == key && t.spec == made.spec);
            if !same {
                let api: Api<RestorePoint> = Api::namespaced(client.clone(), &key.0);
                // A namespace that is being deleted, or is full, takes no objects; the other points are shown all the same.
                let shown = api.patch(&key.1, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&made)).await;
                if let Err(e) = shown {
                    tracing::warn!(why = %e, point = key.1, namespace = key.0, "a restore point can't be shown now");
                }
            }
            wanted.insert(key);
        }
        listed.insert(repository);
    }
    for gone in there {
        let key = (gone.namespace().unwrap_or_default(), gone.name_any());
        // Nothing is known of the points of a repository that can't be asked.
        if listed.contains(&gone.spec.repository) && !wanted.contains(&key) {
            let api: Api<RestorePoint> = Api::namespaced(client.clone(), &key.0);
            api.delete(&key.1, &DeleteParams::default()).await?;
        }
    }
    Ok(())
}
