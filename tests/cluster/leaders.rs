//! Failover of coordinators that die, hang, or stand by: the next one goes on with their runs, and their own work does
//! not count any more.

use std::fs;
use std::process::Stdio;

use milkrun_tests::cluster::{Cluster, is_over};
use milkrun_tests::loopback::free_port;
use milkrun_tests::noise;
use milkrun_tests::process::wait_for;
use nix::sys::signal::Signal;

use crate::agent_failover::{SIZE, SLOWLY, shared_volume};

/// Restores the newest point without the coordinator, and checks its bytes.
fn restores(c: &Cluster) {
    c.repository().run(["verify", "--data"]).ok();
    let back = c.folder().join("data.back");
    let _ = fs::remove_file(&back);
    c.repository().run(["restore", "shop", "--volume", &format!("data={}", back.display())]).ok();
    assert!(fs::read(c.folder().join("data.img")).unwrap() == fs::read(&back).unwrap());
}

fn points(c: &Cluster) -> usize {
    c.repository().run(["points", "--json"]).ok().json()["points"].as_array().unwrap().len()
}

/// The objects below a folder of the repository.
fn objects(c: &Cluster, folder: &str) -> Vec<String> {
    let root = c.folder().join("repository");
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(&root).unwrap().display().to_string());
            }
        }
    }
    found
}

/// Orders a backup in the background, and waits until it has made some progress.
fn begin(c: &Cluster, far: u64) -> String {
    let mut command = c.command("root", &["view", "backup", "restore", "operate"], &["backup", "shop", "--json"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let run = wait_for("some progress", || {
        let run = c.runs().last()?.clone();
        let volume = run["volumes"].as_array()?.first()?.clone();
        (run["state"] == "running" && volume["done_bytes"].as_u64()? >= far)
            .then(|| run["run"].as_str().unwrap().to_owned())
    });
    // The run goes on when the command that ordered it is gone.
    child.kill().unwrap();
    child.wait().unwrap();
    run
}

fn ends(c: &Cluster, run: &str) -> serde_json::Value {
    c.limit_upload(None);
    wait_for("the run's end", || {
        let runs = c.run(&["runs", "--json"]);
        let document = (runs.code == Some(0)).then(|| runs.json())?;
        let found = document["runs"].as_array()?.iter().find(|r| r["run"] == run)?.clone();
        is_over(&found).then_some(found)
    })
}

#[test]
fn a_killed_coordinator_s_run_goes_on_under_the_next_one() {
    let c = shared_volume();
    let mut coordinator = c.coordinator();
    let _agents = [c.agent("node-a"), c.agent("node-b")];
    c.wait_for_agents(&["node-a", "node-b"]);
    let run = begin(&c, 32 << 20);
    coordinator.signal(Signal::SIGKILL);
    coordinator.wait();
    assert_eq!(points(&c), 0);
    let next = c.coordinator_with("next", &[]);
    next.wait_for_log("a run that another coordinator left goes on");
    let ended = ends(&c, &run);
    assert_eq!(ended["state"], "done", "{ended}\n{}", next.log());
    assert_eq!(points(&c), 1);
    assert!(next.log().contains("epoch=2"), "{}", next.log());
    // It resumes: regions that were checkpointed are not read again.
    assert!(next.log().contains("a volume goes on") && !next.log().contains("resume_at=0\n"), "{}", next.log());
    restores(&c);
    let left = [objects(&c, "journal"), objects(&c, "leases")].concat();
    assert!(left.iter().all(|o| o.starts_with("leases/leader/")), "{left:?}");
    // Again, with SIGTERM: the next coordinator need not wait.
    fs::write(c.folder().join("data.img"), noise(SIZE, 9)).unwrap();
    c.limit_upload(SLOWLY);
    let run = begin(&c, 32 << 20);
    let mut next = next;
    next.signal(Signal::SIGTERM);
    assert_eq!(next.wait(), Some(0), "{}", next.log());
    let began = std::time::Instant::now();
    let third = c.coordinator_with("third", &[]);
    third.wait_for_log("epoch=3");
    assert!(began.elapsed().as_secs() < 8, "it waited although the one before gave way");
    assert_eq!(ends(&c, &run)["state"], "done", "{}", third.log());
    assert_eq!(points(&c), 2);
    restores(&c);
}

#[test]
fn a_coordinator_that_hung_while_another_took_over_commits_nothing_wrong() {
    let c = shared_volume();
    let mut first = c.coordinator();
    let _agents = [c.agent("node-a"), c.agent("node-b")];
    c.wait_for_agents(&["node-a", "node-b"]);
    let run = begin(&c, 32 << 20);
    first.signal(Signal::SIGSTOP);
    // The first coordinator still has its port, so the second one serves on another.
    let other = format!("127.0.0.1:{}", free_port());
    let second = c.coordinator_listening("second", &other);
    second.wait_for_log("epoch=2");
    second.wait_for_log("a run that another coordinator left goes on");
    // The agents know both addresses.
    let mut agents = Vec::new();
    for node in ["node-a", "node-b"] {
        agents.push(c.agent_of(node, &format!("https://{other}")));
    }
    second.wait_for_log("a volume goes on");
    c.limit_upload(None);
    first.signal(Signal::SIGCONT);
    assert_eq!(first.wait(), Some(1));
    assert!(first.log().contains("leads no longer"), "{}", first.log());
    wait_for("the one point", || (points(&c) == 1).then_some(()));
    second.wait_for_log(&format!("committed run={run}"));
    assert_eq!(points(&c), 1);
    restores(&c);
}

/// Objects that somebody without the secret put into the repository have no effect, cost nothing, and are removed.
#[test]
fn unsigned_objects_decide_nothing() {
    let c = shared_volume();
    c.limit_upload(None);
    let mut first = c.coordinator();
    let _agents = [c.agent("node-a"), c.agent("node-b")];
    c.wait_for_agents(&["node-a", "node-b"]);
    let repository = c.folder().join("repository");
    let put = |key: &str, body: &[u8]| {
        let path = repository.join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, body).unwrap();
    };
    let (forged, run) = ("leases/leader/ffffffffffffffff-ffffffff", "00112233aabbccdd");
    put(forged, b"");
    put("leases/leader/0000000000000009-00000000", &noise(100, 1));
    put(&format!("leases/{run}"), b"");
    put(&format!("journal/{run}/ffffffffffffffff-ffffffff"), b"");
    // The keys that the leader's next beats would have.
    for number in 2..8 {
        put(&format!("leases/leader/0000000000000001-{number:08x}"), b"rubbish");
    }
    first.wait_for_log("is no beat of a leader");
    // It goes on leading for more than one beat, and no other coordinator leads.
    std::thread::sleep(std::time::Duration::from_secs(10));
    assert!(first.runs(), "{}", first.log());
    wait_for("the rubbish to be swept", || (!repository.join(forged).exists()).then_some(()));
    let _ = c.run(&["backup", "shop"]).ok();
    first.signal(Signal::SIGTERM);
    assert_eq!(first.wait(), Some(0), "{}", first.log());
    // The key of the next leader's epoch is taken, too.
    put("leases/leader/0000000000000002-00000000", b"");
    put(&format!("leases/{run}"), b"");
    let second = c.coordinator_with("second", &[]);
    second.wait_for_log("epoch=3");
    assert!(second.log().contains("is no lease"), "{}", second.log());
    assert!(!repository.join(format!("leases/{run}")).exists());
    c.wait_for_agents(&["node-a", "node-b"]);
    c.run(&["backup", "shop"]).ok();
    assert_eq!(points(&c), 2);
}
