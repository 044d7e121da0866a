//! `milkrun init`

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use milkrun_repository::chunk::page_cutter::PageCutter;
use milkrun_repository::chunk::stream_cutter::StreamCutter;
use milkrun_repository::config::{LockMode, LockPolicy};
use milkrun_repository::keys::wrapped::Cost;
use milkrun_repository::point::catalog::chain;
use milkrun_repository::repository::{InitError, InitOptions, Initialised, init, role_policies};
use milkrun_repository::store::StoreUrl;
use serde_json::json;

use super::check_lock_for;
use crate::args::{self, Global, Lock};
use crate::output::{CliError, Exit, note, print, print_json};
use crate::{place, secret, units};

pub(crate) async fn run(a: args::Init, global: &Global) -> Result<Exit, CliError> {
    let mode = match a.lock {
        Lock::None => LockMode::None,
        Lock::Governance => LockMode::Governance,
        Lock::Compliance => LockMode::Compliance,
    };
    if mode != LockMode::None {
        check_lock_for(a.lock_for, a.yes)?;
    }
    let lock = LockPolicy { mode, period: a.lock_for };
    if let Some(path) = &a.write_public_key
        && path.exists()
    {
        return Err(CliError::usage(format!("{path:?} exists already; the public key is not written over it")));
    }
    if let Some(path) = &a.write_recovery_key
        && path.exists()
    {
        return Err(CliError::usage(format!("{path:?} exists already; the recovery key is not written over it")));
    }
    let url = a.repository.url()?;
    let place = place::connect(url, global).await?;
    let password = secret::password(true)?;
    let options =
        InitOptions { lock, pages: PageCutter::DEFAULT, streams: StreamCutter::DEFAULT, cost: Cost::RECOMMENDED };
    let made = init(place.store, &password, options).await.map_err(explain)?;
    place::cache(&made.repository, global).last_seen().is_made_at(&made.repository.store.address());
    let public_key = hex::encode(made.repository.config.keys.signing.as_bytes());
    if let Some(path) = &a.write_recovery_key
        && let Err(e) = write_key(path, &made.recovery_key, 0o600)
    {
        // Printed after all: it is nowhere else.
        note(&format!("milkrun: can't write {path:?}: {e}; the recovery key is {}", *made.recovery_key));
        return Err(CliError::failed("the repository is made, and its recovery key could not be written to the file"));
    }
    if let Some(path) = &a.write_public_key {
        write_key(path, &public_key, 0o644).map_err(|e| {
            CliError::failed(format!(
                "the repository is made; can't write {path:?}: {e}; its public key is {public_key}"
            ))
        })?;
    }
    let policies = match url {
        StoreUrl::S3 { bucket, prefix } => role_policies(bucket, prefix).to_vec(),
        StoreUrl::Directory(_) => Vec::new(),
    };
    let report = Report { made: &made, url, lock, public_key, files: &a, policies };
    if global.json {
        report.print_json();
    } else {
        report.print();
    }
    Ok(Exit::Done)
}

/// What is said of a repository that was made.
struct Report<'a> {
    made: &'a Initialised,
    url: &'a StoreUrl,
    lock: LockPolicy,
    public_key: String,
    /// Which keys were written to files.
    files: &'a args::Init,
    /// The policies of the roles.
    policies: Vec<(&'static str, String)>,
}

impl Report<'_> {
    fn print_json(self) {
        let Self { made, url, lock, public_key, files, policies } = self;
        let (config, mode) = (&made.repository.config, lock.mode);
        let policies: serde_json::Map<String, serde_json::Value> = policies
            .into_iter()
            .map(|(role, text)| (role.to_owned(), serde_json::from_str(&text).unwrap_or_default()))
            .collect();
        print_json(json!({
            "repository": config.id.hex(),
            "url": url.to_string(),
            "public_key": public_key,
            "recovery_key": files.write_recovery_key.is_none().then(|| made.recovery_key.as_str()),
            "lock": mode.to_string(),
            "lock_seconds": if mode == LockMode::None { 0 } else { lock.period.as_secs() },
            "lock_enforced": made.enforced && mode != LockMode::None,
            "policies": policies,
        }));
    }

    fn print(self) {
        let Self { made, url, lock, public_key, files, policies } = self;
        let (config, mode) = (&made.repository.config, lock.mode);
        print(&format!("Repository {} is made at {url}.\nPublic key: {public_key}\n", config.id));
        print(match &files.write_public_key {
            Some(_) => {
                "  Keep its file outside of the repository: `milkrun verify --public-key FILE` proves every byte with it.\n"
            }
            None => {
                "  Write it to a file outside of the repository: `milkrun verify --public-key FILE` proves every byte with it.\n"
            }
        });
        match (mode, made.enforced) {
            (LockMode::None, _) => print("Locks: none. Whoever may write there may delete.\n"),
            (mode, true) => print(&format!(
                "Locks: {mode}, for {}; tried on a probe object that can neither be deleted nor shortened.\n",
                units::time(lock.period)
            )),
            (mode, false) => print(&format!(
                "Locks: {mode}, for {}, honoured by milkrun. It is a directory: root on this machine can still delete.\n",
                units::time(lock.period)
            )),
        }
        for (role, policy) in policies {
            print(&format!("\nPolicy of the {role}:\n{policy}\n"));
        }
        match &files.write_recovery_key {
            None => print(&format!("\nRecovery key: {}\n", *made.recovery_key)),
            Some(path) => print(&format!("\nThe recovery key is in {}.\n", path.display())),
        }
        print(
            "  It opens everything, also when the password or the keys in the repository are lost (--recovery-key-file FILE).\n  \
             Write it down; it is shown only now, and stored nowhere.\n",
        );
        print(
            "\nWithout the password or the recovery key nothing can be restored. Keep both where this repository is not.\n",
        );
    }
}

fn explain(e: InitError) -> CliError {
    match e {
        InitError::Store(f) => f.into(),
        e => CliError::failed(chain(&e)),
    }
}

fn write_key(path: &Path, key: &str, mode: u32) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    writeln!(file, "{key}")?;
    file.sync_all()
}
