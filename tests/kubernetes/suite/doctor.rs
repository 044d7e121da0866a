//! `milkrun doctor --try-class`: what it finds is what the driver does.

use std::process::{Command, Output};

use crate::faults::set_switches;
use crate::installed::{add_repository, with_store};
use crate::playground::Playground;

fn doctor(cluster: &Playground, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(milkrun_tests::binary::binary());
    command.args(["doctor", "--try-class"]).args(args).env("KUBECONFIG", cluster.kubeconfig());
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat())
}

#[test]
fn the_doctor_says_whether_a_class_works_and_what_would_help() {
    let Some((cluster, store)) = with_store("the_doctor_says_whether_a_class_works_and_what_would_help", 1) else {
        return;
    };
    let (code, said) = doctor(&cluster, &["ext4"]);
    assert!(code == Some(1) && said.contains("there is no Repository that is ready"), "{said}");
    add_repository(&cluster, &store, true);
    let before = cluster.inventory();

    let (code, said) = doctor(&cluster, &["xfs", "--size", "384Mi"]);
    assert!(code == Some(0) && said.contains("The class xfs works."), "{said}");
    for step in ["make and write", "back up", "restore", "mount and compare", "clean up"] {
        assert!(said.contains(&format!("ok      {step}")), "{said}");
    }
    cluster.wait_for_inventory(&before);

    set_switches(&cluster, r#"{"snapshots_are_read_only": true}"#);
    let (code, said) = doctor(&cluster, &["ext4", "--size", "64Mi", "--step-timeout", "30s"]);
    assert!(code == Some(0) && said.contains("works with a rule: readOnlyMany: [ext4]"), "{said}");
    assert!(said.contains("FAILED  back up ") && said.contains("can only be read here"), "{said}");
    cluster.wait_for_inventory(&before);

    set_switches(&cluster, r#"{"no_block": true}"#);
    let (code, said) = doctor(&cluster, &["ext4", "--size", "64Mi", "--step-timeout", "20s", "--json"]);
    let document: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(code == Some(1) && document["works"] == false, "{said}");
    assert!(document["advice"].as_str().unwrap().contains("no volumes of mode Block"), "{said}");
    cluster.wait_for_inventory(&before);

    let (code, said) = doctor(&cluster, &["nothing"]);
    assert!(
        code == Some(1) && said.contains("there is no storage class nothing; there are: ext4, immediate, xfs"),
        "{said}"
    );
}
