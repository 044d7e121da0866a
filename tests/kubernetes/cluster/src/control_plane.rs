//! etcd, the API server, the controllers and the scheduler: on node 1.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::Result;
use crate::build::Programs;
use crate::layout::{API_PORT, Layout, Node, SERVICES};
use crate::process::{run, wait_for};
use crate::processes::Processes;

const START_MAX: Duration = Duration::from_secs(60);

/// A command that runs in the network of node 1, and in the supervisor's mount namespace.
pub(crate) fn here(program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", Node(1).network())).arg("--").arg(program);
    command
}

/// Starts all, and waits until the API server is ready.
pub(crate) fn start(layout: &Layout, programs: &Programs, processes: &Processes) -> Result<()> {
    let data = layout.folder().join("etcd");
    let etcd = programs.path("etcd");
    processes.add("etcd", layout.log("etcd"), move || {
        let mut command = here(&etcd);
        command.arg("--data-dir").arg(&data).arg("--unsafe-no-fsync=true");
        command.args(["--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379"]);
        command.args(["--listen-peer-urls=http://127.0.0.1:2380", "--log-level=warn"]);
        command
    })?;
    let audit = layout.folder().join("audit.yaml");
    std::fs::write(&audit, include_str!("files/audit.yaml")).map_err(|e| format!("{}: {e}", audit.display()))?;
    let (files, program) = (layout.clone(), programs.path("kube-apiserver"));
    processes.add("kube-apiserver", layout.log("kube-apiserver"), move || api_server(&files, &program))?;
    wait_for("the API server", START_MAX, || kubectl(layout, programs).args(["get", "--raw", "/readyz"]).ok())?;
    for name in ["kube-controller-manager", "kube-scheduler"] {
        let (files, program) = (layout.clone(), programs.path(name));
        processes.add(name, layout.log(name), move || controller(&files, &program, name))?;
    }
    Ok(())
}

fn api_server(layout: &Layout, program: &Path) -> Command {
    let mut command = here(program);
    let pki = |file: &str| layout.pki(file).display().to_string();
    command.args([
        format!("--advertise-address={}", Node(1).address()),
        "--allow-privileged=true".into(),
        format!("--audit-log-path={}", layout.folder().join("audit.log").display()),
        format!("--audit-policy-file={}", layout.folder().join("audit.yaml").display()),
        "--authorization-mode=Node,RBAC".into(),
        format!("--client-ca-file={}", pki("ca.crt")),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--etcd-servers=http://127.0.0.1:2379".into(),
        format!("--kubelet-client-certificate={}", pki("api-server-to-kubelet.crt")),
        format!("--kubelet-client-key={}", pki("api-server-to-kubelet.key")),
        format!("--kubelet-certificate-authority={}", pki("ca.crt")),
        "--kubelet-preferred-address-types=InternalIP".into(),
        format!("--secure-port={API_PORT}"),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", pki("tokens.pub")),
        format!("--service-account-signing-key-file={}", pki("tokens.key")),
        format!("--service-cluster-ip-range={SERVICES}"),
        format!("--tls-cert-file={}", pki("api-server.crt")),
        format!("--tls-private-key-file={}", pki("api-server.key")),
    ]);
    command
}

fn controller(layout: &Layout, program: &Path, name: &str) -> Command {
    let mut command = here(program);
    let kubeconfig = layout.pki(&format!("{name}.kubeconfig")).display().to_string();
    for flag in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
        command.arg(format!("--{flag}={kubeconfig}"));
    }
    command.args(["--leader-elect=false", "--bind-address=127.0.0.1"]);
    if name == "kube-controller-manager" {
        command.args([
            format!("--root-ca-file={}", layout.pki("ca.crt").display()),
            format!("--service-account-private-key-file={}", layout.pki("tokens.key").display()),
            "--use-service-account-credentials=true".into(),
        ]);
    }
    command
}

/// `kubectl` with an administrator's rights, in the network of node 1.
pub(crate) struct Kubectl(Command);

/// See [`Kubectl`].
pub(crate) fn kubectl(layout: &Layout, programs: &Programs) -> Kubectl {
    let mut command = here(&programs.path("kubectl"));
    command.arg("--kubeconfig").arg(layout.pki("admin.kubeconfig"));
    Kubectl(command)
}

impl Kubectl {
    pub(crate) fn args(mut self, args: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>) -> Self {
        self.0.args(args);
        self
    }

    pub(crate) fn run(mut self) -> Result<String> {
        run(&mut self.0)
    }

    pub(crate) fn ok(self) -> Option<String> {
        self.run().ok()
    }
}
