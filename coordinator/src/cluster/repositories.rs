//! Follows the `Repository` objects of the namespace: each is opened and led by a task of its own, with the Secret that it
//! names. One that is wrong never stops the others.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt};
use milkrun_coordinator::repositories::Repositories;
use milkrun_repository::point::catalog::chain;
use milkrun_repository::store::connect::ConnectOptions;
use milkrun_resources::Repository;
use tokio::task::JoinSet;

use super::create::create;
use super::open::{Opening, opening};
use super::status;
use crate::args::Args;
use crate::led_repositories::{Named, join};

/// How often objects and Secrets are read. There are few, and nothing depends on a faster answer.
const LOOK_EVERY: Duration = Duration::from_secs(2);

const CREATE_AGAIN: Duration = Duration::from_secs(10);

/// What a task was begun with. When it differs, the task is begun anew.
#[derive(Clone, PartialEq, Eq)]
struct Seen {
    uid: String,
    generation: i64,
    /// The version of the Secret, or why there is no use in it.
    secret: Result<String, String>,
}

struct Task {
    seen: Seen,
    abort: tokio::task::AbortHandle,
}

struct Follower<'a> {
    objects: Api<Repository>,
    secrets: Api<Secret>,
    args: &'a Args,
    repositories: &'a Repositories,
    tasks: BTreeMap<String, Task>,
    ended: JoinSet<String>,
}

/// Follows them until another process leads one of them. Returns why.
pub(crate) async fn serve(client: &Client, namespace: &str, args: &Args, repositories: &Repositories) -> String {
    let mut follower = Follower {
        objects: Api::namespaced(client.clone(), namespace),
        secrets: Api::namespaced(client.clone(), namespace),
        args,
        repositories,
        tasks: BTreeMap::new(),
        ended: JoinSet::new(),
    };
    loop {
        match follower.objects.list(&Default::default()).await {
            Ok(list) => follower.look(list.items).await,
            // What is open stays open.
            Err(e) => tracing::warn!(why = %e, "the Repository objects can't be read"),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            Some(Ok(why)) = follower.ended.join_next() => return why,
        }
    }
}

impl Follower<'_> {
    async fn look(&mut self, objects: Vec<Repository>) {
        let names: Vec<String> = objects.iter().map(ResourceExt::name_any).collect();
        let repositories = self.repositories;
        self.tasks.retain(|name, task| {
            let stays = names.contains(name);
            if !stays {
                tracing::info!(repository = name, "the object is gone; the repository is let go");
                task.abort.abort();
                repositories.remove(name);
            }
            stays
        });
        for object in objects {
            self.follow(&object).await;
            let states = self.repositories.states();
            if let Some((_, state)) = states.into_iter().find(|(name, _)| *name == object.name_any()) {
                status::show(&self.objects, &object, &state).await;
            }
        }
    }

    async fn follow(&mut self, object: &Repository) {
        let name = object.name_any();
        let secret = match self.secrets.get_opt(&object.spec.secret_name).await {
            Ok(secret) => secret,
            Err(e) => return tracing::warn!(repository = name, why = %e, "its Secret can't be read"),
        };
        let options = ConnectOptions { limit_upload: self.args.limit_upload, ..self.args.way("") };
        let opened = opening(object, secret.as_ref(), &self.args.store_token, options);
        let seen = Seen {
            uid: object.uid().unwrap_or_default(),
            generation: object.metadata.generation.unwrap_or_default(),
            secret: match &opened {
                Ok(_) => Ok(secret.and_then(|s| s.resource_version()).unwrap_or_default()),
                Err(wrong) => Err(wrong.to_string()),
            },
        };
        if self.tasks.get(&name).is_some_and(|task| task.seen == seen) {
            return;
        }
        if let Some(before) = self.tasks.remove(&name) {
            before.abort.abort();
        }
        match opened {
            Ok(opening) => {
                self.repositories.not_ready(&name, object.spec.url.clone(), "not open yet".into());
                let (repositories, secrets) = (self.repositories.clone(), self.secrets.clone());
                let (object, named) = (object.clone(), self.named(&name, opening.clone()));
                let abort = self.ended.spawn(async move {
                    if object.spec.create {
                        create_at_last(&object, &opening, &secrets, &repositories).await;
                    }
                    join(named, repositories).await
                });
                self.tasks.insert(name, Task { seen, abort });
            }
            Err(wrong) => {
                self.repositories.not_ready(&name, object.spec.url.clone(), wrong.to_string());
                let abort = self.ended.spawn(std::future::pending());
                self.tasks.insert(name, Task { seen, abort });
            }
        }
    }

    fn named(&self, name: &str, opening: Opening) -> Named {
        Named {
            name: name.to_owned(),
            url: opening.url,
            way: opening.options,
            password: Some(opening.password),
            cache: self.args.cache.clone(),
            take_over_after: self.args.take_over_after,
        }
    }
}

/// Makes the repository, or finds that it is there, however long that takes.
async fn create_at_last(object: &Repository, opening: &Opening, secrets: &Api<Secret>, repositories: &Repositories) {
    let name = object.name_any();
    while let Err(e) = create(&name, opening, object.spec.lock.as_ref(), secrets).await {
        let why = chain(&e);
        tracing::error!(repository = name, why, "a repository can't be made; it is tried again");
        repositories.not_ready(&name, object.spec.url.clone(), why);
        tokio::time::sleep(CREATE_AGAIN).await;
    }
}
