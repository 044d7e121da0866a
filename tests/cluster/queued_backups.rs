//! Two backups of one application at once.

use std::process::Stdio;

use milkrun_tests::process::wait_for;

use crate::agent_failover;

#[test]
fn a_second_backup_of_an_application_waits_for_the_first_and_stores_nothing_twice() {
    let c = agent_failover::shared_volume();
    let _coordinator = c.coordinator();
    let _agents = [c.agent("node-a"), c.agent("node-b")];
    c.wait_for_agents(&["node-a", "node-b"]);
    let (first, _) = agent_failover::begin(&c, 16 << 20);
    let another = |waiting: usize| {
        let mut command = c.command("root", &[], &["backup", "shop", "--json"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let run = wait_for("a backup that waits", || {
            let runs = c.runs();
            let those: Vec<_> = runs.iter().filter(|r| r["state"] == "waiting").collect();
            (those.len() == waiting).then(|| those.last().map(|r| r["run"].as_str().unwrap().to_owned()))?
        });
        (child, run)
    };
    let (second, _) = another(1);
    let (third, third_run) = another(2);
    // A backup that waits can be stopped.
    c.run(&["cancel", &third_run]).ok();
    let third = milkrun_tests::binary::ran(third.wait_with_output());
    assert_eq!(third.code, Some(1), "{third:?}");
    assert!(third.err.contains("stopped"), "{third:?}");

    c.limit_upload(None);
    let first = milkrun_tests::binary::ran(first.wait_with_output()).ok().json();
    let second = milkrun_tests::binary::ran(second.wait_with_output()).ok().json();
    let shown = c.repository().run(["show", second["point"].as_str().unwrap(), "--json"]).ok().json();
    assert_eq!(shown["parent"], first["point"]);
    assert_eq!(second["volumes"][0]["new_bytes"], 0, "{second}");
    let states: Vec<_> = c.runs().iter().map(|r| r["state"].as_str().unwrap().to_owned()).collect();
    assert_eq!(states, ["done", "done", "failed"]);
}
