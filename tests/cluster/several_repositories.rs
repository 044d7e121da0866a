//! Several repositories in one coordinator: one process leads all of them, nodes are shared, and a bad one stops none of the others.

use std::fs;
use std::process::Stdio;

use milkrun_tests::binary::Milkrun;
use milkrun_tests::cluster::{Cluster, is_over};
use milkrun_tests::noise;
use milkrun_tests::process::wait_for;
use nix::sys::signal::Signal;

const SIZE: usize = 96 << 20;

/// Two repositories, two applications, and one node that takes one volume at a time.
struct World {
    c: Cluster,
    dr: Milkrun,
    _dr_folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let mut c = Cluster::in_directory();
        c.repository().run(["init"]).ok();
        let dr_folder = tempfile::tempdir().unwrap();
        let dr = Milkrun::in_folder(dr_folder.path());
        dr.run(["init"]).ok();
        let at = |name: &str| c.folder().join(name).display().to_string();
        c.inventory(&format!(
            "repositories: {{ dr: {{ bytes_in_flight: 64MiB }} }}
nodes: {{ node-a: {{ volumes: 1 }} }}
applications:
  shop: {{ volumes: {{ data: {{ at: {{ node-a: {} }} }} }} }}
  till: {{ volumes: {{ data: {{ at: {{ node-a: {} }} }} }} }}
",
            at("shop.img"),
            at("till.img")
        ));
        fs::write(at("shop.img"), noise(SIZE, 1)).unwrap();
        fs::write(at("till.img"), noise(SIZE, 2)).unwrap();
        let directory = dr_folder.path().join("repository").display().to_string();
        c.agent_args.extend(["--repository-directory".into(), directory]);
        c.agent_args.extend(["--limit-upload".into(), "8MiB".into(), "--memory".into(), "64MiB".into()]);
        Self { c, dr, _dr_folder: dr_folder }
    }

    /// The arguments of a coordinator of both, and of these besides.
    fn args(&self, more: &[String]) -> Vec<String> {
        let named = [format!("prod={}", self.c.repository().url()), format!("dr={}", self.dr.url())];
        named.iter().chain(more).flat_map(|r| ["-r".to_owned(), r.clone()]).collect()
    }

    /// Orders a backup in the background.
    fn order(&self, app: &str, repository: &str) {
        let args = ["backup", app, "--repository-name", repository, "--json"];
        let mut command = self.c.command("root", &["view", "backup", "restore", "operate"], &args);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for("the order", || {
            let there = self.c.runs().iter().any(|r| r["application"] == app && r["repository"] == repository);
            there.then_some(())
        });
        // A run goes on when the command that ordered it is gone.
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits until all runs are over, and counts the volumes that were moved at once at most.
    fn all_end(&self, runs: usize) -> usize {
        let mut most = 0;
        wait_for("the end of all runs", || {
            let document = self.c.run(&["runs", "--json"]);
            let document = (document.code == Some(0)).then(|| document.json())?;
            let all = document["runs"].as_array()?.clone();
            let moving = all.iter().filter(|r| !is_over(r)).flat_map(|r| r["volumes"].as_array().unwrap());
            most = most.max(moving.filter(|v| v["node"] != "" && v["done"] == false).count());
            let over = all.iter().filter(|r| is_over(r)).count();
            assert!(all.iter().all(|r| r["state"] != "failed"), "{all:?}");
            (over >= runs).then_some(())
        });
        most
    }

    fn restores(&self, repository: &Milkrun, app: &str) {
        let back = self.c.folder().join("back.img");
        let _ = fs::remove_file(&back);
        repository.run(["verify", "--data"]).ok();
        repository.run(["restore", app, "--volume", &format!("data={}", back.display())]).ok();
        assert!(fs::read(self.c.folder().join(format!("{app}.img"))).unwrap() == fs::read(back).unwrap());
    }
}

fn texts(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn nodes_are_shared_and_a_bad_repository_stops_none_of_the_others() {
    let w = World::new();
    let bad = tempfile::tempdir().unwrap();
    let args = w.args(&[format!("bad=file://{}", bad.path().join("repository").display())]);
    let coordinator = w.c.coordinator_with("coordinator", &texts(&args));
    coordinator.wait_for_log("serving");
    let _agent = w.c.agent("node-a");
    w.c.wait_for_agents(&["node-a"]);

    w.c.run(&["backup", "shop"]).fails(2, "which repository? this coordinator has bad, dr, prod");
    w.c.run(&["backup", "shop", "--repository-name", "else"]).fails(2, "no repository \"else\"");
    w.c.run(&["backup", "shop", "--repository-name", "bad"]).fails(4, "there is no repository");
    let states = w.c.run(&["repositories", "--json"]).ok().json()["repositories"].clone();
    let ready: Vec<bool> = states.as_array().unwrap().iter().map(|s| s["ready"] == true).collect();
    assert_eq!(ready, [false, true, true], "{states}");

    w.order("shop", "prod");
    w.order("till", "dr");
    assert_eq!(w.all_end(2), 1, "the node takes one volume at a time");
    w.restores(w.c.repository(), "shop");
    w.restores(&w.dr, "till");
    w.c.repository().run(["restore", "till", "--manifests", "nowhere"]).fails(1, "no such restore point");

    // The third one is made, and joins by itself.
    Milkrun::in_folder(bad.path()).run(["init"]).ok();
    wait_for("the third repository", || {
        let states = w.c.run(&["repositories", "--json"]).ok().json()["repositories"].clone();
        (states[0]["ready"] == true).then_some(())
    });
}

#[test]
fn the_next_leader_goes_on_with_the_runs_of_all() {
    let w = World::new();
    let args = w.args(&[]);
    let mut first = w.c.coordinator_with("coordinator", &texts(&args));
    first.wait_for_log("serving");
    let _agent = w.c.agent("node-a");
    w.c.wait_for_agents(&["node-a"]);
    w.order("shop", "prod");
    w.order("till", "dr");
    wait_for("some progress", || {
        let far = |r: &serde_json::Value| r["volumes"][0]["done_bytes"].as_u64().is_some_and(|n| n > 8 << 20);
        w.c.runs().iter().any(|r| far(r) && !is_over(r)).then_some(())
    });
    first.signal(Signal::SIGKILL);
    first.wait();
    let next = w.c.coordinator_with("next", &texts(&args));
    next.wait_for_log("another coordinator leads");
    next.wait_for_log("a run that another coordinator left goes on");
    assert_eq!(next.log().matches("serving").count(), 2, "{}", next.log());
    // One of the two may have ended in the moment before the kill: the next leader does not know it then.
    for (repository, app) in [(w.c.repository(), "shop"), (&w.dr, "till")] {
        wait_for("its point", || {
            let listed = repository.run(["points", app, "--json"]).ok().json();
            (listed["points"].as_array()?.len() == 1).then_some(())
        });
    }
    let runs = w.c.runs();
    assert!(runs.iter().all(|r| r["state"] != "failed"), "{runs:?}");
    w.restores(w.c.repository(), "shop");
    w.restores(&w.dr, "till");
}
