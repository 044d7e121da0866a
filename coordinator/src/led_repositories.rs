//! Opens, leads and holds the repositories of this process. A repository that can't be opened or led is tried again and again, and
//! never stops the others. Where there is only one, the process ends with its error.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use milkrun_coordinator::leader::{self, Leadership, Lost, StoreLease};
use milkrun_coordinator::repositories::Repositories;
use milkrun_coordinator::secret::Password;
use milkrun_coordinator::{Coordinator, key_locks, secret};
use milkrun_repository::Repository;
use milkrun_repository::index::IndexCache;
use milkrun_repository::point::catalog::chain;
use milkrun_repository::repository::{self, Credential};
use milkrun_repository::store::connect::ConnectOptions;
use milkrun_repository::store::{Failure, StoreUrl};

use crate::args::Args;
use crate::error::ServeError;

/// How long the repositories have to open. After that, those that are open are led without the others.
const OPEN_LIMIT: Duration = Duration::from_secs(20);
/// How long to wait before a repository that could not be used is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// A repository as the command line or an object names it.
#[derive(Clone)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) url: StoreUrl,
    pub(crate) way: ConnectOptions,
    /// Its password; `None`: as the environment says.
    pub(crate) password: Option<Password>,
    pub(crate) cache: Option<PathBuf>,
    pub(crate) take_over_after: Duration,
}

/// A repository that is open.
struct Opened {
    named: Named,
    repository: Arc<Repository>,
    cache: IndexCache,
    leadership: Arc<dyn Leadership>,
}

/// A repository that this process leads.
pub(crate) struct Led {
    named: Named,
    leadership: Arc<dyn Leadership>,
    coordinator: Coordinator,
    /// Whether the runs that an earlier leader left go on.
    began: tokio::sync::Mutex<bool>,
}

/// The repositories of this process that are open, before they are led.
pub(crate) struct LedRepositories {
    repositories: Repositories,
    opened: Vec<Opened>,
    missing: Vec<Named>,
    alone: bool,
}

/// The repositories that are led; the others are tried in the background.
pub(crate) struct Leading {
    repositories: Repositories,
    led: Vec<Led>,
    alone: bool,
    /// Each task returns when somebody else leads its repository. The tasks end when this is dropped.
    background: tokio::sync::Mutex<tokio::task::JoinSet<String>>,
}

impl Named {
    async fn open(self) -> Result<Opened, ServeError> {
        let password = match &self.password {
            Some(password) => password.clone(),
            None => secret::of_repository(&self.name)?.ok_or(ServeError::NoSecret)?,
        };
        let place = self.way.connect(&self.url).await?;
        let repository = Arc::new(repository::open(place.store, Credential::Password(&password)).await?);
        drop(password);
        let folder = IndexCache::folder(self.cache.clone());
        let cache = IndexCache::new(folder.as_deref(), &repository.config.id, &repository.ring);
        if let Err(e) = cache.last_seen().stands_at(&repository.store.address()) {
            // In a disaster this copy may be all that there is: it is served, and backups are refused.
            tracing::error!("{e}");
        }
        let host = nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok()).unwrap_or_default();
        let leadership = Arc::new(StoreLease::new(repository.clone(), host, self.take_over_after));
        Ok(Opened { named: self, repository, cache, leadership })
    }
}

impl Opened {
    fn led(self, epoch: u64, repositories: &Repositories) -> Led {
        let Self { named, repository, cache, leadership } = self;
        let leads = (epoch, leadership.clone());
        let coordinator =
            Coordinator::leading(repositories.shared().clone(), named.name.clone(), repository, cache, leads);
        Led { named, leadership, coordinator, began: tokio::sync::Mutex::new(false) }
    }
}

impl Led {
    pub(crate) fn name(&self) -> &str {
        &self.named.name
    }

    pub(crate) fn url(&self) -> &StoreUrl {
        &self.named.url
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.coordinator.epoch
    }

    /// Goes on with the runs that an earlier leader left, and takes orders from then on.
    async fn begin(&self, repositories: &Repositories) -> Result<(), Failure> {
        // Only once: a run that goes on twice in one process would end itself.
        let mut began = self.began.lock().await;
        if !*began {
            self.coordinator.take_over().await?;
            *began = true;
            repositories.ready(self.coordinator.clone());
        }
        Ok(())
    }

    /// Holds the lease and keeps the keys locked, until somebody else leads. While the store can't be asked, only this repository
    /// can't be used: its runs stay, and go on.
    async fn hold(&self, repositories: &Repositories) -> Lost {
        let holding = async {
            loop {
                let lost = self.leadership.hold(self.epoch()).await;
                if matches!(lost, Lost::Superseded(_)) || repositories.states().len() == 1 {
                    return lost;
                }
                tracing::error!(repository = self.name(), why = %lost, "a repository can't be used; the others go on");
                repositories.not_ready(self.name(), self.url().to_string(), lost.to_string());
                loop {
                    match self.leadership.leads(self.epoch()).await {
                        Ok(true) => break,
                        Ok(false) => return Lost::Superseded(self.epoch()),
                        Err(_) => tokio::time::sleep(self.leadership.pause()).await,
                    }
                }
                // A repository whose left runs were not looked at yet becomes ready once they were.
                if *self.began.lock().await {
                    tracing::info!(repository = self.name(), "a repository can be used again");
                    repositories.ready(self.coordinator.clone());
                }
            }
        };
        // The runs that an earlier leader left could not be looked at before: this is tried again.
        let beginning = async {
            while let Err(e) = self.begin(repositories).await {
                repositories.not_ready(self.name(), self.url().to_string(), chain(&e));
                tokio::time::sleep(AGAIN).await;
            }
            std::future::pending::<()>().await;
        };
        // The keys are kept locked whatever else fails: keys whose locks run out can be deleted.
        let keeping = key_locks::keep_keys_locked(self.name(), &self.coordinator.repository);
        tokio::select! {
            lost = holding => lost,
            () = beginning => Lost::Superseded(self.epoch()),
            () = keeping => Lost::Superseded(self.epoch()),
        }
    }
}

impl LedRepositories {
    /// Opens all repositories that can be opened.
    ///
    /// # Errors
    /// [`ServeError`] when none can be opened.
    pub(crate) async fn open(args: &Args, repositories: Repositories) -> Result<Self, ServeError> {
        let alone = args.repository.len() == 1;
        let mut missing: Vec<Named> = Vec::new();
        let mut opening = FuturesUnordered::new();
        for r in &args.repository {
            let named = Named {
                name: r.name.clone(),
                url: r.url.clone(),
                way: args.way(&r.name),
                password: None,
                cache: args.cache.clone(),
                take_over_after: args.take_over_after,
            };
            repositories.not_ready(&r.name, r.url.to_string(), "not open yet".into());
            missing.push(named.clone());
            opening.push(async move { (named.name.clone(), named.open().await) });
        }
        let mut opened = Vec::new();
        let mut failed = None;
        let all = async {
            while let Some((name, result)) = opening.next().await {
                match result {
                    Ok(one) => {
                        missing.retain(|m| m.name != name);
                        opened.push(one);
                    }
                    Err(e) if alone => failed = Some(e),
                    Err(e) => {
                        let why = chain(&e);
                        tracing::error!(repository = name, why, "a repository can't be used; it is tried again");
                        if let Some(m) = missing.iter().find(|m| m.name == name) {
                            repositories.not_ready(&name, m.url.to_string(), why.clone());
                        }
                        failed.get_or_insert(ServeError::NoRepository(format!("{name}: {why}")));
                    }
                }
            }
        };
        match alone {
            true => all.await,
            // Repositories that take longer are opened in the background.
            false => drop(tokio::time::timeout(OPEN_LIMIT, all).await),
        }
        drop(opening);
        match failed {
            Some(e) if opened.is_empty() => return Err(e),
            None if opened.is_empty() => return Err(ServeError::NoRepository("none of them answers".into())),
            _ => {}
        }
        opened.sort_by(|a, b| a.named.name.cmp(&b.named.name));
        Ok(Self { repositories, opened, missing, alone })
    }

    /// Waits until this process leads the open repositories. The others are tried in the background from then on.
    ///
    /// # Errors
    /// [`ServeError`] when none of them can be led.
    pub(crate) async fn campaign(self) -> Result<Leading, ServeError> {
        let Self { repositories, opened, mut missing, alone } = self;
        let leaderships: Vec<Arc<dyn Leadership>> = opened.iter().map(|o| o.leadership.clone()).collect();
        let won = leader::campaign(&leaderships).await?;
        let mut led = Vec::new();
        for (opened, epoch) in opened.into_iter().zip(won) {
            match epoch {
                Ok(epoch) => led.push(opened.led(epoch, &repositories)),
                Err(e) => {
                    let Named { name, url, .. } = &opened.named;
                    repositories.not_ready(name, url.to_string(), e.to_string());
                    missing.push(opened.named);
                }
            }
        }
        let mut background = tokio::task::JoinSet::new();
        for named in missing {
            background.spawn(join(named, repositories.clone()));
        }
        let background = tokio::sync::Mutex::new(background);
        Ok(Leading { repositories, led, alone, background })
    }
}

/// Opens a repository that could not be used when the others were led, leads it, and holds it until somebody else leads it. Returns
/// why.
pub(crate) async fn join(named: Named, repositories: Repositories) -> String {
    let (name, url) = (named.name.clone(), named.url.to_string());
    loop {
        let joined = async {
            let opened = named.clone().open().await?;
            let won = leader::campaign(std::slice::from_ref(&opened.leadership)).await?;
            let epoch = won.into_iter().next().ok_or_else(|| ServeError::NoRepository(name.clone()))??;
            let led = opened.led(epoch, &repositories);
            led.begin(&repositories).await?;
            tracing::info!(repository = name, epoch, "a repository that could not be used is served now");
            Ok::<_, ServeError>(led)
        };
        let why = match joined.await {
            // Another process has its runs now, and takes over those of the other repositories too.
            Ok(led) => return format!("{name}: {}", led.hold(&repositories).await),
            Err(e) => chain(&e),
        };
        tracing::error!(repository = name, why, "a repository can't be used; it is tried again");
        repositories.not_ready(&name, url.clone(), why);
        tokio::time::sleep(AGAIN).await;
    }
}

impl Leading {
    /// The repositories that are led.
    pub(crate) fn led(&self) -> &[Led] {
        &self.led
    }

    /// Goes on with the runs that were left in each of them.
    ///
    /// # Errors
    /// [`Failure`] where there is only one. Where there are several, one that fails is tried again while it is held.
    pub(crate) async fn take_over(&self) -> Result<(), Failure> {
        for led in &self.led {
            match led.begin(&self.repositories).await {
                Err(e) if self.alone => return Err(e),
                Err(e) => {
                    tracing::error!(
                        repository = led.name(),
                        why = chain(&e),
                        "what was left can't be looked at; it is tried again"
                    );
                    self.repositories.not_ready(led.name(), led.url().to_string(), chain(&e));
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Holds all of them until somebody else leads one: that process then leads all of them. Returns why.
    pub(crate) async fn hold(&self) -> String {
        let holds = self.led.iter().map(|led| Box::pin(led.hold(&self.repositories)));
        let led = async {
            let (lost, n, _) = futures::future::select_all(holds).await;
            match self.led[n].name() {
                "" => lost.to_string(),
                name => format!("{name}: {lost}"),
            }
        };
        let joined = async {
            match self.background.lock().await.join_next().await {
                Some(Ok(why)) => why,
                Some(Err(e)) => format!("a task ended: {e}"),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            why = led => why,
            why = joined => why,
        }
    }

    /// Gives up the lease of each of them.
    pub(crate) async fn release(&self) {
        futures::future::join_all(self.led.iter().map(|led| led.leadership.release(led.epoch()))).await;
    }
}
