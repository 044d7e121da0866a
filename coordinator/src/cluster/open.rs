//! From a `Repository` object, its Secret and the tokens of this process to what opens the repository.

use k8s_openapi::api::core::v1::Secret;
use milkrun_coordinator::secret::Password;
use milkrun_repository::store::StoreUrl;
use milkrun_repository::store::connect::ConnectOptions;
use milkrun_repository::store::s3::{S3Access, S3Credentials, S3Role};
use milkrun_resources::Repository;
use zeroize::Zeroizing;

use crate::args::StoreToken;

/// What is needed to open a repository.
#[derive(Clone)]
pub(crate) struct Opening {
    pub(crate) url: StoreUrl,
    pub(crate) options: ConnectOptions,
    pub(crate) password: Password,
}

/// What is wrong with the object or its Secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Wrong {
    #[error("there is no Secret {0} in this namespace")]
    NoSecret(String),
    #[error("the Secret {secret} has no {key}")]
    NoKey { secret: String, key: &'static str },
    #[error("the Secret {secret}: {key} is no text")]
    NoText { secret: String, key: &'static str },
    #[error("spec.url: {0}")]
    Url(String),
    #[error(
        "the coordinator has no token for spec.identity.audience {0:?}: list it in the chart's value coordinator.storeAudiences"
    )]
    NoToken(String),
}

/// What an object says, with its Secret. `tokens`: the files with a token of ours, by audience.
pub(crate) fn opening(
    repository: &Repository,
    secret: Option<&Secret>,
    tokens: &[StoreToken],
    options: ConnectOptions,
) -> Result<Opening, Wrong> {
    let name = &repository.spec.secret_name;
    let data = secret.ok_or_else(|| Wrong::NoSecret(name.clone()))?.data.as_ref();
    let bytes = |key: &'static str| {
        let found = data.and_then(|data| data.get(key)).filter(|bytes| !bytes.0.is_empty());
        found.ok_or_else(|| Wrong::NoKey { secret: name.clone(), key })
    };
    let text = |key: &'static str| {
        let text = String::from_utf8(bytes(key)?.0.clone()).map_err(|_| Wrong::NoText { secret: name.clone(), key })?;
        Ok::<_, Wrong>(Zeroizing::new(text.trim_end_matches(['\n', '\r']).to_owned()))
    };
    let url: StoreUrl = repository.spec.url.parse().map_err(|e| Wrong::Url(format!("{e}")))?;
    let credentials = || match &repository.spec.identity {
        None => Ok(S3Credentials::Key { id: text("accessKeyId")?.to_string(), secret: text("secretAccessKey")? }),
        Some(identity) => {
            let token = tokens.iter().find(|token| token.audience == identity.audience);
            Ok(S3Credentials::Role(S3Role {
                arn: identity.role_arn.clone(),
                session: "milkrun-coordinator".into(),
                token: token.ok_or_else(|| Wrong::NoToken(identity.audience.clone()))?.file.clone(),
                endpoint: identity.endpoint.clone(),
            }))
        }
    };
    let access = match &url {
        StoreUrl::S3 { .. } => Some(S3Access {
            credentials: credentials()?,
            region: repository.spec.region.clone(),
            endpoint: repository.spec.endpoint.clone(),
        }),
        StoreUrl::Directory(_) => None,
    };
    let mut password = Zeroizing::new(bytes("password")?.0.clone());
    // Editors end a file with a line break, which does not belong to the secret.
    while password.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        password.pop();
    }
    Ok(Opening { url, options: ConnectOptions { access, ..options }, password })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use milkrun_resources::RepositorySpec;

    use super::*;

    fn repository(url: &str) -> Repository {
        let spec =
            serde_json::from_value::<RepositorySpec>(serde_json::json!({"url": url, "secretName": "s"})).unwrap();
        Repository::new("prod", spec)
    }

    fn secret(keys: &[(&str, &str)]) -> Secret {
        let data = keys.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec()))).collect();
        Secret { data: Some(data), ..Secret::default() }
    }

    #[test]
    fn what_is_missing_is_named() {
        let open = |url: &str, secret: Option<&Secret>| {
            opening(&repository(url), secret, &[], ConnectOptions::default()).map(drop)
        };
        let whole = secret(&[("password", "p\n"), ("accessKeyId", "a"), ("secretAccessKey", "s")]);
        assert_eq!(open("s3://bucket/p", Some(&whole)), Ok(()));
        assert_eq!(open("s3://bucket/p", None), Err(Wrong::NoSecret("s".into())));
        let without = secret(&[("password", "p"), ("accessKeyId", "")]);
        let missing = Err(Wrong::NoKey { secret: "s".into(), key: "accessKeyId" });
        assert_eq!(open("s3://bucket/p", Some(&without)), missing);
        assert!(matches!(open("http://b", Some(&whole)), Err(Wrong::Url(_))));
        let opened = opening(&repository("s3://bucket/p"), Some(&whole), &[], ConnectOptions::default()).unwrap();
        assert_eq!(opened.password.as_slice(), b"p");
    }

    #[test]
    fn a_role_needs_a_token_for_its_audience_and_no_key() {
        let only_the_password = secret(&[("password", "p")]);
        let mut repository = repository("s3://bucket/p");
        let identity = serde_json::json!({"roleARN": "arn:aws:iam::1:role/backup"});
        repository.spec.identity = Some(serde_json::from_value(identity).unwrap());
        let open = |tokens: &[StoreToken]| {
            let opened = opening(&repository, Some(&only_the_password), tokens, ConnectOptions::default())?;
            Ok(opened.options.access.unwrap().credentials)
        };
        let token = |audience: &str| StoreToken { audience: audience.into(), file: "/tokens/0".into() };
        let missing = open(&[token("else")]).map(|_| ());
        assert_eq!(missing, Err(Wrong::NoToken("sts.amazonaws.com".into())));
        let Ok(S3Credentials::Role(role)) = open(&[token("else"), token("sts.amazonaws.com")]) else { panic!() };
        assert_eq!(
            (role.arn.as_str(), role.token.to_str(), role.endpoint),
            ("arn:aws:iam::1:role/backup", Some("/tokens/0"), None)
        );
    }
}
