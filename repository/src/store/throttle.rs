//! A bound on upload bandwidth, shared by everything that uploads.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// Bytes per second, or no bound. Clones are cheap and share the bound.
#[derive(Clone, Default)]
pub struct Throttle(Option<Arc<Pace>>);

struct Pace {
    bytes_per_second: u64,
    next: Mutex<Instant>,
}

impl Throttle {
    /// No bound.
    pub fn none() -> Self {
        Self(None)
    }

    /// At most this many bytes per second (at least 1).
    pub fn new(bytes_per_second: u64) -> Self {
        Self(Some(Arc::new(Pace { bytes_per_second: bytes_per_second.max(1), next: Mutex::new(Instant::now()) })))
    }

    /// Whether there is a bound.
    pub fn is_bounded(&self) -> bool {
        self.0.is_some()
    }

    /// How many bytes to send between two calls of [`Throttle::take`]: about a tenth of a second's worth.
    pub fn piece(&self) -> usize {
        self.0.as_ref().map_or(usize::MAX, |p| usize::try_from(p.bytes_per_second / 10).unwrap_or(usize::MAX).max(1024))
    }

    /// Waits until `bytes` may be sent.
    pub async fn take(&self, bytes: usize) {
        let Some(pace) = &self.0 else { return };
        #[expect(clippy::cast_precision_loss, reason = "a pause need not be exact")]
        let cost = Duration::from_secs_f64(bytes as f64 / pace.bytes_per_second as f64);
        let start = {
            let mut next = pace.next.lock().await;
            let start = (*next).max(Instant::now());
            *next = start + cost;
            start
        };
        tokio::time::sleep_until(start).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn holds_the_rate() {
        let throttle = Throttle::new(1_000_000);
        let began = Instant::now();
        for _ in 0..20 {
            throttle.take(100_000).await;
        }
        let took = began.elapsed().as_secs_f64();
        assert!((1.8..2.1).contains(&took), "{took}");
    }
}
