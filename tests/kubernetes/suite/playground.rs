//! A cluster of a test, as a person would use it: `cargo xtask cluster`, `kubectl`, `helm`.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The longest time that something in a cluster may take.
const WAIT_MAX: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(300);
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

    pub(crate) fn helm(&self, words: &str) {
        let mut command = Command::new(self.program("helm"));
        let said = run(command.env("KUBECONFIG", &self.kubeconfig).args(words.split_whitespace()));
        assert!(said.ok, "helm {words}: {}", said.out);
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
        let mut all = Vec::new();
        for kind in ["pvc", "pv", "volumesnapshots", "volumesnapshotcontents", "volumeattachments"] {
            let names = self.kubectl(&format!("get {kind} -A -o name --ignore-not-found"));
            all.extend(names.lines().map(str::to_owned));
        }
        let pods = self.try_kubectl(&["-n", "milkrun-work", "get", "pods", "-o", "name"]);
        all.extend(pods.out.lines().filter(|line| line.starts_with("pod/")).map(str::to_owned));
        for folder in ["volumes", "snapshots"] {
            let list = self.on("node1", &["ls", &format!("/run/milkrun-disk/{folder}")]);
            all.extend(list.lines().filter(|name| !name.is_empty()).map(|name| format!("{folder}/{name}")));
        }
        let mine = format!("{}-", self.name);
        let loops = run(Command::new("losetup").args(["--list", "--noheadings", "--output", "BACK-FILE"])).out;
        all.extend(loops.lines().filter(|line| line.contains(&mine)).map(|line| format!("loop {line}")));
        all.sort();
        all
    }

    /// Waits until the inventory is what it was.
    pub(crate) fn wait_for_inventory(&self, before: &[String]) {
        let began = Instant::now();
        loop {
            let now = self.inventory();
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
            // What a person would look at first.
            for words in ["-n milkrun logs -l app.kubernetes.io/name --tail=40 --prefix", "get events -A"] {
                let said = self.try_kubectl(&words.split_whitespace().collect::<Vec<_>>());
                eprintln!("kubectl {words}\n{}", said.out);
            }
        }
        self.cluster("down", &[]);
    }
}
