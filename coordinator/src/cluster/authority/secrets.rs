//! The Secret of the authority, and that of the authorities that are trusted.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use milkrun_identity::authority::Authority as Issuer;
use milkrun_identity::tls::{CA_FILE, CERTIFICATE_FILE, KEY_FILE};

use super::trust::Trust;
use crate::cluster::error::{ClusterError, api};

/// The authority's Secret.
pub(super) const NAME: &str = "milkrun-authority";
/// The key of an authority that we made.
pub(super) const OWN_KEY: &str = "ca.key";
const TRUSTED: &str = "milkrun-authority-trusted";
const TRUSTED_KEY: &str = "trusted.json";
/// How long a new authority is valid.
const VALID: Duration = Duration::from_secs(10 * 365 * 86_400);
const END: &str = "-----END CERTIFICATE-----";

/// An authority's certificate and key.
pub(super) struct Pair {
    /// PEM, the authority's alone.
    pub(super) certificate: String,
    /// PEM.
    pub(super) key: String,
    /// The version of the Secret, if we made it and renew it; otherwise somebody else does.
    pub(super) ours: Option<String>,
}

impl Pair {
    /// Of a Secret. cert-manager's have other names than ours, and what it signed comes with the chain up to its root.
    fn of(secret: &Secret) -> Result<Self, ClusterError> {
        let text = |name: &str| {
            let bytes = secret.data.as_ref()?.get(name)?;
            String::from_utf8(bytes.0.clone()).ok().filter(|text| !text.trim().is_empty())
        };
        let (certificate, key) = (text(CERTIFICATE_FILE), text(KEY_FILE));
        // What we made before may still lie beside what somebody else keeps.
        let is_given = certificate.is_some() || key.is_some();
        let (pair, ours) = if is_given {
            (certificate.zip(key), None)
        } else {
            (text(CA_FILE).zip(text(OWN_KEY)), secret.metadata.resource_version.clone())
        };
        let (chain, key) = pair.ok_or(ClusterError::Authority(NAME))?;
        let end = chain.find(END).ok_or(ClusterError::Authority(NAME))? + END.len();
        Ok(Self { certificate: format!("{}\n", &chain[..end]), key, ours })
    }
}

/// Reads the authority, if there is one.
pub(super) async fn read(secrets: &Api<Secret>) -> Result<Option<Pair>, ClusterError> {
    let found = secrets.get_opt(NAME).await.map_err(api("read the Secret of the authority"))?;
    found.as_ref().map(Pair::of).transpose()
}

fn new(version: Option<String>) -> Result<Secret, ClusterError> {
    let folder = tempfile::tempdir()?;
    Issuer::create(folder.path(), VALID)?;
    let mut data = BTreeMap::new();
    for file in [CA_FILE, OWN_KEY] {
        data.insert(file.to_owned(), ByteString(fs::read(folder.path().join(file))?));
    }
    let metadata = ObjectMeta { name: Some(NAME.into()), resource_version: version, ..ObjectMeta::default() };
    Ok(Secret { metadata, data: Some(data), ..Secret::default() })
}

/// Makes an authority; if another process was faster, its one counts.
pub(super) async fn make(secrets: &Api<Secret>) -> Result<Pair, ClusterError> {
    let made = match secrets.create(&PostParams::default(), &new(None)?).await {
        Err(kube::Error::Api(status)) if status.code == 409 => secrets.get(NAME).await,
        other => other,
    };
    Pair::of(&made.map_err(api("make the Secret of the authority"))?)
}

/// Makes another authority in the place of ours. `version`: that of the Secret as it was read.
pub(super) async fn replace(secrets: &Api<Secret>, version: String) -> Result<Pair, ClusterError> {
    let made = secrets.replace(NAME, &PostParams::default(), &new(Some(version))?).await;
    Pair::of(&made.map_err(api("renew the Secret of the authority"))?)
}

/// Reads which authorities are trusted.
pub(super) async fn read_trusted(secrets: &Api<Secret>) -> Result<Trust, ClusterError> {
    let found = secrets.get_opt(TRUSTED).await.map_err(api("read which authorities are trusted"))?;
    let Some(bytes) = found.and_then(|secret| secret.data?.remove(TRUSTED_KEY)) else { return Ok(Trust::default()) };
    serde_json::from_slice(&bytes.0).map_err(|_| ClusterError::Trusted(TRUSTED))
}

/// Writes down which authorities are trusted.
pub(super) async fn write_trusted(secrets: &Api<Secret>, trust: &Trust) -> Result<(), ClusterError> {
    let json = serde_json::to_vec(trust).map_err(|_| ClusterError::Trusted(TRUSTED))?;
    let metadata = ObjectMeta { name: Some(TRUSTED.into()), ..ObjectMeta::default() };
    let data = Some([(TRUSTED_KEY.to_owned(), ByteString(json))].into());
    let secret = Secret { metadata, data, ..Secret::default() };
    let params = PatchParams::apply("milkrun-coordinator").force();
    let done = secrets.patch(TRUSTED, &params, &Patch::Apply(&secret)).await;
    done.map(drop).map_err(api("write down which authorities are trusted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(data: &[(&str, &str)]) -> Secret {
        let data = data.iter().map(|(name, text)| ((*name).to_owned(), ByteString(text.as_bytes().to_vec())));
        let metadata = ObjectMeta { resource_version: Some("7".into()), ..ObjectMeta::default() };
        Secret { metadata, data: Some(data.collect()), ..Secret::default() }
    }

    #[test]
    fn an_authority_is_ours_or_somebody_elses() {
        let one = |body: &str| format!("-----BEGIN CERTIFICATE-----\n{body}\n{END}\n");
        let own = Pair::of(&secret(&[("ca.crt", &one("A")), ("ca.key", "K")])).unwrap();
        assert_eq!((own.certificate, own.key, own.ours), (one("A"), "K".into(), Some("7".into())));
        // cert-manager's: `ca.crt` is that of whoever signed it.
        let chain = one("B") + &one("ROOT");
        let given = Pair::of(&secret(&[("tls.crt", &chain), ("tls.key", "L"), ("ca.crt", &one("ROOT"))])).unwrap();
        assert_eq!((given.certificate, given.key, given.ours), (one("B"), "L".into(), None));
        for bad in [secret(&[]), secret(&[("ca.crt", &one("A"))]), secret(&[("tls.crt", "nonsense"), ("tls.key", "L")])]
        {
            assert!(matches!(Pair::of(&bad), Err(ClusterError::Authority(NAME))));
        }
    }
}
