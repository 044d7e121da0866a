//! From a `Repository` object and its Secret to what opens it.

use k8s_openapi::api::core::v1::Secret;
use milkrun_coordinator::secret::Password;
use milkrun_repository::store::StoreUrl;
use milkrun_repository::store::connect::ConnectOptions;
use milkrun_repository::store::s3::S3Access;
use milkrun_resources::Repository;
use zeroize::Zeroizing;

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
}

/// What an object says, with its Secret.
pub(crate) fn opening(
    repository: &Repository,
    secret: Option<&Secret>,
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
    let access = match &url {
        StoreUrl::S3 { .. } => Some(S3Access {
            access_key_id: text("accessKeyId")?.to_string(),
            secret_access_key: text("secretAccessKey")?,
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
        let open =
            |url: &str, secret: Option<&Secret>| opening(&repository(url), secret, ConnectOptions::default()).map(drop);
        let whole = secret(&[("password", "p\n"), ("accessKeyId", "a"), ("secretAccessKey", "s")]);
        assert_eq!(open("s3://bucket/p", Some(&whole)), Ok(()));
        assert_eq!(open("s3://bucket/p", None), Err(Wrong::NoSecret("s".into())));
        let without = secret(&[("password", "p"), ("accessKeyId", "")]);
        let missing = Err(Wrong::NoKey { secret: "s".into(), key: "accessKeyId" });
        assert_eq!(open("s3://bucket/p", Some(&without)), missing);
        assert!(matches!(open("http://b", Some(&whole)), Err(Wrong::Url(_))));
        assert_eq!(
            opening(&repository("s3://bucket/p"), Some(&whole), ConnectOptions::default()).unwrap().password.as_slice(),
            b"p"
        );
    }
}
