//! Points at which a test may stop the whole process, as `kill -9` does.
//!
//! The points are not listed anywhere: the faulty store and every fsync call [`point`]. A test first counts them
//! (`MILKRUN_CRASH_LOG`), then runs once per point (`MILKRUN_CRASH_AT`). At the point named by `MILKRUN_HANG_AT` every caller
//! hangs for ever; at the one named by `MILKRUN_HANG_ONCE_AT` only the first does. Points whose names contain
//! `MILKRUN_CRASH_PASS_OVER` are not counted: those that a process reaches by the clock. Without the feature `test-util` all this
//! does nothing.

/// A moment before or after an effect that outlives the process.
#[inline]
pub fn point(name: &str) {
    #[cfg(any(test, feature = "test-util"))]
    counted::hit(name);
    #[cfg(not(any(test, feature = "test-util")))]
    let _ = name;
}

#[cfg(any(test, feature = "test-util"))]
mod counted {
    use std::io::Write;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    static HITS: AtomicU64 = AtomicU64::new(0);
    static AT: OnceLock<Option<u64>> = OnceLock::new();
    static HANG: OnceLock<Option<String>> = OnceLock::new();
    static HANG_ONCE: OnceLock<Option<String>> = OnceLock::new();
    static HUNG: AtomicBool = AtomicBool::new(false);
    static PASS_OVER: OnceLock<Option<String>> = OnceLock::new();
    static LOG: OnceLock<Option<std::path::PathBuf>> = OnceLock::new();

    pub(super) fn hit(name: &str) {
        let hang = HANG.get_or_init(|| std::env::var("MILKRUN_HANG_AT").ok());
        if hang.as_deref() == Some(name) {
            loop {
                std::thread::park();
            }
        }
        let once = HANG_ONCE.get_or_init(|| std::env::var("MILKRUN_HANG_ONCE_AT").ok());
        if once.as_deref() == Some(name) && !HUNG.swap(true, Ordering::SeqCst) {
            // A test that is about to end something else needs to know that this process has reached the point.
            let _ = writeln!(std::io::stderr(), "hangs {name}");
            loop {
                std::thread::park();
            }
        }
        let at = *AT.get_or_init(|| std::env::var("MILKRUN_CRASH_AT").ok()?.parse().ok());
        let log = LOG.get_or_init(|| std::env::var_os("MILKRUN_CRASH_LOG").map(Into::into));
        let pass_over = PASS_OVER.get_or_init(|| std::env::var("MILKRUN_CRASH_PASS_OVER").ok());
        if (at.is_none() && log.is_none()) || pass_over.as_ref().is_some_and(|part| name.contains(part)) {
            return;
        }
        let n = HITS.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some(path) = log
            && let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(path)
        {
            let _ = writeln!(file, "{n} {name}");
        }
        if at == Some(n) {
            let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
            // The signal may need a moment to arrive; nothing may happen in between.
            loop {
                std::thread::park();
            }
        }
    }
}
