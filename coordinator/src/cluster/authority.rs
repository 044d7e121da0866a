//! The authority of the cluster's certificates: a Secret that is made if there is none, or that somebody else keeps
//! (cert-manager, say). Its certificate is published in a ConfigMap, by which agents and operators know the coordinator.
//!
//! When another authority takes its place, the former one is trusted for as long as its certificates may be in use. The coordinator
//! itself goes on with its own certificate until the ConfigMap has come to all others.

mod secrets;
mod trust;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::{Api, Client};
use milkrun_identity::Peer;
use milkrun_identity::authority::Authority as Issuer;
use milkrun_identity::tls::{CA_FILE, Credentials};
use milkrun_repository::clock::Moment;
use milkrun_repository::point::catalog::chain;
use tokio::time::Instant;

use super::error::{ClusterError, api};
use crate::args::AuthorityOf;
use secrets::{NAME, OWN_KEY, Pair};
use trust::Trust;

/// How often the Secret is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// How long a changed ConfigMap takes to come to all pods: kubelets look about once a minute.
const SPREAD: Duration = Duration::from_secs(300);
/// How long the coordinator's own certificate is valid. A new one is made when half of that is over.
const OWN_VALID: Duration = Duration::from_secs(30 * 86_400);

/// The authority, opened.
pub(crate) struct Authority {
    secrets: Api<Secret>,
    maps: Api<ConfigMap>,
    of: AuthorityOf,
    hosts: Vec<String>,
    folder: tempfile::TempDir,
    state: Mutex<State>,
}

/// What is in use.
#[derive(Clone)]
struct State {
    issuer: Arc<Issuer>,
    trust: Trust,
    /// When the own certificate is made anew.
    due: Instant,
}

impl Authority {
    /// Opens the cluster's authority, or makes it. `service` is the name of the coordinator's Service.
    pub(crate) async fn in_cluster(
        client: &Client,
        namespace: &str,
        service: &str,
        of: AuthorityOf,
    ) -> Result<Self, ClusterError> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let pair = find(&secrets, of).await?;
        let folder = tempfile::tempdir()?;
        let issuer = Arc::new(open(folder.path(), &pair)?);
        let trust = secrets::read_trusted(&secrets).await?.with(&pair.certificate, Moment::now());
        let this = Self {
            secrets,
            maps: Api::namespaced(client.clone(), namespace),
            of,
            hosts: vec![
                service.to_owned(),
                format!("{service}.{namespace}"),
                format!("{service}.{namespace}.svc"),
                format!("{service}.{namespace}.svc.cluster.local"),
            ],
            folder,
            state: Mutex::new(State { issuer: issuer.clone(), trust: trust.clone(), due: Instant::now() }),
        };
        this.tell(&trust).await?;
        this.issue_own(&issuer, &trust)?;
        this.set(|state| state.due = Instant::now() + OWN_VALID / 2);
        this.credentials().check()?;
        Ok(this)
    }

    fn own(&self) -> PathBuf {
        self.folder.path().join("own")
    }

    /// Those of the coordinator itself.
    pub(crate) fn credentials(&self) -> Credentials {
        Credentials::new(self.own())
    }

    /// Whoever signs now.
    pub(crate) fn issuer(&self) -> Arc<Issuer> {
        self.state().issuer
    }

    /// The certificates of all authorities that are trusted, in PEM.
    pub(crate) fn trusted(&self) -> String {
        self.state().trust.bundle()
    }

    fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Looks at the Secret again and again, and renews certificates in time.
    pub(crate) async fn keep(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Err(e) = self.look().await {
                tracing::error!(reason = chain(&e), "the authority is left as it was");
            }
        }
    }

    /// What ends or has to be renewed does so whether the Secret can be used or not.
    async fn look(&self) -> Result<(), ClusterError> {
        let looked = self.look_at_secret().await;
        let State { issuer, trust, .. } = self.state();
        let now = trust.with(issuer.certificate(), Moment::now());
        if now != trust {
            self.trust(&now).await?;
        }
        let state = self.state();
        if state.due <= Instant::now() {
            self.issue_own(&state.issuer, &state.trust)?;
            self.set(|state| state.due = Instant::now() + OWN_VALID / 2);
        }
        looked
    }

    async fn look_at_secret(&self) -> Result<(), ClusterError> {
        let state = self.state();
        let mut pair = match secrets::read(&self.secrets).await? {
            Some(pair) => pair,
            None if self.of == AuthorityOf::Own => secrets::make(&self.secrets).await?,
            None => return Err(ClusterError::NoAuthority(NAME)),
        };
        if let Some(version) = pair.ours.clone()
            && is_old(state.issuer.validity()?, Moment::now())
            && state.issuer.certificate() == pair.certificate
        {
            pair = secrets::replace(&self.secrets, version).await?;
        }
        if state.issuer.certificate() == pair.certificate {
            return Ok(());
        }
        let issuer = Arc::new(open(self.folder.path(), &pair)?);
        // Whatever it signs must be trusted from its first signature on.
        self.trust(&state.trust.with(&pair.certificate, Moment::now())).await?;
        tracing::warn!("another authority takes the place of the one before");
        self.set(|state| (state.issuer, state.due) = (issuer, Instant::now() + SPREAD));
        Ok(())
    }

    /// Trusts these from now on.
    async fn trust(&self, trust: &Trust) -> Result<(), ClusterError> {
        write(&self.own().join(CA_FILE), &trust.bundle())?;
        self.tell(trust).await?;
        self.set(|state| state.trust = trust.clone());
        Ok(())
    }

    /// Writes down which authorities are trusted, and publishes them.
    async fn tell(&self, trust: &Trust) -> Result<(), ClusterError> {
        secrets::write_trusted(&self.secrets, trust).await?;
        let metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
        let data = Some([(CA_FILE.to_owned(), trust.bundle())].into());
        let map = ConfigMap { metadata, data, ..ConfigMap::default() };
        let params = PatchParams::apply("milkrun-coordinator").force();
        let done = self.maps.patch(NAME, &params, &Patch::Apply(&map)).await;
        done.map(drop).map_err(api("publish the authority"))
    }

    /// Makes the own certificate, and puts it in the place of the one before at once.
    fn issue_own(&self, issuer: &Issuer, trust: &Trust) -> Result<(), ClusterError> {
        let made = issuer.issue(&Peer::Coordinator, &self.hosts, OWN_VALID)?;
        // A folder of its own: the issuer gives no name twice.
        let folder = tempfile::Builder::new().prefix("own-").tempdir_in(self.folder.path())?.keep();
        let kept = folder.join("certificate");
        fs::rename(&made, &kept)?;
        write(&kept.join(CA_FILE), &trust.bundle())?;
        let (link, new) = (self.own(), folder.join("link"));
        let before = fs::read_link(&link).ok();
        symlink(&kept, &new)?;
        fs::rename(&new, &link)?;
        if let Some(folder) = before.as_deref().and_then(Path::parent) {
            let _ = fs::remove_dir_all(folder);
        }
        Ok(())
    }
}

/// Finds the authority, or makes it, or waits until somebody else has.
async fn find(secrets: &Api<Secret>, of: AuthorityOf) -> Result<Pair, ClusterError> {
    loop {
        match secrets::read(secrets).await? {
            Some(pair) => return Ok(pair),
            None if of == AuthorityOf::Own => return secrets::make(secrets).await,
            None => tracing::warn!(secret = NAME, "waits for the Secret of the authority, which somebody else makes"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Opens an authority in a folder of its own below this one. The key lies there no longer than that.
fn open(below: &Path, pair: &Pair) -> Result<Issuer, ClusterError> {
    let folder = tempfile::Builder::new().prefix("issuer-").tempdir_in(below)?;
    write(&folder.path().join(CA_FILE), &pair.certificate)?;
    write(&folder.path().join(OWN_KEY), &pair.key)?;
    let issuer = Issuer::open(folder.path())?;
    fs::remove_file(folder.path().join(OWN_KEY))?;
    // Certificates are issued there.
    let _ = folder.keep();
    Ok(issuer)
}

/// Whether two thirds of the time are over.
fn is_old((from, until): (Moment, Moment), now: Moment) -> bool {
    now.millis() - from.millis() > (until.millis() - from.millis()) / 3 * 2
}

/// Replaces a file whole.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_old_when_two_thirds_of_its_time_are_over() {
        let day = |days: i64| Moment::from_millis(days * 86_400_000);
        assert!(!is_old((day(0), day(3650)), day(2400)));
        assert!(is_old((day(0), day(3650)), day(2450)));
    }
}
