//! What goes wrong in a cluster: nothing is lost, nothing is left behind, and status says why.

pub(crate) mod limits;
mod nodes;
mod objects;
mod processes;
mod requests;
mod storage;

use crate::playground::Playground;

/// Sets the switches of the tests' CSI driver.
pub(crate) fn set_switches(cluster: &Playground, json: &str) {
    let line = format!("echo '{json}' > /run/milkrun-disk/switches.json");
    cluster.on("node1", &["/bin/sh", "-c", &line]);
}

/// A namespace with one claim, and a pod that uses it.
pub(crate) fn start_small(cluster: &Playground, namespace: &str, claim: &str) {
    cluster.kubectl(&format!("create namespace {namespace}"));
    cluster.wait_for("the account", &format!("-n {namespace} get serviceaccount default -o name"), |_| true);
    cluster.apply(&small(namespace, "user", claim));
    cluster.kubectl(&format!("-n {namespace} wait --for=condition=Ready pod/user --timeout=120s"));
}

/// A claim, and a pod that uses it.
pub(crate) fn small(namespace: &str, pod: &str, claim: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {claim}, namespace: {namespace}}}\n\
         spec: {{accessModes: [ReadWriteOnce], storageClassName: ext4, resources: {{requests: {{storage: 64Mi}}}}}}\n\
         ---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: {namespace}}}\nspec:\n  \
         terminationGracePeriodSeconds: 0\n  containers:\n    - {{name: main, image: \"milkrun.test/busybox:1\", \
         imagePullPolicy: Never, command: [sh, -c, \"date > /v/started; sync; sleep 3600\"], \
         volumeMounts: [{{name: v, mountPath: /v}}]}}\n  \
         volumes: [{{name: v, persistentVolumeClaim: {{claimName: {claim}}}}}]\n"
    )
}

/// Waits until a backup's or a restore's message has a text in it.
pub(crate) fn wait_for_message(cluster: &Playground, kind: &str, namespace: &str, name: &str, text: &str) {
    let words = format!("-n {namespace} get {kind} {name} -o jsonpath={{.status.message}}");
    cluster.wait_for(text, &words, |said| said.contains(text));
}

/// Waits until a run has failed, and its failure has a text in it.
pub(crate) fn wait_for_failure(cluster: &Playground, kind: &str, namespace: &str, name: &str, text: &str) {
    let status = cluster.wait_for_run(kind, namespace, name);
    assert!(status["failure"].as_str().unwrap_or_default().contains(text), "{status}");
    let failed = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Failed").unwrap();
    assert_eq!(failed["status"], "True");
}

/// Waits until a run has ended well.
pub(crate) fn wait_for_success(cluster: &Playground, kind: &str, namespace: &str, name: &str) {
    let status = cluster.wait_for_run(kind, namespace, name);
    assert!(status["failure"].is_null(), "{kind} {name}: {status}");
}

/// Kills the pods of one of milkrun's parts.
pub(crate) fn kill(cluster: &Playground, what: &str) {
    cluster
        .kubectl(&format!("-n milkrun delete pod -l app.kubernetes.io/name=milkrun-{what} --grace-period=0 --force"));
}

/// Waits until a run is in a step, or beyond it.
pub(crate) fn wait_for_step(cluster: &Playground, kind: &str, namespace: &str, name: &str, step: &str) {
    let words = format!("-n {namespace} get {kind} {name} -o jsonpath={{.status.steps}}");
    cluster.wait_for(step, &words, |said| said.contains(&format!("\"{step}\"")));
}

/// A `Restore` of an application's last point, from milkrun's namespace.
pub(crate) fn restore(cluster: &Playground, name: &str, from: &str, to: &str, more: &str) {
    cluster.apply(&format!(
        "apiVersion: milkrun.dev/v1alpha1\nkind: Restore\nmetadata: {{name: {name}, namespace: milkrun}}\n\
         spec: {{repository: prod, point: \"{from}@latest\", fromNamespace: {from}, toNamespace: {to}{more}}}\n"
    ));
}
