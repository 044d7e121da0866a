//! A cluster that is gone has left nothing on the machine.

use std::fs;
use std::process::Command;

use crate::playground::Playground;

/// What a cluster could leave: processes, mounts, loop devices, links, names of networks, cgroups.
fn traces(cluster: &str) -> Vec<String> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&words).contains(&format!("/run/{cluster}")) {
            found.push(format!("process {}", process.file_name().display()));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(mounts.lines().filter(|line| line.contains(cluster)).map(|line| format!("mount {line}")));
    for (program, args) in [("losetup", vec!["--list"]), ("ip", vec!["link"]), ("ip", vec!["netns"])] {
        let out = Command::new(program).args(args).output().unwrap().stdout;
        let out = String::from_utf8_lossy(&out).into_owned();
        found.extend(out.lines().filter(|line| line.contains(cluster)).map(str::to_owned));
    }
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let cgroup = hierarchy.path().join(format!("milkrun-{cluster}"));
        if cgroup.exists() {
            found.push(cgroup.display().to_string());
        }
    }
    found
}

#[test]
fn a_cluster_that_is_gone_has_left_nothing() {
    let Some(cluster) = Playground::up("a_cluster_that_is_gone_has_left_nothing", 2, &[]) else { return };
    let name = cluster.name().to_owned();
    crate::installed::start_application(&cluster, "shop");
    assert!(traces(&name).len() > 3, "it is there: {:?}", traces(&name));
    drop(cluster);
    assert_eq!(traces(&name), Vec::<String>::new());
}
