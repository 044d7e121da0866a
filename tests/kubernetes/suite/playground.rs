//! A cluster of a test, as a person would use it: `cargo xtask cluster`, `kubectl`, `helm`.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The longest time that something in a cluster may take.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// Each look starts a `kubectl`, which takes a tenth of a second of a core.
const LOOK_EVERY: Duration = Duration::from_millis(700);
/// What a run makes, and must remove.
const KINDS: &str = "pvc,pv,volumesnapshots,volumesnapshotcontents,volumegroupsnapshots,volumegroupsnapshotcontents,\
                     volumeattachments";
/// Where pods find a port of this machine's loopback.
pub(crate) const MACHINE: &str = "10.90.0.1";

/// A cluster. It goes when this is dropped.
pub(crate) struct Playground {
    name: String,
    xtask: PathBuf,
    programs: PathBuf,
    kubeconfig: PathBuf,
}

/// What a command said, and whether it went well.
pub(crate) struct Said {
    pub(crate) ok: bool,
    pub(crate) out: String,
}

fn run(command: &mut Command) -> Said {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let out = if output.status.success() { text(&output.stdout) } else { text(&output.stderr) + &text(&output.stdout) };
    Said { ok: output.status.success(), out }
}

impl Playground {
    /// A cluster of so many nodes, which reach these ports of the machine's loopback. `None`: the test is skipped, or it runs
    /// later, when the programs are built.
    pub(crate) fn up(test: &str, nodes: u8, ports: &[u16]) -> Option<Self> {
        let xtask = match std::env::var_os("MILKRUN_TEST_KUBERNETES") {
            Some(later) if later == "later" => return None,
            Some(xtask) => PathBuf::from(xtask),
            None => {
                milkrun_tests::skip(test, "no Kubernetes here: it needs root and Go (cargo xtask cluster build)");
                return None;
            }
        };
        static CLUSTERS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = CLUSTERS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("t{}x{number}", std::process::id());
        let mut command = Command::new(&xtask);
        command.args(["cluster", "up", "--name", &name, "--nodes", &nodes.to_string()]);
        for port in ports {
            command.args(["--machine-port", &port.to_string()]);
        }
        if let Some(version) = std::env::var_os("MILKRUN_TEST_KUBERNETES_VERSION") {
            command.arg("--version").arg(version);
        }
        let said = run(&mut command);
        assert!(said.ok, "no cluster: {}", said.out);
        let kubeconfig = said.out.lines().find_map(|line| line.strip_prefix("export KUBECONFIG=")).unwrap().into();
        let programs = run(Command::new(&xtask).args(["cluster", "programs"])).out.trim().into();
        Some(Self { name, xtask, programs, kubeconfig })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// `cargo xtask cluster WHAT --name … REST`
    pub(crate) fn cluster(&self, what: &str, rest: &[&str]) -> Said {
        run(Command::new(&self.xtask).args(["cluster", what, "--name", &self.name]).args(rest))
    }

    pub(crate) fn kubeconfig(&self) -> &std::path::Path {
        &self.kubeconfig
    }

    /// Runs a command on a node. Returns what it said.
    pub(crate) fn on(&self, node: &str, command: &[&str]) -> String {
        let said = self.cluster("on", &[&[node], command].concat());
        assert!(said.ok, "{command:?} on {node}: {}", said.out);
        said.out
    }

    /// A program of the cluster, on this machine.
    pub(crate) fn program(&self, program: &str) -> PathBuf {
        self.programs.join(program)
    }

    /// Runs `kubectl`.
    pub(crate) fn try_kubectl(&self, args: &[&str]) -> Said {
        run(Command::new(self.program("kubectl")).env("KUBECONFIG", &self.kubeconfig).args(args))
    }

    /// Runs `kubectl`, which must succeed. `words` are split at spaces.
    pub(crate) fn kubectl(&self, words: &str) -> String {
        let said = self.try_kubectl(&words.split_whitespace().collect::<Vec<_>>());
        assert!(said.ok, "kubectl {words}: {}", said.out);
        said.out
    }

    /// Runs a shell command in a pod.
    pub(crate) fn exec(&self, namespace: &str, pod: &str, command: &str) -> String {
        let said = self.try_kubectl(&["-n", namespace, "exec", pod, "--", "sh", "-c", command]);
        assert!(said.ok, "{command} in {pod}: {}", said.out);
        said.out
    }

    /// Applies objects.
    pub(crate) fn apply(&self, yaml: &str) {
        let said = self.try_apply(yaml);
        assert!(said.ok, "{}", said.out);
    }

    /// Applies objects, which may be refused.
    pub(crate) fn try_apply(&self, yaml: &str) -> Said {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, yaml.as_bytes()).unwrap();
        self.try_kubectl(&["apply", "-f", file.path().to_str().unwrap()])
    }

    /// Waits until the API server would refuse an object.
    pub(crate) fn wait_for_refusal(&self, what: &str, yaml: &str) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, yaml.as_bytes()).unwrap();
        let began = Instant::now();
        while self.try_kubectl(&["create", "--dry-run=server", "-f", file.path().to_str().unwrap()]).ok {
            assert!(began.elapsed() < WAIT_MAX, "waited in vain for {what}");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    pub(crate) fn helm(&self, words: &str) -> String {
        let mut command = Command::new(self.program("helm"));
        let said = run(command.env("KUBECONFIG", &self.kubeconfig).args(words.split_whitespace()));
        assert!(said.ok, "helm {words}: {}", said.out);
        said.out
    }

    /// Waits until `kubectl` says what is wanted.
    pub(crate) fn wait_for(&self, what: &str, words: &str, wanted: impl Fn(&str) -> bool) -> String {
        let began = Instant::now();
        let words: Vec<&str> = words.split_whitespace().collect();
        loop {
            let said = self.try_kubectl(&words);
            if said.ok && wanted(&said.out) {
                return said.out;
            }
            assert!(began.elapsed() < WAIT_MAX, "waited in vain for {what}; kubectl {words:?}: {}", said.out);
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until a run is over. Returns its status.
    pub(crate) fn wait_for_run(&self, kind: &str, namespace: &str, name: &str) -> serde_json::Value {
        let words = format!("-n {namespace} get {kind} {name} -o json");
        let over = |text: &str| {
            let object: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
            object["status"]["step"] == "Done"
        };
        let text = self.wait_for(&format!("{kind} {name}"), &words, over);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["status"].clone()
    }

    /// Everything that a run could leave behind: claims, volumes, snapshots, their contents, attachments, pods of the work
    /// namespace, images of the storage, loop devices of the cluster.
    pub(crate) fn inventory(&self) -> Vec<String> {
        let names = self.kubectl(&format!("get {KINDS} -A -o name --ignore-not-found"));
        let mut all: Vec<String> = names.lines().map(str::to_owned).collect();
        let pods = self.try_kubectl(&["-n", "milkrun-work", "get", "pods", "-o", "name"]);
        all.extend(pods.out.lines().filter(|line| line.starts_with("pod/")).map(str::to_owned));
        let files =
            self.on("node1", &["find", "/run/milkrun-disk/volumes", "/run/milkrun-disk/snapshots", "-mindepth", "1"]);
        all.extend(files.lines().filter(|name| !name.is_empty()).map(str::to_owned));
        let mine = format!("{}-", self.name);
        let loops = run(Command::new("losetup").args(["--list", "--noheadings", "--output", "BACK-FILE"])).out;
        all.extend(loops.lines().filter(|line| line.contains(&mine)).map(|line| format!("loop {line}")));
        all.sort();
        all
    }

    /// Waits until the inventory is what it was.
    pub(crate) fn wait_for_inventory(&self, before: &[String]) {
        self.wait_for_part_of_inventory(before, <[String]>::to_vec);
    }

    /// Waits until a part of the inventory is what it was.
    pub(crate) fn wait_for_part_of_inventory(&self, before: &[String], part: impl Fn(&[String]) -> Vec<String>) {
        let began = Instant::now();
        loop {
            let now = part(&self.inventory());
            if now == before {
                return;
            }
            let more: Vec<&String> = now.iter().filter(|entry| !before.contains(entry)).collect();
            let less: Vec<&String> = before.iter().filter(|entry| !now.contains(entry)).collect();
            assert!(began.elapsed() < WAIT_MAX, "left behind: {more:?}; gone: {less:?}");
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What a person would look at first, and no more: CI shows little.
            let logs = "-n milkrun logs -l app.kubernetes.io/name --tail=25 --prefix";
            let said = self.try_kubectl(&logs.split_whitespace().collect::<Vec<_>>());
            said.out.lines().for_each(|line| eprintln!("{}", in_short(line)));
            let events = "get events -A --sort-by=.lastTimestamp --field-selector=type=Warning";
            let said = self.try_kubectl(&events.split_whitespace().collect::<Vec<_>>());
            let from = said.out.lines().count().saturating_sub(15);
            said.out.lines().skip(from).for_each(|line| eprintln!("{line}"));
        }
        self.cluster("down", &[]);
    }
}

/// A line of a log without what a person who reads it does not need.
fn in_short(line: &str) -> String {
    let at = line.find('{').unwrap_or(line.len());
    let (of, json) = line.split_at(at);
    let Ok(said) = serde_json::from_str::<serde_json::Value>(json) else { return line.to_owned() };
    let of = of.rsplit('/').next().unwrap_or(of);
    let at = said["timestamp"].as_str().and_then(|at| at.get(11..23)).unwrap_or_default();
    format!("{of}{at} {} {}", said["level"].as_str().unwrap_or_default(), said["fields"])
}
