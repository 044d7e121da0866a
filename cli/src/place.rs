//! From a URL to a store, and to an open repository.

use std::path::PathBuf;
use std::sync::Arc;

use milkrun_repository::Repository;
use milkrun_repository::index::IndexCache;
use milkrun_repository::store::directory::Directory;
use milkrun_repository::store::grant::{Redeem, Redeemer};
use milkrun_repository::store::retry::{Patience, Retrying};
use milkrun_repository::store::s3::{Addressing, S3, S3Options};
use milkrun_repository::store::throttle::Throttle;
use milkrun_repository::store::{SharedStore, Store, StoreUrl};

use crate::args::{self, Global};
use crate::output::CliError;
use crate::secret;

/// A store, and what uses its grants.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) store: SharedStore,
    pub(crate) redeem: Arc<dyn Redeem>,
}

/// Connects (lazily) to where the URL points.
pub(crate) async fn connect(url: &StoreUrl, global: &Global) -> Result<Place, CliError> {
    let throttle = global.limit_upload.map_or_else(Throttle::none, Throttle::new);
    let ca_file = global.ca_file.clone().or_else(|| std::env::var_os("AWS_CA_BUNDLE").map(PathBuf::from));
    let redeemer = Redeemer::new(ca_file.as_deref(), throttle.clone()).map_err(|e| CliError::from_error(&e))?;
    match url {
        StoreUrl::Directory(path) => Ok(place(Directory::new(path, throttle), redeemer)),
        StoreUrl::S3 { bucket, prefix } => {
            let addressing = match global.s3_addressing {
                args::Addressing::Auto => Addressing::Auto,
                args::Addressing::Path => Addressing::Path,
                args::Addressing::Host => Addressing::VirtualHost,
            };
            let options = S3Options { addressing, ca_file, throttle };
            let s3 = S3::new(bucket, prefix, options).await.map_err(|e| CliError::from_error(&e))?;
            Ok(place(s3, redeemer))
        }
    }
}

#[cfg(not(feature = "faults"))]
fn place(store: impl Store, redeem: impl Redeem) -> Place {
    Place {
        store: Arc::new(Retrying::new(store, Patience::DEFAULT)),
        redeem: Arc::new(Retrying::new(redeem, Patience::DEFAULT)),
    }
}

/// With a crash point before and after every call.
#[cfg(feature = "faults")]
fn place(store: impl Store, redeem: impl Redeem) -> Place {
    use milkrun_repository::store::faulty::Faulty;
    Place {
        store: Arc::new(Retrying::new(Faulty::crash_points(store), Patience::DEFAULT)),
        redeem: Arc::new(Retrying::new(Faulty::crash_points(redeem), Patience::DEFAULT)),
    }
}

/// Connects and opens the repository with the secret.
pub(crate) async fn open(url: &StoreUrl, global: &Global) -> Result<(Repository, Place), CliError> {
    let place = connect(url, global).await?;
    let password = secret::password(false)?;
    let repository = milkrun_repository::repository::open(place.store.clone(), &password).await?;
    Ok((repository, place))
}

/// The local cache of index segments.
pub(crate) fn cache(repository: &Repository, global: &Global) -> Result<IndexCache, CliError> {
    let folder = global.cache.clone().unwrap_or_else(|| {
        let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache"));
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
        base.unwrap_or_else(std::env::temp_dir).join("milkrun")
    });
    IndexCache::new(&folder, &repository.config.id).map_err(|e| CliError::from_error(&e))
}
