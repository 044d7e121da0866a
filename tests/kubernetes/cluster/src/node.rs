//! What runs on a node: containerd, kubelet, kube-proxy.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::Result;
use crate::build::Programs;
use crate::layout::{Layout, Node, cgroup};
use crate::node_space::NodeSpace;
use crate::process::{run, wait_for};
use crate::processes::Processes;

const START_MAX: Duration = Duration::from_secs(60);

/// Starts a node's processes, and imports the images.
pub(crate) fn start(
    layout: &Layout,
    cluster: &str,
    node: Node,
    programs: &Programs,
    images: &[PathBuf],
    processes: &Processes,
) -> Result<Arc<NodeSpace>> {
    configure(layout, cluster, node)?;
    let space = Arc::new(NodeSpace::make(layout, cluster, node)?);
    let name = |program: &str| format!("{program}-{}", node.0);
    let add = |program: &str, path: PathBuf, args: Vec<String>| {
        let space = Arc::clone(&space);
        processes.add(&name(program), layout.log(&name(program)), move || {
            let mut command = space.command(&path);
            command.args(&args);
            command
        })
    };
    let file = |what: &str| layout.node(node, what).display().to_string();

    add("containerd", "/usr/bin/containerd".into(), vec!["--config".into(), file("containerd.toml")])?;
    wait_for("containerd", START_MAX, || run(space.command("/usr/bin/ctr").arg("version")).ok())?;
    for image in images {
        run(space.command("/usr/bin/ctr").args(["-n", "k8s.io", "images", "import"]).arg(image))?;
    }
    add(
        "kubelet",
        programs.path("kubelet"),
        vec![
            format!("--config={}", file("kubelet.yaml")),
            format!("--kubeconfig={}", layout.pki(&format!("{}.kubeconfig", node.name())).display()),
            format!("--hostname-override={}", node.name()),
            format!("--node-ip={}", node.address()),
            format!("--node-labels=topology.kubernetes.io/zone={}", node.zone()),
            "--cert-dir=/run/kubelet-pki".into(),
        ],
    )?;
    add("kube-proxy", programs.path("kube-proxy"), vec![format!("--config={}", file("kube-proxy.yaml"))])?;
    Ok(space)
}

fn configure(layout: &Layout, cluster: &str, node: Node) -> Result<()> {
    let cni = layout.node(node, "cni");
    fs::create_dir_all(&cni).map_err(|e| format!("{}: {e}", cni.display()))?;
    let kubeconfig = layout.pki("kube-proxy.kubeconfig").display().to_string();
    let fill = |text: &str| {
        text.replace("{address}", &node.address())
            .replace("{authority}", &layout.pki("ca.crt").display().to_string())
            .replace("{certificate}", &layout.pki(&format!("kubelet-{}.crt", node.0)).display().to_string())
            .replace("{key}", &layout.pki(&format!("kubelet-{}.key", node.0)).display().to_string())
            .replace("{cgroup}", &cgroup(cluster, node))
            .replace("{cni}", &cni.display().to_string())
            .replace("{ipam}", "/run/cni-ipam")
            .replace("{kubeconfig}", &kubeconfig)
            .replace("{name}", &node.name())
            .replace("{pods}", &node.pods())
    };
    let files = [
        ("containerd.toml", include_str!("files/containerd.toml")),
        ("kubelet.yaml", include_str!("files/kubelet.yaml")),
        ("kube-proxy.yaml", include_str!("files/kube-proxy.yaml")),
        ("cni/10-pods.conflist", include_str!("files/cni.json")),
    ];
    for (file, text) in files {
        fs::write(layout.node(node, file), fill(text)).map_err(|e| format!("{file}: {e}"))?;
    }
    Ok(())
}
