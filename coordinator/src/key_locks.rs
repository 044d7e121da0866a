//! Keeps the keys of a repository locked for as long as this process leads. If the keys were not locked, anybody who may delete
//! objects could make every locked byte unreadable by deleting them. Missing keys are reported within a day.

use std::time::Duration;

use milkrun_repository::Repository;
use milkrun_repository::repository::{Renewed, rolling};

const DAY: Duration = Duration::from_secs(86_400);
/// The shortest time between two looks. Locks of minutes are only used in tests, and each look asks for every key object.
const LEAST: Duration = Duration::from_secs(60);
/// How long to wait after a look that failed.
const AGAIN: Duration = Duration::from_secs(300);

/// Renews the locks daily, or more often where they are short. Does not return.
pub async fn keep_keys_locked(name: &str, repository: &Repository) {
    let period = repository.config.lock.period;
    let every = (rolling(period) / 30).clamp(LEAST, DAY);
    loop {
        let pause = match repository.renew_keys(period).await {
            Ok(renewed) => {
                report(name, &renewed);
                every
            }
            Err(e) => {
                tracing::warn!(repository = name, error = %e, "can't look after the locks of keys");
                AGAIN.min(every)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

fn report(name: &str, renewed: &Renewed) {
    let Renewed { objects, extended, without_keys, no_password } = renewed;
    #[expect(clippy::cast_precision_loss, reason = "numbers of objects")]
    let gauge = |metric: &'static str, n: u64| metrics::gauge!(metric, "repository" => name.to_owned()).set(n as f64);
    gauge("milkrun_key_objects", *objects);
    gauge("milkrun_applications_without_keys", without_keys.len() as u64);
    gauge("milkrun_password_keys_missing", u64::from(*no_password));
    for app in without_keys {
        tracing::error!(repository = name, application = %app, "an application has restore points and no keys: somebody deleted them, and \
            its points can't be opened");
    }
    if *no_password {
        tracing::error!(repository = name, "no key file is left: only the recovery key opens the repository");
    }
    tracing::info!(repository = name, objects, extended, "the locks of keys were looked after");
}
