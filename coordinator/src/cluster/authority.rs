//! The authority of the cluster's certificates: a Secret that is made if there is none, or that somebody else keeps
//! (cert-manager, say). Its certificate is published in a ConfigMap, by which agents and operators know the coordinator.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use milkrun_identity::Peer;
use milkrun_identity::authority::Authority as Issuer;
use milkrun_identity::tls::{CA_FILE, Credentials};

use super::error::{ClusterError, api};

const NAME: &str = "milkrun-authority";
const KEY: &str = "ca.key";
const DAY: Duration = Duration::from_secs(86_400);
/// How long a new authority is valid.
const VALID: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long the coordinator's own certificate is valid. A new one is made when half of that is over.
const OWN_VALID: Duration = Duration::from_secs(30 * 86_400);

/// The authority, opened.
pub(crate) struct Authority {
    issuer: Issuer,
    folder: tempfile::TempDir,
    credentials: Credentials,
    hosts: Vec<String>,
}

impl Authority {
    /// Opens the cluster's authority, or makes it. `service` is the name of the coordinator's Service.
    pub(crate) async fn in_cluster(client: &Client, namespace: &str, service: &str) -> Result<Self, ClusterError> {
        let folder = tempfile::tempdir()?;
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let found = secrets.get_opt(NAME).await.map_err(api("read the Secret of the authority"))?;
        let secret = match found {
            Some(secret) => secret,
            None => make(&secrets).await?,
        };
        let data = secret.data.unwrap_or_default();
        for file in [CA_FILE, KEY] {
            let bytes = data.get(file).ok_or(ClusterError::Authority(NAME))?;
            fs::write(folder.path().join(file), &bytes.0)?;
        }
        let issuer = Issuer::open(folder.path())?;
        publish(client, namespace, issuer.certificate()).await?;
        let hosts = vec![
            service.to_owned(),
            format!("{service}.{namespace}"),
            format!("{service}.{namespace}.svc"),
            format!("{service}.{namespace}.svc.cluster.local"),
        ];
        let own = issuer.issue(&Peer::Coordinator, &hosts, OWN_VALID)?;
        let credentials = Credentials::new(own);
        credentials.check()?;
        Ok(Self { issuer, folder, credentials, hosts })
    }

    /// Those of the coordinator itself.
    pub(crate) fn credentials(&self) -> Credentials {
        self.credentials.clone()
    }

    pub(crate) fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// Makes the own certificate anew in time, again and again.
    pub(crate) async fn keep(&self) {
        loop {
            tokio::time::sleep(OWN_VALID / 2).await;
            if let Err(e) = self.renew() {
                tracing::error!(reason = milkrun_repository::point::catalog::chain(&e), "the own certificate");
                // There is half of its time to try again.
                tokio::time::sleep(DAY).await;
            }
        }
    }

    fn renew(&self) -> Result<(), ClusterError> {
        let own = self.folder.path().join(format!("coordinator-{}", self.hosts[0]));
        let before = self.folder.path().join("before");
        let _ = fs::remove_dir_all(&before);
        fs::rename(&own, &before)?;
        match self.issuer.issue(&Peer::Coordinator, &self.hosts, OWN_VALID) {
            Ok(_) => Ok(()),
            Err(e) => {
                fs::rename(&before, &own)?;
                Err(e.into())
            }
        }
    }
}

/// Makes the Secret; if another process was faster, its one counts.
async fn make(secrets: &Api<Secret>) -> Result<Secret, ClusterError> {
    let folder = tempfile::tempdir()?;
    Issuer::create(folder.path(), VALID)?;
    let mut data = BTreeMap::new();
    for file in [CA_FILE, KEY] {
        data.insert(file.to_owned(), ByteString(fs::read(folder.path().join(file))?));
    }
    let metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
    let secret = Secret { metadata, data: Some(data), ..Secret::default() };
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(made) => Ok(made),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            secrets.get(NAME).await.map_err(api("read the Secret of the authority"))
        }
        Err(e) => Err(api("make the Secret of the authority")(e)),
    }
}

async fn publish(client: &Client, namespace: &str, certificate: &str) -> Result<(), ClusterError> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
    let data = Some([(CA_FILE.to_owned(), certificate.to_owned())].into());
    let map = ConfigMap { metadata, data, ..ConfigMap::default() };
    let params = PatchParams::apply("milkrun-coordinator").force();
    maps.patch(NAME, &params, &Patch::Apply(&map)).await.map_err(api("publish the authority"))?;
    Ok(())
}
