//! Runs the real `milkrun` binary, as a person does.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A place to work in: a repository URL, a cache, a password.
pub struct Milkrun {
    url: String,
    cache: PathBuf,
    password: String,
    quiet: bool,
    env: Vec<(String, String)>,
    prefix: Vec<String>,
}

/// The result of a command.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; `None` if it was killed.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// The JSON document.
    ///
    /// # Panics
    /// If standard output is no JSON document.
    #[expect(clippy::expect_used, reason = "a test helper")]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).map_err(|e| format!("{e}: {self:?}")).expect("a JSON document")
    }

    /// Asserts success.
    ///
    /// # Panics
    /// If it failed.
    #[allow(clippy::must_use_candidate, clippy::return_self_not_must_use, reason = "asserting is enough")]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}", self.out, self.err);
        self
    }

    /// Asserts a failure with that code, a message that holds `text`, and no panic.
    ///
    /// # Panics
    /// If the result is another.
    pub fn fails(&self, code: i32, text: &str) {
        assert_eq!(self.code, Some(code), "{}\n{}", self.out, self.err);
        assert!(self.err.contains(text), "no {text:?} in: {}", self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
    }
}

/// The binary under test.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("MILKRUN_TEST_BINARY") {
        return path.into();
    }
    // Beside the test's own executable: target/debug/deps/system-… -> target/debug/milkrun.
    let own = std::env::current_exe().unwrap_or_default();
    own.ancestors().nth(2).unwrap_or(Path::new(".")).join("milkrun")
}

impl Milkrun {
    /// With a repository in `folder/repository`.
    pub fn in_folder(folder: &Path) -> Self {
        Self::at(&format!("file://{}/repository", folder.display()), folder)
    }

    /// With a repository at `url`, and its cache in `folder`.
    pub fn at(url: &str, folder: &Path) -> Self {
        Self {
            url: url.into(),
            cache: folder.join("cache"),
            password: "correct horse".into(),
            quiet: true,
            env: Vec::new(),
            prefix: Vec::new(),
        }
    }

    /// Runs it by another program: the command line begins with `prefix`.
    #[must_use]
    pub fn under(mut self, prefix: Vec<String>) -> Self {
        self.prefix = prefix;
        self
    }

    /// With another password.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = password.into();
        self
    }

    /// With progress and notes on standard error.
    #[must_use]
    pub fn aloud(mut self) -> Self {
        self.quiet = false;
        self
    }

    /// With a variable in its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The repository's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The command, ready to run.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = match self.prefix.split_first() {
            Some((program, rest)) => {
                let mut command = Command::new(program);
                command.args(rest).arg(binary());
                command
            }
            None => Command::new(binary()),
        };
        command.args(args).args(self.quiet.then_some("--quiet")).stdin(Stdio::null());
        command.env("MILKRUN_REPOSITORY", &self.url).env("MILKRUN_PASSWORD", &self.password);
        command.env("MILKRUN_CACHE", &self.cache).env("RUST_BACKTRACE", "0");
        command.env_remove("MILKRUN_PASSWORD_FILE").env_remove("MILKRUN_CRASH_AT").env_remove("MILKRUN_CRASH_LOG");
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Runs it.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        ran(self.command(args).output())
    }
}

/// The result of a finished command.
///
/// # Panics
/// If it could not be started.
#[expect(clippy::expect_used, reason = "a test helper")]
pub fn ran(output: std::io::Result<Output>) -> Ran {
    let output = output.expect("the milkrun binary starts; `cargo xtask test` builds it");
    Ran {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
