//! A coordinator and agents as real processes. With a [`Network`], each process has its own host: a network namespace,
//! and a bridge joins them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::binary::{Milkrun, Ran, binary, ran};

/// The longest time that tests wait for something.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The answer to `GET path` on loopback: the status line and the body.
///
/// # Panics
/// If nobody answers.
#[expect(clippy::expect_used, reason = "a test helper")]
pub fn http_get(port: u16, path: &str) -> (String, String) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("somebody listens");
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).expect("it takes the question");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}

/// A port of loopback that nobody listens on.
///
/// # Panics
/// If there is none.
#[expect(clippy::expect_used, reason = "a test helper")]
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("a port").port()
}

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
    fn start(mut command: Command, log: &Path) -> Self {
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

/// A network of hosts. Each host is a network namespace.
pub struct Network {
    prefix: String,
    hosts: BTreeMap<String, u8>,
}

impl Network {
    /// Makes a bridge in its own namespace. `None` if namespaces can't be made.
    pub fn new() -> Option<Self> {
        static NETWORKS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NETWORKS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let prefix = format!("mr{}-{number}", std::process::id());
        let network = Self { prefix, hosts: BTreeMap::new() };
        let hub = network.name("hub");
        let made = ip(&["netns", "add", &hub])
            && ip(&["-n", &hub, "link", "add", "name", "hub0", "type", "bridge"])
            && ip(&["-n", &hub, "link", "set", "hub0", "up"]);
        made.then_some(network)
    }

    fn name(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    /// Adds a host.
    ///
    /// # Panics
    /// If that fails.
    pub fn add(&mut self, host: &str) {
        let number = u8::try_from(self.hosts.len() + 1).unwrap_or(u8::MAX);
        let (space, hub) = (self.name(host), self.name("hub"));
        let (inner, outer) = (format!("v{number}i"), format!("v{number}o"));
        let address = format!("10.77.0.{number}/24");
        let steps: [&[&str]; 8] = [
            &["netns", "add", &space],
            &["-n", &hub, "link", "add", "name", &outer, "type", "veth", "peer", "name", &inner],
            &["-n", &hub, "link", "set", &inner, "netns", &space],
            &["-n", &hub, "link", "set", &outer, "master", "hub0"],
            &["-n", &hub, "link", "set", &outer, "up"],
            &["-n", &space, "addr", "add", &address, "dev", &inner],
            &["-n", &space, "link", "set", &inner, "up"],
            &["-n", &space, "link", "set", "lo", "up"],
        ];
        for step in steps {
            assert!(ip(step), "ip {step:?}");
        }
        self.hosts.insert(host.to_owned(), number);
    }

    /// A host's address.
    pub fn address(&self, host: &str) -> String {
        format!("10.77.0.{}", self.hosts.get(host).copied().unwrap_or(0))
    }

    /// The words that come before a command to run it on that host.
    pub fn prefix(&self, host: &str) -> Vec<String> {
        ["ip", "netns", "exec"].map(str::to_owned).into_iter().chain([self.name(host)]).collect()
    }

    /// A command that runs on that host.
    pub fn on(&self, host: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let prefix = self.prefix(host);
        let mut command = Command::new(&prefix[0]);
        command.args(&prefix[1..]).arg(program);
        command
    }

    /// Runs `work` in a thread of this process, on that host.
    ///
    /// # Panics
    /// If the host's namespace can't be entered, or `work` panics.
    #[expect(clippy::expect_used, reason = "a test helper")]
    pub fn within<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> T {
        let space = File::open(format!("/run/netns/{}", self.name(host))).expect("the namespace");
        let inside = move || {
            // This changes only this thread, which ends with the work.
            nix::sched::setns(space, nix::sched::CloneFlags::CLONE_NEWNET).expect("the namespace can be entered");
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().expect("the work ends"))
    }

    /// Cuts one direction: nothing that `from` sends reaches `to` any more.
    ///
    /// # Panics
    /// If that fails.
    pub fn cut(&self, from: &str, to: &str) {
        let step = ["-n", &self.name(from), "route", "add", "blackhole", &format!("{}/32", self.address(to))];
        assert!(ip(&step), "ip {step:?}");
    }

    /// Undoes [`Self::cut`].
    ///
    /// # Panics
    /// If that fails.
    pub fn heal(&self, from: &str, to: &str) {
        let step = ["-n", &self.name(from), "route", "del", "blackhole", &format!("{}/32", self.address(to))];
        assert!(ip(&step), "ip {step:?}");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in self.hosts.keys().map(String::as_str).chain(["hub"]) {
            ip(&["netns", "del", &self.name(host)]);
        }
    }
}

fn ip(args: &[&str]) -> bool {
    let status = Command::new("ip").args(args).stderr(Stdio::null()).status();
    status.is_ok_and(|s| s.success())
}

/// Whether a run, in the format of `milkrun runs --json`, has ended.
pub fn is_over(run: &Value) -> bool {
    run["state"] == "done" || run["state"] == "failed"
}

/// A cluster: hosts for the coordinator and the agents, certificates, a repository.
pub struct Cluster {
    folder: tempfile::TempDir,
    repository: Milkrun,
    env: Vec<(String, String)>,
    network: Option<Network>,
    port: u16,
    /// Further arguments for each agent.
    pub agent_args: Vec<String>,
    /// Further variables for each coordinator's environment.
    pub coordinator_env: Vec<(String, String)>,
    /// Further variables for each agent's environment.
    pub agent_env: Vec<(String, String)>,
}

#[expect(clippy::expect_used, reason = "a test helper")]
impl Cluster {
    /// With a repository in a directory, on loopback.
    ///
    /// # Panics
    /// If it can't be set up.
    pub fn in_directory() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let repository = Milkrun::in_folder(folder.path());
        let directory = folder.path().join("repository").display().to_string();
        let agent_args = vec!["--repository-directory".into(), directory];
        Self::over(folder, repository, Vec::new(), None, agent_args)
    }

    /// With a repository in a bucket, and these variables in each environment. With a network, each process has its own
    /// host.
    ///
    /// # Panics
    /// If it can't be set up.
    pub fn in_bucket(repository: Milkrun, env: Vec<(String, String)>, network: Option<Network>) -> Self {
        Self::over(tempfile::tempdir().expect("a folder"), repository, env, network, Vec::new())
    }

    fn over(
        folder: tempfile::TempDir,
        repository: Milkrun,
        env: Vec<(String, String)>,
        network: Option<Network>,
        agent_args: Vec<String>,
    ) -> Self {
        let cluster = Self {
            folder,
            repository,
            env,
            network,
            port: free_port(),
            agent_args,
            agent_env: Vec::new(),
            coordinator_env: Vec::new(),
        };
        cluster.certs(&["authority"]);
        let host = cluster.coordinator_host();
        cluster.certs(&["coordinator", &host]);
        cluster
    }

    /// A folder for the test's files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The repository, for commands that use it without the coordinator.
    pub fn repository(&self) -> &Milkrun {
        &self.repository
    }

    /// The network between the hosts, if they have one.
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    fn coordinator_host(&self) -> String {
        self.network.as_ref().map_or_else(|| "127.0.0.1".into(), |n| n.address("coordinator"))
    }

    /// Where the coordinator serves.
    pub fn url(&self) -> String {
        format!("https://{}:{}", self.coordinator_host(), self.port)
    }

    /// Runs `milkrun certs`, in the cluster's authority.
    ///
    /// # Panics
    /// If that fails.
    pub fn certs(&self, args: &[&str]) -> PathBuf {
        let folder = self.folder().join("certs").display().to_string();
        let mut all = vec!["certs", args[0], "--folder", &folder];
        all.extend_from_slice(&args[1..]);
        self.repository.run(all).ok().out.trim().into()
    }

    /// Writes the inventory.
    ///
    /// # Panics
    /// If that fails.
    pub fn inventory(&self, text: &str) {
        fs::write(self.folder().join("inventory.yaml"), text).expect("the inventory");
    }

    fn program(name: &str) -> PathBuf {
        binary().with_file_name(name)
    }

    fn on(&self, host: &str, program: &Path) -> Command {
        match &self.network {
            Some(network) => network.on(host, program),
            None => Command::new(program),
        }
    }

    /// Starts a coordinator with further arguments. Does not wait until it serves.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn coordinator_with(&self, name: &str, args: &[&str]) -> Process {
        self.start_coordinator(name, &format!("{}:{}", self.coordinator_host(), self.port), args)
    }

    /// Starts a coordinator that listens at another address.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn coordinator_listening(&self, name: &str, address: &str) -> Process {
        self.start_coordinator(name, address, &[])
    }

    fn start_coordinator(&self, name: &str, listen: &str, args: &[&str]) -> Process {
        let mut command = self.on("coordinator", &Self::program("milkrun-coordinator"));
        let host = self.coordinator_host();
        let at = |file: &str| self.folder().join(file);
        command.args(["--listen", listen]).args(args);
        command.arg("--inventory").arg(at("inventory.yaml"));
        command.arg("--tls").arg(at("certs").join(format!("coordinator-{host}")));
        command.env("MILKRUN_REPOSITORY", self.repository.url()).env("MILKRUN_PASSWORD", "correct horse");
        command.env("MILKRUN_CACHE", at("coordinator-cache"));
        command.envs(self.coordinator_env.iter().map(|(k, v)| (k, v)));
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        Process::start(command, &at(&format!("{name}.log")))
    }

    /// Starts the coordinator and waits until it serves.
    ///
    /// # Panics
    /// If it does not.
    pub fn coordinator(&self) -> Process {
        let process = self.coordinator_with("coordinator", &[]);
        process.wait_for_log("serving");
        process
    }

    /// Starts a node's agent. Makes its certificate if it has none.
    pub fn agent(&self, node: &str) -> Process {
        let tls = self.folder().join("certs").join(format!("agent-{node}"));
        if !tls.exists() {
            self.certs(&["agent", node]);
        }
        self.agent_as(node, &tls)
    }

    /// Starts a node's agent with another certificate.
    pub fn agent_as(&self, node: &str, tls: &Path) -> Process {
        self.start_agent(node, tls, &self.url())
    }

    /// Starts a node's agent for another coordinator. Its certificate must exist already.
    pub fn agent_of(&self, node: &str, url: &str) -> Process {
        self.start_agent(node, &self.folder().join("certs").join(format!("agent-{node}")), url)
    }

    fn start_agent(&self, node: &str, tls: &Path, url: &str) -> Process {
        let mut command = self.on(node, &Self::program("milkrun-agent"));
        command.args(["--coordinator", url, "--node", node]).arg("--tls").arg(tls).args(&self.agent_args);
        // The agent has no credentials of the bucket: an access without a grant would fail.
        command.envs(self.agent_env.iter().map(|(k, v)| (k, v)));
        command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        Process::start(command, &self.folder().join(format!("{node}.log")))
    }

    /// `milkrun --coordinator` as a user whose certificate has these roles.
    pub fn command(&self, user: &str, roles: &[&str], args: &[&str]) -> Command {
        let tls = self.folder().join("certs").join(format!("user-{user}"));
        if !tls.exists() {
            let mut all = vec!["user", user];
            all.extend(roles.iter().flat_map(|r| ["--role", r]));
            self.certs(&all);
        }
        self.command_as(&tls, args)
    }

    /// `milkrun --coordinator` with any certificate.
    pub fn command_as(&self, tls: &Path, args: &[&str]) -> Command {
        let mut command = self.on("coordinator", &binary());
        command.args(args).arg("--quiet").stdin(Stdio::null());
        command.env("MILKRUN_COORDINATOR", self.url()).env("MILKRUN_TLS", tls).env_remove("MILKRUN_REPOSITORY");
        command
    }

    /// Runs a command as a user with all roles.
    pub fn run(&self, args: &[&str]) -> Ran {
        ran(self.command("root", &["view", "backup", "restore", "operate"], args).output())
    }

    /// The runs that the coordinator knows.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn runs(&self) -> Vec<Value> {
        self.run(&["runs", "--json"]).ok().json()["runs"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until these nodes' agents are connected.
    ///
    /// # Panics
    /// If they are not within a minute.
    pub fn wait_for_agents(&self, nodes: &[&str]) {
        wait_for("the agents", || {
            let agents = self.run(&["agents", "--json"]);
            let document = (agents.code == Some(0)).then(|| agents.json())?;
            let connected = |node: &str| {
                document["agents"].as_array()?.iter().any(|a| a["node"] == node && a["connected"] == true).then_some(())
            };
            nodes.iter().all(|n| connected(n).is_some()).then_some(())
        });
    }
}
