//! What a cluster forbids: quotas, pod security, images that nobody has.

use super::{restore, start_small, wait_for_failure, wait_for_success};
use crate::installed::{add_repository, back_up, with_store};
use crate::playground::Playground;

fn quota(cluster: &Playground, namespace: &str, what: &str) {
    cluster.apply(&format!(
        "apiVersion: v1\nkind: ResourceQuota\nmetadata: {{name: none, namespace: {namespace}}}\nspec: {{hard: {{{what}: \"0\"}}}}\n"
    ));
    let seen = format!("-n {namespace} get resourcequota none -o jsonpath={{.status.hard}}");
    cluster.wait_for("the quota", &seen, |said| said.contains(what));
}

#[test]
fn what_the_cluster_forbids_is_said_at_once() {
    let Some((cluster, store)) = with_store("what_the_cluster_forbids_is_said_at_once", 1) else { return };
    start_small(&cluster, "shop", "data");
    add_repository(&cluster, &store, true);
    let before = cluster.inventory();
    for what in ["pods", "persistentvolumeclaims"] {
        quota(&cluster, "milkrun-work", what);
        back_up(&cluster, "shop", what);
        wait_for_failure(&cluster, "backup", "shop", what, "exceeded quota");
        cluster.kubectl("-n milkrun-work delete resourcequota none");
        cluster.wait_for_inventory(&before);
    }

    let level = |level: &str| {
        let label = format!("pod-security.kubernetes.io/enforce={level}");
        cluster.kubectl(&format!("label namespace milkrun-work --overwrite {label}"));
    };
    level("restricted");
    back_up(&cluster, "shop", "restricted");
    wait_for_failure(&cluster, "backup", "shop", "restricted", "violates PodSecurity");
    level("baseline");
    cluster.wait_for_inventory(&before);

    image(&cluster, "milkrun.test/nobody-has-it:1");
    back_up(&cluster, "shop", "no-image");
    wait_for_failure(&cluster, "backup", "shop", "no-image", "the holder pod's image");
    cluster.wait_for_inventory(&before);
    image(&cluster, "milkrun.test/milkrun:1");

    back_up(&cluster, "shop", "after-all");
    wait_for_success(&cluster, "backup", "shop", "after-all");
    // What stops a restore is known before anything is made.
    cluster.kubectl("create namespace copy");
    let fails = |name: &str, why: &str| {
        restore(&cluster, name, "shop", "copy", "");
        wait_for_failure(&cluster, "restore", "milkrun", name, why);
        let steps = cluster.kubectl(&format!("-n milkrun get restore {name} -o jsonpath={{.status.steps}}"));
        assert!(!steps.contains("Reserve"), "{name}: {steps}");
        assert_eq!(cluster.inventory(), before, "{name}");
    };
    quota(&cluster, "copy", "persistentvolumeclaims");
    fails("quota", "the quota none of the namespace copy allows persistentvolumeclaims 0");
    cluster.kubectl("-n copy delete resourcequota none");
    level("restricted");
    fails("pods", "violates PodSecurity");
    level("baseline");
    cluster.apply(POLICY);
    let refused = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: probe, namespace: copy}\n\
                   spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}\n";
    cluster.wait_for_refusal("the policy", refused);
    fails("policy", "claims come from the platform team");
}

/// Admission that lets nobody make claims in the namespace `copy`.
pub(crate) const POLICY: &str = "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicy\n\
    metadata: {name: claims}\nspec:\n  failurePolicy: Fail\n  matchConstraints: {resourceRules: [{apiGroups: [\"\"], \
    apiVersions: [v1], operations: [CREATE], resources: [persistentvolumeclaims]}]}\n  \
    validations: [{expression: \"request.namespace != 'copy'\", message: claims come from the platform team}]\n\
    ---\napiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicyBinding\n\
    metadata: {name: claims}\nspec: {policyName: claims, validationActions: [Deny]}\n";

/// The image that holder pods have.
fn image(cluster: &Playground, image: &str) {
    let args = "-n milkrun get deployment milkrun-operator -o jsonpath={.spec.template.spec.containers[0].args}";
    let args: Vec<String> = serde_json::from_str(&cluster.kubectl(args)).unwrap();
    let at = args.iter().position(|arg| arg.starts_with("--image=")).unwrap();
    let path = format!("/spec/template/spec/containers/0/args/{at}");
    let patch = serde_json::json!([{"op": "replace", "path": path, "value": format!("--image={image}")}]).to_string();
    let words = ["-n", "milkrun", "patch", "deployment", "milkrun-operator", "--type=json", "-p", &patch];
    let said = cluster.try_kubectl(&words);
    assert!(said.ok, "{}", said.out);
    cluster.kubectl("-n milkrun rollout status deployment milkrun-operator --timeout=120s");
}
