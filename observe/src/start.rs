//! What each program of milkrun does first, while it has one thread: it unsets variables that are empty, remembers
//! which standard streams are closed, and checks that the system allows enough threads.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// Variables that a program of milkrun, or a library that it uses, treats as set even if they are empty.
const VARIABLES: [&str; 15] = [
    "AWS_CA_BUNDLE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_PROFILE",
    "AWS_REGION",
    "HOME",
    "MILKRUN_CACHE",
    "MILKRUN_COORDINATOR",
    "MILKRUN_INVENTORY",
    "MILKRUN_LOG",
    "MILKRUN_NODE",
    "MILKRUN_PASSWORD_FILE",
    "MILKRUN_REPOSITORY",
    "MILKRUN_TLS",
    "XDG_CACHE_HOME",
];

/// The descriptors of 0, 1 and 2 that were closed when the process began, as bits. The standard library opens
/// `/dev/null` in their place before `main`, and what is written there is lost without an error.
static CLOSED: AtomicU8 = AtomicU8::new(0);

extern "C" fn look() {
    for descriptor in 0..3 {
        // SAFETY: fcntl(F_GETFD) takes any number, open or not, and changes nothing.
        #[expect(unsafe_code, reason = "there is no descriptor to borrow if it is closed")]
        let flags = unsafe { nix::libc::fcntl(descriptor, nix::libc::F_GETFD) };
        if flags == -1 {
            CLOSED.fetch_or(1 << descriptor, Ordering::Relaxed);
        }
    }
}

// SAFETY: the loader calls the functions of this section once, before `main`, with the process's one thread; `look` uses
// nothing of the standard library that would need to be set up (an atomic and a system call).
#[expect(unsafe_code, reason = "after the standard library has begun nobody can tell")]
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

/// A standard stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standard {
    /// Input.
    In = 0,
    /// Output.
    Out = 1,
}

/// Whether a standard stream was closed when the process began.
pub fn was_closed(stream: Standard) -> bool {
    CLOSED.load(Ordering::Relaxed) & (1 << stream as u8) != 0
}

/// Call this first in `main`.
pub fn begin() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        for name in VARIABLES {
            if std::env::var_os(name).is_some_and(|value| value.is_empty()) {
                // SAFETY: no other thread runs yet, so that nobody reads the environment meanwhile.
                #[expect(unsafe_code, reason = "clap and the AWS SDK take an empty variable for a value")]
                unsafe {
                    std::env::remove_var(name);
                }
            }
        }
    });
}

/// Whether SIGHUP was ignored when the process began (`nohup`): it is to outlive its terminal, and listening for SIGHUP
/// would undo that.
pub fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:")).map(str::trim);
    mask.and_then(|m| u64::from_str_radix(m, 16).ok()).is_some_and(|m| m & 1 != 0)
}

/// The system does not allow this process enough threads.
#[derive(Debug, thiserror::Error)]
#[error("can't start {wanted} threads; raise the bound on processes and threads (ulimit -u, or pids of the container)")]
pub struct ThreadsError {
    wanted: usize,
    #[source]
    source: std::io::Error,
}

/// Checks that so many threads can run at once. Libraries that start threads panic if they can't.
///
/// # Errors
/// [`ThreadsError`].
pub fn check_threads(wanted: usize) -> Result<(), ThreadsError> {
    let (release, wait_for) = std::sync::mpsc::channel::<()>();
    let wait_for = std::sync::Arc::new(std::sync::Mutex::new(wait_for));
    let mut threads = Vec::new();
    let mut failed = None;
    for _ in 0..wanted {
        let wait_for = wait_for.clone();
        let wait = move || drop(wait_for.lock().map(|receiver| receiver.recv()));
        match std::thread::Builder::new().stack_size(64 << 10).spawn(wait) {
            Ok(thread) => threads.push(thread),
            Err(source) => {
                failed = Some(source);
                break;
            }
        }
    }
    drop(release);
    for thread in threads {
        // The thread only waited: its result does not matter.
        let _ = thread.join();
    }
    failed.map_or(Ok(()), |source| Err(ThreadsError { wanted, source }))
}
