//! Opens the store that a URL names, and the repository in it.

use milkrun_repository::Repository;
use milkrun_repository::index::IndexCache;
use milkrun_repository::repository::{self, Credential};
use milkrun_repository::store::StoreUrl;
use milkrun_repository::store::connect::ConnectOptions;
pub(crate) use milkrun_repository::store::connect::OpenedStore;
use milkrun_repository::store::s3::Addressing;

use crate::args::{self, Global};
use crate::output::{CliError, Exit, note};
use crate::secret;

/// Connects (lazily) to where the URL points.
pub(crate) async fn connect(url: &StoreUrl, global: &Global) -> Result<OpenedStore, CliError> {
    let addressing = match global.s3_addressing {
        args::Addressing::Auto => Addressing::Auto,
        args::Addressing::Path => Addressing::Path,
        args::Addressing::Host => Addressing::VirtualHost,
    };
    let way = ConnectOptions {
        ca_file: global.ca_file.clone(),
        limit_upload: global.limit_upload,
        addressing,
        profile: None,
        access: None,
    };
    way.with_ca_of_environment().connect(url).await.map_err(|e| CliError::from_error(&e))
}

/// Connects and opens the repository with the secret.
pub(crate) async fn open(url: &StoreUrl, global: &Global) -> Result<(Repository, OpenedStore), CliError> {
    let place = connect(url, global).await?;
    let repository = match &global.recovery_key_file {
        Some(file) => {
            let secret = secret::recovery_key(file)?;
            repository::open(place.store.clone(), Credential::Recovery(&secret)).await?
        }
        None => {
            let password = secret::password(false)?;
            repository::open(place.store.clone(), Credential::Password(&password)).await?
        }
    };
    Ok((repository, place))
}

/// Warns if another repository was at this address before.
///
/// # Errors
/// If the command `writes`, this is an error instead of a warning.
pub(crate) fn check_address(repository: &Repository, writes: bool, global: &Global) -> Result<(), CliError> {
    match cache(repository, global).last_seen().stands_at(&repository.store.address()) {
        Ok(()) => Ok(()),
        Err(e) if writes => Err(CliError { exit: Exit::Damage, ..CliError::from_error(&e) }),
        Err(e) => {
            note(&format!("milkrun: {e}"));
            Ok(())
        }
    }
}

/// The local cache of index segments.
pub(crate) fn cache(repository: &Repository, global: &Global) -> IndexCache {
    let folder = IndexCache::folder(global.cache.clone());
    IndexCache::new(folder.as_deref(), &repository.config.id, &repository.ring)
}
