//! A versitygw server for one test: a second, independent S3 server with Object Lock, with a folder as its storage, on
//! loopback.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::binary::Milkrun;
use crate::loopback::free_port;
use crate::seaweed::{ACCESS_KEY, SECRET_KEY, env_of, milkrun_at};

/// A running server. It is stopped when dropped.
pub struct Versity {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

/// How often to start the server if its port was taken meanwhile.
const PORTS_TRIED: usize = 5;

impl Versity {
    /// Starts a server if the binary is installed. Else notes that the test is skipped.
    ///
    /// # Panics
    /// If it is installed and does not start within a minute.
    pub fn start(test: &str) -> Option<Self> {
        let Some(program) = std::env::var_os("MILKRUN_TEST_VERSITYGW") else {
            crate::skip(test, "no versitygw here (cargo xtask test builds it with Go)");
            return None;
        };
        for _ in 0..PORTS_TRIED {
            let mut server = Self::spawn(&program);
            let began = Instant::now();
            while server.child.try_wait().is_ok_and(|ended| ended.is_none()) {
                if TcpStream::connect(("127.0.0.1", server.port)).is_ok() {
                    return Some(server);
                }
                assert!(began.elapsed() < Duration::from_secs(60), "versitygw does not answer: {}", server.log());
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        panic_with_log()
    }

    #[expect(clippy::expect_used, reason = "a test helper")]
    fn spawn(program: &std::ffi::OsStr) -> Self {
        // Its data folder needs extended attributes, which a temporary folder in memory may lack.
        let folder = tempfile::tempdir().expect("a folder");
        let [data, versions] = ["data", "versions"].map(|name| folder.path().join(name));
        for folder in [&data, &versions] {
            std::fs::create_dir(folder).expect("a data folder");
        }
        let log = std::fs::File::create(folder.path().join("log")).expect("the log");
        let port = free_port();
        let child = Command::new(program)
            .args(["--access", ACCESS_KEY, "--secret", SECRET_KEY, "--port", &format!("127.0.0.1:{port}"), "--quiet"])
            .arg("posix")
            .arg("--versioning-dir")
            .args([&versions, &data])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log"))
            .stderr(log)
            .spawn()
            .expect("versitygw starts");
        Self { child, port, folder }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The environment that the AWS SDK reads.
    pub fn env(&self) -> [(&'static str, String); 5] {
        env_of(&self.endpoint())
    }

    /// `milkrun` with a repository in a bucket here.
    pub fn milkrun(&self, bucket: &str, prefix: &str, folder: &Path) -> Milkrun {
        milkrun_at(&self.endpoint(), bucket, prefix, folder)
    }
}

#[expect(clippy::panic, reason = "a test helper")]
fn panic_with_log() -> ! {
    panic!("versitygw ended at each start")
}

impl Drop for Versity {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
