//! Processes that a test starts, and waiting for what they do.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The longest time that tests wait for something.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Calls `look` until it returns something.
///
/// # Panics
/// After a minute.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < WAIT_MAX, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A process that the test started. It is killed when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
    /// Where its own lines begin in the log: another process of the same name may have written there before.
    from: usize,
}

impl Process {
    #[expect(clippy::expect_used, reason = "a test helper")]
    pub(crate) fn start(mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("the log");
        let from = usize::try_from(file.metadata().expect("the log").len()).expect("a length");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn().expect("it starts");
        Self { child, log: log.to_owned(), from }
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).ok().and_then(|log| log.get(self.from..).map(str::to_owned)).unwrap_or_default()
    }

    /// Waits until its log holds `text`.
    ///
    /// # Panics
    /// After a minute, with the log.
    pub fn wait_for_log(&self, text: &str) {
        let began = Instant::now();
        while !self.log().contains(text) {
            assert!(began.elapsed() < WAIT_MAX, "no {text:?} in the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If the process has ended.
    #[expect(clippy::expect_used, reason = "a test helper")]
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it runs");
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end; returns its exit code.
    ///
    /// # Panics
    /// If it does not end within a minute.
    pub fn wait(&mut self) -> Option<i32> {
        wait_for("the end of a process", || self.child.try_wait().ok().flatten()).code()
    }

    /// An upper bound of its anonymous memory at its highest, in bytes: `VmHWM`, which includes mapped files.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) << 10
    }
}

/// The number of a log's last lines that are shown when a test fails: the failure may not repeat.
const LAST_LINES: usize = 80;

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
            eprintln!("\nthe end of {}:\n{last}", self.log.display());
        }
    }
}
