//! The claims of a running pod, backed up while it writes, and restored: into another namespace, and into another cluster
//! that knows the bucket and the password alone.

use milkrun_tests::seaweed::Seaweed;

use crate::installed::{APPLICATION, add_repository, back_up, start_application, with_milkrun, with_store};
use crate::playground::Playground;

/// What of the application must be the same after a restore: files that were written before the backup.
const SEAL: &str = "cd /ext4 && sha256sum seal-*; cd /xfs && sha256sum seal-*; head -c 67108864 /dev/raw | sha256sum";

/// Writes files, and the whole Block volume; returns their sums.
fn seal(cluster: &Playground, round: u32) -> String {
    let write = format!(
        "for at in /ext4 /xfs; do head -c 3000000 /dev/urandom > $at/seal-{round}; done; \
         head -c 4194304 /dev/urandom | dd of=/dev/raw bs=1M seek={} conv=notrunc,fsync 2>/dev/null; sync; {SEAL}",
        round * 8
    );
    cluster.exec("shop", "writer", &write)
}

fn restore(cluster: &Playground, name: &str, point: &str, to: &str, more: &str) {
    cluster.kubectl(&format!("create namespace {to}"));
    cluster.apply(&format!(
        "apiVersion: milkrun.dev/v1alpha1\nkind: Restore\nmetadata: {{name: {name}, namespace: milkrun}}\n\
         spec: {{repository: prod, point: \"{point}\", fromNamespace: shop, toNamespace: {to}{more}}}\n"
    ));
    let status = cluster.wait_for_run("restore", "milkrun", name);
    assert!(status["failure"].is_null(), "{status}");
}

/// Starts the application on restored claims. Returns the sums of what was written before the backup.
fn sums(cluster: &Playground, namespace: &str) -> String {
    // The same pod, which does not write to what is compared.
    cluster.wait_for("the account", &format!("-n {namespace} get serviceaccount default -o name"), |_| true);
    let pod = APPLICATION.split("---\n").last().unwrap().replace("NAMESPACE", namespace);
    cluster.apply(&pod);
    cluster.kubectl(&format!("-n {namespace} wait --for=condition=Ready pod/writer --timeout=120s"));
    cluster.exec(namespace, "writer", SEAL)
}

/// Whether the file systems of restored claims are whole: nobody has them mounted any more.
fn check_file_systems(cluster: &Playground, namespace: &str) {
    cluster.kubectl(&format!("-n {namespace} delete pod writer --now"));
    for (claim, check) in [("ext4", "e2fsck -fn"), ("xfs", "xfs_repair -n")] {
        let volume = cluster.kubectl(&format!("-n {namespace} get pvc {claim} -o jsonpath={{.spec.volumeName}}"));
        let handle = cluster.kubectl(&format!("get pv {volume} -o jsonpath={{.spec.csi.volumeHandle}}"));
        let attached = "get volumeattachments -o jsonpath={.items[*].spec.source.persistentVolumeName}";
        cluster.wait_for("the volume to be detached", attached, |said| !said.contains(&volume));
        let image = format!("/run/milkrun-disk/volumes/{}-{handle}.volume", cluster.name());
        let mut words: Vec<&str> = check.split(' ').collect();
        words.push(&image);
        cluster.on("node1", &words);
    }
}

#[test]
fn claims_of_a_running_pod_come_back_in_another_namespace_and_in_another_cluster() {
    let test = "claims_of_a_running_pod_come_back_in_another_namespace_and_in_another_cluster";
    let Some((cluster, store)) = with_store(test, 2) else { return };
    start_application(&cluster, "shop");
    add_repository(&cluster, &store, true);
    let before = cluster.inventory();
    let mut sealed = Vec::new();
    for round in 0..5 {
        let sums = seal(&cluster, round);
        back_up(&cluster, "shop", &format!("round-{round}"));
        let status = cluster.wait_for_run("backup", "shop", &format!("round-{round}"));
        assert!(status["failure"].is_null(), "{status}");
        sealed.push((status["point"].as_str().unwrap().to_owned(), sums));
    }
    cluster.wait_for_inventory(&before);
    // Points are objects of the application's namespace; one that is deleted comes back.
    let names = "-n shop get restorepoints -o name";
    cluster.wait_for("the points", names, |said| said.lines().count() == 5);
    cluster.kubectl("-n shop delete restorepoints --all");
    cluster.wait_for("the points again", names, |said| said.lines().count() == 5);

    for (number, (point, wanted)) in sealed.iter().enumerate() {
        let namespace = format!("copy-{number}");
        restore(&cluster, &namespace, point, &namespace, "");
        assert_eq!(sums(&cluster, &namespace), *wanted, "{point}");
        check_file_systems(&cluster, &namespace);
    }
    larger(&cluster, &sealed[4].0);
    refused(&cluster);
    let cluster_id = cluster.kubectl("get namespace kube-system -o jsonpath={.metadata.uid}");
    drop(cluster);
    elsewhere(test, &store, &cluster_id, &sealed[4]);
}

/// A claim can be larger than it was, and its file system grows.
fn larger(cluster: &Playground, point: &str) {
    let volumes = ", volumes: [{volume: ext4, claim: wide, size: 256Mi}]";
    restore(cluster, "larger", point, "larger", volumes);
    cluster.wait_for("the account", "-n larger get serviceaccount default -o name", |_| true);
    let volume = cluster.kubectl("-n larger get pvc wide -o jsonpath={.spec.volumeName}");
    let capacity = format!("get pv {volume} -o jsonpath={{.spec.capacity.storage}}");
    cluster.wait_for("the volume to grow", &capacity, |said| said == "256Mi");
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: reader, namespace: larger}\nspec:\n  \
         terminationGracePeriodSeconds: 0\n  containers:\n    - {name: main, image: \"milkrun.test/busybox:1\", \
         imagePullPolicy: Never, command: [sleep, \"3600\"], volumeMounts: [{name: v, mountPath: /v}]}\n  \
         volumes: [{name: v, persistentVolumeClaim: {claimName: wide}}]\n",
    );
    cluster.kubectl("-n larger wait --for=condition=Ready pod/reader --timeout=120s");
    let words = "-n larger exec reader -- df -m /v";
    let size = |said: &str| said.lines().last().and_then(|l| l.split_whitespace().nth(1)?.parse::<u32>().ok());
    cluster.wait_for("the file system to grow", words, |said| size(said).is_some_and(|mib| mib > 200));
}

/// What can't be restored is said, and nothing is made.
fn refused(cluster: &Playground) {
    let before = cluster.inventory();
    for (name, spec, why) in [
        ("exists", "{repository: prod, point: shop@latest}", "there is a claim ext4 already"),
        ("boundary", "{repository: prod, point: shop@latest, toNamespace: larger}", "a namespace is a boundary"),
        ("no-point", "{repository: prod, point: nothing@latest}", "nothing"),
        ("no-repository", "{repository: other, point: shop@latest}", "other"),
    ] {
        cluster.apply(&format!(
            "apiVersion: milkrun.dev/v1alpha1\nkind: Restore\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
        ));
        let status = cluster.wait_for_run("restore", "shop", name);
        assert!(status["failure"].as_str().unwrap_or_default().contains(why), "{name}: {status}");
    }
    cluster.wait_for_inventory(&before);
}

/// Another cluster knows the bucket and the password, and nothing else.
fn elsewhere(test: &str, store: &Seaweed, cluster_id: &str, (point, wanted): &(String, String)) {
    let Some(cluster) = with_milkrun(test, 2, store) else { return };
    add_repository(&cluster, store, false);
    let points = cluster.wait_for("the points", "-n milkrun get restorepoints", |said| said.contains(point));
    assert!(points.contains("shop"), "{points}");
    restore(&cluster, "disaster", point, "shop", &format!(", fromCluster: \"{cluster_id}\""));
    assert_eq!(sums(&cluster, "shop"), *wanted);
}
