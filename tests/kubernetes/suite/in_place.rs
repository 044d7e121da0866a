//! A restore in place: the application keeps its claim, and the volume of before is one command away.

use std::process::Command;

use crate::faults::limits::POLICY;
use crate::faults::{small, start_small, wait_for_failure, wait_for_message, wait_for_success};
use crate::installed::{add_repository, back_up, with_store};
use crate::playground::Playground;

/// The pod that uses the claim, made again.
fn start_user(cluster: &Playground) {
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: user, namespace: shop}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
         containers:\n    - {name: main, image: \"milkrun.test/busybox:1\", imagePullPolicy: Never, \
         command: [sleep, \"3600\"], volumeMounts: [{name: v, mountPath: /v}]}\n  \
         volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]\n",
    );
    cluster.kubectl("-n shop wait --for=condition=Ready pod/user --timeout=120s");
}

fn write(cluster: &Playground, text: &str) {
    cluster.exec("shop", "user", &format!("echo {text} > /v/value; sync"));
}

fn value(cluster: &Playground) -> String {
    cluster.exec("shop", "user", "cat /v/value").trim().to_owned()
}

/// A claim that could not be made again is not removed: that is asked before anything is.
fn refused(cluster: &Playground) {
    let policy = POLICY.replace("'copy'", "'shop'");
    cluster.apply(&policy);
    cluster.wait_for_refusal("the policy", &small("shop", "another", "other"));
    cluster.kubectl("-n shop delete pod user --now");
    cluster.apply(
        "apiVersion: milkrun.dev/v1alpha1\nkind: Restore\nmetadata: {name: refused, namespace: shop}\n\
         spec: {repository: prod, point: \"shop@latest\", inPlace: true}\n",
    );
    wait_for_failure(cluster, "restore", "shop", "refused", "claims come from the platform team");
    cluster.kubectl("delete validatingadmissionpolicybinding,validatingadmissionpolicy claims");
    start_user(cluster);
    assert_eq!(value(cluster), "new");
}

#[test]
fn a_claim_is_replaced_when_nobody_uses_it_and_the_way_back_works() {
    let test = "a_claim_is_replaced_when_nobody_uses_it_and_the_way_back_works";
    let Some((cluster, store)) = with_store(test, 2) else { return };
    add_repository(&cluster, &store, true);
    start_small(&cluster, "shop", "data");
    cluster.kubectl("-n shop label pvc data kept=yes");
    write(&cluster, "old");
    back_up(&cluster, "shop", "old");
    wait_for_success(&cluster, "backup", "shop", "old");
    write(&cluster, "new");
    let before = cluster.inventory();
    refused(&cluster);

    cluster.apply(
        "apiVersion: milkrun.dev/v1alpha1\nkind: Restore\nmetadata: {name: back, namespace: shop}\n\
         spec: {repository: prod, point: \"shop@latest\", inPlace: true}\n",
    );
    wait_for_message(&cluster, "restore", "shop", "back", "pod user to let go of the claim data");
    assert_eq!(value(&cluster), "new", "the application runs as before");
    cluster.kubectl("-n shop delete pod user --now");
    wait_for_success(&cluster, "restore", "shop", "back");
    start_user(&cluster);
    assert_eq!(value(&cluster), "old");
    assert_eq!(cluster.kubectl("-n shop get pvc data -o jsonpath={.metadata.labels.kept}"), "yes");

    // The way back, as a person would run it.
    let undo = cluster.kubectl("-n shop get restore back -o jsonpath={.status.volumes.data.undo}");
    cluster.kubectl("-n shop delete pod user --now");
    let kubectl = cluster.program("kubectl");
    let path = format!("{}:/usr/bin:/bin", kubectl.parent().unwrap().display());
    let mut shell = Command::new("sh");
    let done = shell.args(["-c", &undo]).env("PATH", path).env("KUBECONFIG", cluster.kubeconfig()).output().unwrap();
    assert!(done.status.success(), "{undo}: {}", String::from_utf8_lossy(&done.stderr));
    start_user(&cluster);
    assert_eq!(value(&cluster), "new");
    // The restored volume is gone; all that is left is what was there.
    let attachments = |all: &[String]| -> Vec<String> {
        all.iter().filter(|entry| !entry.starts_with("volumeattachment")).cloned().collect()
    };
    let wanted = attachments(&before);
    cluster.wait_for_part_of_inventory(&wanted, attachments);
}
