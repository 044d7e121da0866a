//! SIGTERM, Ctrl-C, and SIGHUP (a terminal that is closed).

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::start::ignores_hangup;

/// Waits for a signal; for ever, if it is ignored.
async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Signals can't be listened for.
#[derive(Debug, thiserror::Error)]
#[error("can't listen for signals")]
pub struct SignalError(#[source] std::io::Error);

/// Whether this process was asked to stop.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Listens from now on. The second signal ends the process at once.
    ///
    /// # Errors
    /// [`SignalError`].
    pub fn on_signal() -> Result<Self, SignalError> {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(SignalError)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(SignalError)?;
        let mut hangup = match ignores_hangup() {
            true => None,
            false => Some(signal(SignalKind::hangup()).map_err(SignalError)?),
        };
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(async move {
            loop {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, () = received(&mut hangup) => {} }
                if stop.send_replace(true) {
                    std::process::exit(1);
                }
            }
        });
        Ok(Self(stopped))
    }

    /// Whether it was asked to stop so far.
    pub fn is_wanted(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is asked to stop.
    pub async fn wanted(&self) {
        if self.0.clone().wait_for(|&stop| stop).await.is_err() {
            // Nobody can ask any more.
            std::future::pending::<()>().await;
        }
    }

    /// A receiver that becomes true when the process is asked to stop.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.0.clone()
    }
}
