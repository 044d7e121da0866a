//! Decides which coordinator leads. The lease is made of conditional writes in the repository's store ([`StoreLease`]). A cluster's
//! own lease could be used behind the same trait.
//!
//! **Safety does not depend on who leads.** Two coordinators that both believe that they lead do no harm: a run's root is created
//! once ([`commit`](milkrun_repository::point::commit)), and journals of an older epoch do not count.

mod store_lease;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use milkrun_repository::store::Failure;

pub use store_lease::StoreLease;

/// Decides who leads.
#[async_trait]
pub trait Leadership: Send + Sync {
    /// Whether nobody leads, as far as this process can tell since it first asked.
    ///
    /// # Errors
    /// When the store can't be asked.
    async fn is_free(&self) -> Result<bool, Failure>;

    /// Leads from now on; `None` if another coordinator was faster. The epoch is higher than that of every leader before.
    ///
    /// # Errors
    /// When the store can't be asked.
    async fn take(&self) -> Result<Option<u64>, Failure>;

    /// How long to wait before asking again.
    fn pause(&self) -> Duration;

    /// Keeps the lease until somebody else leads, or until the store did not answer for too long.
    async fn hold(&self, epoch: u64) -> Lost;

    /// Gives the lease up, so that the next leader need not wait.
    async fn release(&self, epoch: u64);

    /// Whether nobody leads under a higher epoch, as far as this process can tell.
    async fn is_newest(&self, epoch: u64) -> bool;

    /// Whether nobody leads under a higher epoch.
    ///
    /// # Errors
    /// When the store can't be asked.
    async fn leads(&self, epoch: u64) -> Result<bool, Failure>;
}

/// Why leading is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Somebody else leads.
    #[error("another coordinator leads since, with epoch {0}")]
    Superseded(u64),
    /// The store did not answer for so long that somebody else may lead.
    #[error("the store could not be asked for {seconds} s: {why}")]
    Unreachable {
        /// For how long.
        seconds: u64,
        /// What it said last.
        why: String,
    },
}

/// Waits until this process leads all of these that can be asked. It leads either all of them or none, so that one process leads.
/// Returns the epoch of each, or why it could not be asked.
///
/// # Errors
/// When none of them can be asked.
pub async fn campaign(leaderships: &[Arc<dyn Leadership>]) -> Result<Vec<Result<u64, Failure>>, Failure> {
    let pause = leaderships.iter().map(|l| l.pause()).min().unwrap_or_default();
    loop {
        let looks = futures::future::join_all(leaderships.iter().map(|l| l.is_free())).await;
        let led = looks.iter().any(|look| matches!(look, Ok(false)));
        if !led && let Some(taken) = take_all(leaderships, looks).await? {
            return Ok(taken);
        }
        tokio::time::sleep(pause).await;
    }
}

/// Takes all that are free; `None` if another process took one of them meanwhile: then none of them is kept.
async fn take_all(
    leaderships: &[Arc<dyn Leadership>],
    looks: Vec<Result<bool, Failure>>,
) -> Result<Option<Vec<Result<u64, Failure>>>, Failure> {
    let mut taken: Vec<Result<u64, Failure>> = Vec::new();
    for (leadership, look) in leaderships.iter().zip(looks) {
        let took = match look {
            Ok(_) => leadership.take().await,
            Err(e) => Err(e),
        };
        match took {
            Ok(Some(epoch)) => taken.push(Ok(epoch)),
            Err(e) => taken.push(Err(e)),
            Ok(None) => {
                for (leadership, epoch) in leaderships.iter().zip(&taken) {
                    if let Ok(epoch) = epoch {
                        leadership.release(*epoch).await;
                    }
                }
                return Ok(None);
            }
        }
    }
    if taken.iter().any(Result::is_ok) {
        return Ok(Some(taken));
    }
    match taken.into_iter().next() {
        Some(Err(e)) => Err(e),
        _ => Ok(None),
    }
}
