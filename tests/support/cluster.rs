//! A coordinator and agents as real processes. With a [`Network`], each process has its own host: a network namespace,
//! and a bridge joins them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::binary::{Milkrun, Ran, binary, ran};
use crate::loopback::free_port;
use crate::network::Network;
use crate::process::{Process, wait_for};

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

    /// Limits the uploads of all nodes together to a rate, as in `8MiB`, or lets them go again. A running coordinator
    /// notes it within seconds: so a run is in its middle for as long as a test needs, on a slow machine, too.
    pub fn limit_upload(&self, rate: Option<&str>) {
        let text = fs::read_to_string(self.folder().join("inventory.yaml")).expect("the inventory");
        let mut lines: Vec<_> = text.lines().filter(|line| !line.starts_with("store:")).collect();
        let limit = rate.map(|rate| format!("store: {{ bandwidth: [ {{ rate: {rate} }} ] }}"));
        lines.extend(limit.as_deref());
        self.inventory(&(lines.join("\n") + "\n"));
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
