//! The authority of milkrun's certificates, when another one takes its place.

use std::time::Duration;

use milkrun_identity::authority::Authority;

use crate::faults::{kill, start_small, wait_for_success};
use crate::installed::{CHART, add_repository, back_up, with_store};
use crate::playground::Playground;

/// Puts another authority in the place of the present one, in the form that cert-manager has. Returns its certificate.
fn give_another(cluster: &Playground) -> String {
    let folder = tempfile::tempdir().unwrap();
    Authority::create(folder.path(), Duration::from_secs(90 * 86_400)).unwrap();
    let file = |name: &str| format!("{}/{name}", folder.path().display());
    let (certificate, key) = (file("ca.crt"), file("ca.key"));
    let secret = cluster.kubectl(&format!(
        "-n milkrun create secret generic milkrun-authority --dry-run=client -o yaml --from-file=ca.crt={certificate} \
         --from-file=tls.crt={certificate} --from-file=tls.key={key}"
    ));
    let object = folder.path().join("secret.yaml");
    std::fs::write(&object, secret).unwrap();
    cluster.kubectl(&format!("replace -f {}", object.display()));
    std::fs::read_to_string(certificate).unwrap()
}

/// How often agents and operators got a certificate of the coordinator that leads.
fn enrolled(logs: &str) -> usize {
    logs.matches("\"enrolled\"").count()
}

#[test]
fn another_authority_takes_over_without_a_gap() {
    let Some((cluster, store)) = with_store("another_authority_takes_over_without_a_gap", 1) else { return };
    start_small(&cluster, "shop", "data");
    add_repository(&cluster, &store, true);
    let published = || cluster.kubectl("-n milkrun get configmap milkrun-authority -o jsonpath={.data.ca\\.crt}");
    let first = published();
    let logs = "-n milkrun logs -l app.kubernetes.io/name=milkrun-coordinator --tail=-1";
    let before = enrolled(&cluster.kubectl(logs));

    let second = give_another(&cluster);
    let map = "-n milkrun get configmap milkrun-authority -o jsonpath={.data.ca\\.crt}";
    let both = format!("{second}{first}");
    cluster.wait_for("both authorities", map, |said| said.trim() == both.trim());
    // With certificates of the first one, which the coordinator still shows itself.
    back_up(&cluster, "shop", "with-the-first");
    wait_for_success(&cluster, "backup", "shop", "with-the-first");
    // Kubelets look at mounted ConfigMaps when something of the pod changes, and else once a minute.
    cluster.kubectl("-n milkrun annotate pods --all tests.milkrun.dev/look=1");
    cluster.wait_for("new certificates", logs, |said| enrolled(said) >= before + 2);
    back_up(&cluster, "shop", "with-the-second");
    wait_for_success(&cluster, "backup", "shop", "with-the-second");

    // The next coordinator shows a certificate of the second authority, and trusts those of the first.
    kill(&cluster, "coordinator");
    back_up(&cluster, "shop", "next-coordinator");
    wait_for_success(&cluster, "backup", "shop", "next-coordinator");
    assert_eq!(published().trim(), both.trim());
    kill(&cluster, "agent");
    kill(&cluster, "operator");
    back_up(&cluster, "shop", "all-new");
    wait_for_success(&cluster, "backup", "shop", "all-new");

    // What is no authority changes nothing, and the log says so.
    cluster.kubectl("-n milkrun patch secret milkrun-authority --type=merge -p {\"data\":{\"tls.key\":null}}");
    cluster.wait_for("the log", logs, |said| said.contains("holds no authority"));
    back_up(&cluster, "shop", "no-authority");
    wait_for_success(&cluster, "backup", "shop", "no-authority");

    let with = "authority.certManager.issuerRef.kind=ClusterIssuer,authority.certManager.issuerRef.name=internal";
    let chart = cluster.helm(&format!("template milkrun {CHART} -n milkrun --set {with}"));
    assert!(chart.contains("kind: Certificate") && chart.contains("--authority=given"), "{chart}");
}
