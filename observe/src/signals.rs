//! SIGTERM and Ctrl-C.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Signals can't be listened for.
#[derive(Debug, thiserror::Error)]
#[error("can't listen for signals")]
pub struct SignalError(#[source] std::io::Error);

/// Whether somebody wants this process to stop.
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
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(async move {
            loop {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                if stop.send_replace(true) {
                    std::process::exit(1);
                }
            }
        });
        Ok(Self(stopped))
    }

    /// Whether somebody did so far.
    pub fn is_wanted(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until somebody does.
    pub async fn wanted(&self) {
        if self.0.clone().wait_for(|&stop| stop).await.is_err() {
            // Nobody can any more.
            std::future::pending::<()>().await;
        }
    }

    /// For whoever wants to watch it.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.0.clone()
    }
}
