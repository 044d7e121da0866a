//! Threads for CPU work and for device I/O, apart from tokio's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

/// A fixed number of threads for one kind of work.
pub struct Workers {
    pool: rayon::ThreadPool,
    /// The time that all threads together have worked, in ns.
    worked: Arc<AtomicU64>,
}

/// The threads could not be started.
#[derive(Debug, thiserror::Error)]
#[error("can't start {count} {name} threads")]
pub struct StartError {
    name: &'static str,
    count: usize,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Starts `count` threads that each run `work` once, until it returns.
///
/// # Errors
/// [`StartError`] when the system refuses.
pub fn start_threads(
    name: &'static str,
    count: usize,
    work: impl Fn() + Send + Clone + 'static,
) -> Result<(), StartError> {
    for i in 0..count {
        let started = std::thread::Builder::new().name(format!("milkrun-{name}-{i}")).spawn(work.clone());
        started.map_err(|e| StartError { name, count, source: e.into() })?;
    }
    Ok(())
}

impl Workers {
    /// Starts `count` threads (at least one).
    ///
    /// # Errors
    /// [`StartError`] when the system refuses.
    pub fn new(name: &'static str, count: usize) -> Result<Self, StartError> {
        let count = count.max(1);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(move |i| format!("milkrun-{name}-{i}"))
            .build()
            .map_err(|e| StartError { name, count, source: e.into() })?;
        Ok(Self { pool, worked: Arc::default() })
    }

    /// Runs `job` on one of the threads.
    ///
    /// # Panics
    /// If the job panicked.
    #[expect(clippy::expect_used, reason = "a job that panicked has logged why; its result can't be made up")]
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = oneshot::channel();
        let worked = self.worked.clone();
        self.pool.spawn(move || {
            let began = Instant::now();
            let result = job();
            worked.fetch_add(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
            // An error means that nobody waits any more: the assignment was cancelled.
            let _ = done.send(result);
        });
        result.await.expect("the job ended")
    }

    /// Runs `work` on one of the threads and waits for it. Its parallel parts (rayon) run on all of them.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pool.install(work)
    }

    /// Runs `work` on the calling thread, which has the bytes in its core's cache, and counts the time as work of this
    /// pool.
    pub fn lend<T>(&self, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = work();
        self.worked.fetch_add(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        result
    }

    /// Whether there is a thread for each core of the machine. If there are fewer, a person wants some cores left
    /// alone.
    pub fn has_all_cores(&self) -> bool {
        std::thread::available_parallelism().is_ok_and(|cores| self.count() >= cores.get())
    }

    /// The time that all threads together have worked, in jobs that are finished.
    pub fn worked(&self) -> Duration {
        Duration::from_nanos(self.worked.load(Ordering::Relaxed))
    }

    /// The number of threads.
    pub fn count(&self) -> usize {
        self.pool.current_num_threads()
    }
}
