//! Keys, certificates and kubeconfigs of a cluster, made by `openssl`.

use std::fs;

use crate::Result;
use crate::layout::{API_PORT, API_SERVICE, Layout, MACHINE, Node, Shape};
use crate::process::{run, words};

/// Who is known to the API server: file name, common name, organisation.
fn identities(shape: &Shape) -> Vec<(String, String, &'static str)> {
    let mut all: Vec<(String, String, &str)> = [
        ("admin", "admin", "system:masters"),
        ("api-server-to-kubelet", "api-server", "system:masters"),
        ("kube-controller-manager", "system:kube-controller-manager", ""),
        ("kube-scheduler", "system:kube-scheduler", ""),
        ("kube-proxy", "system:kube-proxy", ""),
    ]
    .map(|(file, name, group)| (file.to_owned(), name.to_owned(), group))
    .into();
    all.extend(Node::all(shape.nodes).map(|n| (n.name(), format!("system:node:{}", n.name()), "system:nodes")));
    all
}

/// Makes all of them.
///
/// `api_port` is the port of this machine's loopback at which the API server is found.
pub(crate) fn make(layout: &Layout, shape: &Shape, api_port: u16) -> Result<()> {
    fs::create_dir_all(layout.pki("")).map_err(|e| format!("{}: {e}", layout.pki("").display()))?;
    authority(layout, "ca")?;
    signing_pair(layout)?;
    let names = format!(
        "subjectAltName=IP:127.0.0.1,IP:{},IP:{API_SERVICE},DNS:kubernetes.default.svc,DNS:kubernetes.default,DNS:localhost",
        Node(1).address()
    );
    certificate(layout, "api-server", "/CN=api-server", &names)?;
    for (file, name, group) in identities(shape) {
        let subject = if group.is_empty() { format!("/CN={name}") } else { format!("/O={group}/CN={name}") };
        certificate(layout, &file, &subject, "extendedKeyUsage=clientAuth")?;
        let server = format!("https://{MACHINE}:{API_PORT}");
        write(layout, &format!("{file}.kubeconfig"), &kubeconfig(layout, &file, &server)?)?;
    }
    for node in Node::all(shape.nodes) {
        let name = format!("kubelet-{}", node.0);
        certificate(layout, &name, &format!("/CN={}", node.name()), &format!("subjectAltName=IP:{}", node.address()))?;
    }
    let text = kubeconfig(layout, "admin", &format!("https://127.0.0.1:{api_port}"))?;
    let path = layout.kubeconfig();
    fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
}

fn openssl(line: &str) -> Result<()> {
    run(&mut words(&format!("openssl {line}"))).map(drop)
}

fn authority(layout: &Layout, name: &str) -> Result<()> {
    let (key, certificate) = (layout.pki(&format!("{name}.key")), layout.pki(&format!("{name}.crt")));
    openssl(&format!(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=milkrun-test-{name} -keyout {} -out {}",
        key.display(),
        certificate.display()
    ))
}

/// The pair that ServiceAccount tokens are signed and checked with.
fn signing_pair(layout: &Layout) -> Result<()> {
    let (key, public) = (layout.pki("tokens.key"), layout.pki("tokens.pub"));
    openssl(&format!("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out {}", key.display()))?;
    openssl(&format!("pkey -in {} -pubout -out {}", key.display(), public.display()))
}

fn certificate(layout: &Layout, name: &str, subject: &str, extension: &str) -> Result<()> {
    openssl(&format!(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj {subject} -CA {} -CAkey {} -addext basicConstraints=critical,CA:FALSE -addext {extension} -keyout {} -out {}",
        layout.pki("ca.crt").display(),
        layout.pki("ca.key").display(),
        layout.pki(&format!("{name}.key")).display(),
        layout.pki(&format!("{name}.crt")).display()
    ))
}

fn kubeconfig(layout: &Layout, identity: &str, server: &str) -> Result<String> {
    let data = |file: &str| {
        let path = layout.pki(file);
        let line = format!("base64 -w 0 {}", path.display());
        run(&mut words(&line)).map(|text| text.trim().to_owned())
    };
    Ok(include_str!("files/kubeconfig.yaml")
        .replace("{server}", server)
        .replace("{authority}", &data("ca.crt")?)
        .replace("{certificate}", &data(&format!("{identity}.crt"))?)
        .replace("{key}", &data(&format!("{identity}.key"))?))
}

fn write(layout: &Layout, file: &str, text: &str) -> Result<()> {
    fs::write(layout.pki(file), text).map_err(|e| format!("{file}: {e}"))
}
