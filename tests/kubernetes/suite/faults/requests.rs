//! Requests that the API server refuses for a while, and objects that others write to at the same time.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{restore, set_switches, start_small, wait_for_step, wait_for_success};
use crate::installed::{add_repository, back_up, with_store_and};
use crate::playground::{MACHINE, Playground};

/// How long requests are refused: several tries of the operator.
const REFUSED: Duration = Duration::from_secs(8);
const OPERATOR: &str = "system:serviceaccount:milkrun:milkrun-operator";

/// Lets the API server answer requests of the operator in these API groups with 429, for a while. The API server always lets one
/// request of a flow through, also where its priority has no seats: so one is made that takes long, since a webhook does not answer.
fn refuse(cluster: &Playground, groups: &str, silent: &TcpListener) {
    let url = format!("https://{MACHINE}:{}/", silent.local_addr().unwrap().port());
    cluster.apply(&format!(
        "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingWebhookConfiguration\nmetadata: {{name: silent}}\n\
         webhooks:\n  - {{name: silent.milkrun.test, clientConfig: {{url: \"{url}\"}}, sideEffects: None, \
         admissionReviewVersions: [v1], timeoutSeconds: 6, failurePolicy: Ignore, \
         namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: default}}}}, rules: [{{apiGroups: [\"\"], \
         apiVersions: [v1], operations: [CREATE], resources: [persistentvolumeclaims]}}]}}\n\
         ---\napiVersion: flowcontrol.apiserver.k8s.io/v1\nkind: PriorityLevelConfiguration\nmetadata: {{name: refused}}\n\
         spec: {{type: Limited, limited: {{nominalConcurrencyShares: 0, lendablePercent: 0, borrowingLimitPercent: 0, \
         limitResponse: {{type: Reject}}}}}}\n\
         ---\napiVersion: flowcontrol.apiserver.k8s.io/v1\nkind: FlowSchema\nmetadata: {{name: refused}}\nspec:\n  \
         matchingPrecedence: 2\n  priorityLevelConfiguration: {{name: refused}}\n  rules:\n    \
         - subjects: [{{kind: ServiceAccount, serviceAccount: {{name: milkrun-operator, namespace: milkrun}}}}]\n      \
         resourceRules: [{{verbs: [\"*\"], apiGroups: [{groups}], resources: [\"*\"], clusterScope: true, \
         namespaces: [\"*\"]}}]\n"
    ));
    let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: slow, namespace: default}\n\
                 spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}\n";
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, claim.as_bytes()).unwrap();
    let as_operator = format!("--as={OPERATOR}");
    let slow = ["create", "--validate=false", "--dry-run=server", &as_operator, "-f", file.path().to_str().unwrap()];
    let began = Instant::now();
    while began.elapsed() < REFUSED {
        cluster.try_kubectl(&slow);
    }
    cluster.kubectl("delete flowschema refused");
    cluster.kubectl("delete prioritylevelconfiguration refused");
    cluster.kubectl("delete validatingwebhookconfiguration silent");
}

/// How many requests were refused since the API server began.
fn refused(cluster: &Playground) -> f64 {
    let metrics = cluster.kubectl("get --raw /metrics");
    let of =
        |line: &&str| line.starts_with("apiserver_flowcontrol_rejected_requests_total{") && line.contains("refused");
    metrics.lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[test]
fn refused_requests_are_made_again_and_other_writers_are_no_harm() {
    let test = "refused_requests_are_made_again_and_other_writers_are_no_harm";
    // It takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let Some((cluster, store)) = with_store_and(test, 1, &[silent.local_addr().unwrap().port()]) else { return };
    start_small(&cluster, "shop", "data");
    add_repository(&cluster, &store, true);
    let before = cluster.inventory();
    set_switches(&cluster, r#"{"snapshot_takes_ms": 1500}"#);

    // All but its Lease; then its Lease, too.
    let all_but_leases = r#""", "milkrun.dev", "snapshot.storage.k8s.io", "storage.k8s.io", "events.k8s.io""#;
    for (name, at, groups) in [
        ("at-snapshot", "Snapshot", all_but_leases),
        ("at-move", "Move", all_but_leases),
        ("all", "Snapshot", r#""*""#),
    ] {
        let were = refused(&cluster);
        back_up(&cluster, "shop", name);
        wait_for_step(&cluster, "backup", "shop", name, at);
        refuse(&cluster, groups, &silent);
        assert!(refused(&cluster) > were, "{name}: the API server refused nothing");
        wait_for_success(&cluster, "backup", "shop", name);
        cluster.wait_for_inventory(&before);
    }
    cluster.kubectl("create namespace refused");
    restore(&cluster, "refused", "shop", "refused", "");
    wait_for_step(&cluster, "restore", "milkrun", "refused", "HandOver");
    refuse(&cluster, all_but_leases, &silent);
    wait_for_success(&cluster, "restore", "milkrun", "refused");
    cluster.kubectl("delete namespace refused");
    cluster.wait_for_inventory(&before);

    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| write_to_all(&cluster, &over));
        let _over = Over(&over);
        back_up(&cluster, "shop", "written-to");
        wait_for_success(&cluster, "backup", "shop", "written-to");
        cluster.kubectl("create namespace copy");
        restore(&cluster, "written-to", "shop", "copy", "");
        wait_for_success(&cluster, "restore", "milkrun", "written-to");
    });
    cluster.kubectl("delete namespace copy");
    cluster.wait_for_inventory(&before);
}

/// Ends the writer, also when the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes to all objects that a run makes or looks at, again and again.
fn write_to_all(cluster: &Playground, over: &AtomicBool) {
    let kinds = "backups,restores,persistentvolumeclaims,pods,volumesnapshots";
    for number in 0.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let note = format!("tests.milkrun.dev/number={number}");
        for (namespace, kinds) in [("shop", kinds), ("milkrun-work", kinds), ("milkrun", "restores"), ("copy", kinds)] {
            // Something may be gone, or may not be there yet.
            let words = format!("-n {namespace} annotate --overwrite --all {kinds} {note}");
            cluster.try_kubectl(&words.split_whitespace().collect::<Vec<_>>());
        }
        let words = format!("annotate --overwrite --all persistentvolumes,volumesnapshotcontents {note}");
        cluster.try_kubectl(&words.split_whitespace().collect::<Vec<_>>());
    }
}
