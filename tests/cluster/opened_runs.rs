//! Runs that are opened before it is known what they read or write: filled while they go on, found again by the same request, also
//! under another coordinator.

use std::fs;
use std::path::Path;
use std::time::Duration;

use milkrun_identity::channel::dial;
use milkrun_identity::tls::Credentials;
use milkrun_proto::control::v1 as control;
use milkrun_proto::control::v1::control_client::ControlClient;
use milkrun_tests::cluster::Cluster;
use milkrun_tests::noise;
use nix::sys::signal::Signal;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::scripted_agent::runtime;

const SIZE: usize = 96 << 20;

/// A node, and an inventory without applications: whoever opens runs says what they read.
fn world() -> Cluster {
    let mut c = Cluster::in_directory();
    c.repository().run(["init"]).ok();
    c.inventory("nodes: { node-a: , node-b: }\n");
    fs::write(c.folder().join("data.img"), noise(SIZE, 1)).unwrap();
    fs::write(c.folder().join("wal.img"), noise(4 << 20, 2)).unwrap();
    c.agent_args.extend(["--limit-upload".into(), "24MiB".into(), "--memory".into(), "64MiB".into()]);
    c.certs(&["user", "operator", "--role", "operator"]);
    c
}

async fn connect(c: &Cluster, user: &str) -> ControlClient<Channel> {
    let credentials = Credentials::new(c.folder().join("certs").join(format!("user-{user}")));
    ControlClient::new(dial(&credentials, &c.url().parse().unwrap()).await.unwrap())
}

fn backup(request_id: &str) -> control::OpenRunRequest {
    let order = control::BackupOrder {
        application: "shop".into(),
        cluster: "west".into(),
        namespace: "prod".into(),
        namespace_uid: "8a3e0d5c-0b7f-4c53-9a42-1d2c3b4a5f60".into(),
        class: "daily".into(),
        level: 3,
        ..Default::default()
    };
    let order = Some(control::open_run_request::Order::Backup(order));
    control::OpenRunRequest { request_id: request_id.into(), order }
}

fn source(run: &control::Run, name: &str, path: &Path) -> control::AddSourceRequest {
    let source = control::Source {
        name: name.into(),
        moment_ms: 1_800_000_000_000,
        claim: r#"{"storageClass":"fast"}"#.into(),
        ..Default::default()
    };
    let at = |node: &str| control::Place { node: node.into(), path: path.display().to_string() };
    let at = vec![at("node-a"), at("node-b")];
    control::AddSourceRequest { run: run.run.clone(), source: Some(source), at, ..Default::default() }
}

async fn finish(client: &mut ControlClient<Channel>, run: &control::Run) -> Result<control::Run, Status> {
    use control::finish_run_request::Message;
    let lines =
        b"{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"a\",\"namespace\":\"prod\"}}\n";
    let skipped = vec![control::Skipped { name: "cache".into(), reason: "left out by the policy".into() }];
    let backup = run.kind() == control::run::Kind::Backup;
    let order = control::FinishOrder {
        run: run.run.clone(),
        manifest_objects: u32::from(backup),
        skipped: if backup { skipped } else { Vec::new() },
    };
    let manifests = backup.then(|| Message::Manifests(lines.to_vec().into()));
    let messages = std::iter::once(Message::Order(order)).chain(manifests);
    let messages: Vec<_> = messages.map(|m| control::FinishRunRequest { message: Some(m) }).collect();
    Ok(client.finish(tokio_stream::iter(messages)).await?.into_inner())
}

/// Opens a run until it is in the state that is waited for.
async fn until(
    client: &mut ControlClient<Channel>,
    request: &control::OpenRunRequest,
    wanted: impl Fn(&control::Run) -> bool,
) -> control::Run {
    let mut last = None;
    for _ in 0..600 {
        match client.open_run(request.clone()).await {
            Ok(run) if wanted(run.get_ref()) => return run.into_inner(),
            other => last = Some(other),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("waited in vain: {last:?}");
}

fn has_begun(run: &control::Run) -> bool {
    !run.point.is_empty()
}

fn is_done(run: &control::Run) -> bool {
    run.state() == control::run::State::Done
}

#[test]
fn a_run_is_filled_while_it_goes_on_and_found_again_under_the_next_coordinator() {
    let c = world();
    let mut first = c.coordinator();
    let _agents = [c.agent("node-a"), c.agent("node-b")];
    c.wait_for_agents(&["node-a", "node-b"]);
    let (data, wal) = (c.folder().join("data.img"), c.folder().join("wal.img"));
    runtime().block_on(async {
        let mut client = connect(&c, "operator").await;
        let request = backup("backup/prod/shop/1");
        let run = until(&mut client, &request, has_begun).await;
        assert_eq!((run.application.as_str(), run.cluster.as_str(), run.namespace.as_str()), ("shop", "west", "prod"));
        client.add_source(source(&run, "data", &data)).await.unwrap();
        // The same one again is no other; another of its name is refused.
        client.add_source(source(&run, "data", &data)).await.unwrap();
        let other = client.add_source(source(&run, "data", &wal)).await.unwrap_err();
        assert_eq!(other.code(), Code::FailedPrecondition, "{other}");
        let far = |r: &control::Run| {
            r.volumes.first().and_then(|v| v.progress.as_ref()).is_some_and(|p| p.done_bytes > 16 << 20)
        };
        assert_eq!(until(&mut client, &request, far).await.run, run.run);
        first.signal(Signal::SIGKILL);
        first.wait();
        let second = c.coordinator_with("second", &[]);
        second.wait_for_log("a run that another coordinator left goes on");
        let mut client = connect(&c, "operator").await;
        let again = until(&mut client, &request, has_begun).await;
        assert_eq!((&again.run, &again.point), (&run.run, &run.point));
        // The next one knows what was added under the first: the same source is no other here, too.
        client.add_source(source(&run, "data", &data)).await.unwrap();
        let other = client.add_source(source(&run, "data", &wal)).await.unwrap_err();
        assert_eq!(other.code(), Code::FailedPrecondition, "{other}");
        client.add_source(source(&run, "wal", &wal)).await.unwrap();
        finish(&mut client, &run).await.unwrap();
        let late = client.add_source(source(&run, "late", &wal)).await.unwrap_err();
        assert_eq!(late.code(), Code::FailedPrecondition, "{late}");
        let done = until(&mut client, &request, is_done).await;
        assert_eq!(done.point, run.point, "{}", second.log());
        // Whoever did not hear the answer asks once more.
        let again = finish(&mut client, &run).await.unwrap();
        assert_eq!((again.state(), again.point), (control::run::State::Done, run.point.clone()));
        client.add_source(source(&run, "data", &data)).await.unwrap();
        let late = client.add_source(source(&run, "late", &wal)).await.unwrap_err();
        assert_eq!(late.code(), Code::FailedPrecondition, "{late}");
        drop(second);
        // And under a third, which never heard of it.
        let third = c.coordinator_with("third", &[]);
        third.wait_for_log("epoch=3");
        let mut client = connect(&c, "operator").await;
        let unknown = client.add_source(source(&run, "data", &data)).await.unwrap_err();
        assert_eq!(unknown.code(), Code::Aborted, "{unknown}");
        let done = until(&mut client, &request, is_done).await;
        assert_eq!((done.run, done.point), (run.run.clone(), run.point.clone()));

        // A restore, opened before its targets are known.
        let order = control::RestoreRequest { selector: run.point.clone(), ..Default::default() };
        let order = Some(control::open_run_request::Order::Restore(order));
        let request = control::OpenRunRequest { request_id: "restore/1".into(), order };
        let restore = until(&mut client, &request, has_begun).await;
        let nothing = finish(&mut client, &restore).await.unwrap_err();
        assert!(nothing.message().contains("nothing to restore"), "{nothing}");
        for name in ["data", "wal"] {
            let path = c.folder().join(format!("{name}.back")).display().to_string();
            let target = control::Target { name: name.into(), path, node: "node-b".into(), ..Default::default() };
            let add = control::AddTargetRequest { run: restore.run.clone(), target: Some(target) };
            client.add_target(add.clone()).await.unwrap();
            client.add_target(add).await.unwrap();
        }
        finish(&mut client, &restore).await.unwrap();
        until(&mut client, &request, is_done).await;
        assert_eq!(finish(&mut client, &restore).await.unwrap().state(), control::run::State::Done);
    });
    for name in ["data", "wal"] {
        let read = |kind: &str| fs::read(c.folder().join(format!("{name}.{kind}"))).unwrap();
        assert!(read("img") == read("back"), "{name}");
    }
    let whose = ["--cluster-id", "west", "--namespace", "prod"];
    let shown = c.repository().run([&["show", "shop", "--json"][..], &whose].concat()).ok().json();
    assert_eq!(shown["namespace_uid"], "8a3e0d5c-0b7f-4c53-9a42-1d2c3b4a5f60", "{shown}");
    assert_eq!((&shown["class"], &shown["skipped"][0]["name"]), (&"daily".into(), &"cache".into()));
    assert_eq!(shown["volumes"][0]["claim"]["storageClass"], "fast");
    assert_eq!(shown["manifests"].as_array().unwrap().len(), 1);
    c.repository().run(["verify", "--data"]).ok();
}

#[test]
fn an_order_that_waits_outlives_its_coordinator() {
    let c = world();
    let mut first = c.coordinator();
    let _agent = c.agent("node-a");
    c.wait_for_agents(&["node-a"]);
    runtime().block_on(async {
        let mut client = connect(&c, "operator").await;
        let run = until(&mut client, &backup("1"), has_begun).await;
        let waits = until(&mut client, &backup("2"), |r| r.waiting).await;
        let early = client.add_source(source(&waits, "wal", &c.folder().join("wal.img"))).await.unwrap_err();
        assert_eq!(early.code(), Code::Unavailable, "{early}");
        first.signal(Signal::SIGKILL);
        first.wait();
        let second = c.coordinator_with("second", &[]);
        second.wait_for_log("goes on waiting");
        let mut client = connect(&c, "operator").await;
        until(&mut client, &backup("1"), has_begun).await;
        assert_eq!(until(&mut client, &backup("2"), |r| r.waiting).await.run, waits.run);
        for (request, run) in [("1", &run), ("2", &waits)] {
            until(&mut client, &backup(request), has_begun).await;
            client.add_source(source(run, "wal", &c.folder().join("wal.img"))).await.unwrap();
            finish(&mut client, run).await.unwrap();
            until(&mut client, &backup(request), is_done).await;
        }
    });
    let points = c.repository().run(["points", "--json"]).ok().json();
    assert_eq!(points["points"].as_array().unwrap().len(), 2, "{points}");
    let left: Vec<_> = fs::read_dir(c.folder().join("repository/leases/waiting")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn only_an_operator_names_what_is_read() {
    let c = world();
    let _coordinator = c.coordinator();
    c.certs(&["user", "ann", "--role", "view", "--role", "backup", "--role", "restore", "--role", "operate"]);
    runtime().block_on(async {
        let mut operator = connect(&c, "operator").await;
        let run = until(&mut operator, &backup("1"), has_begun).await;
        let mut ann = connect(&c, "ann").await;
        let denied = |s: Status| assert_eq!(s.code(), Code::PermissionDenied, "{s}");
        denied(ann.open_run(backup("2")).await.unwrap_err());
        denied(ann.add_source(source(&run, "data", Path::new("/etc/shadow"))).await.unwrap_err());
        let target = control::Target { name: "data".into(), node: "node-a".into(), ..Default::default() };
        let target = control::AddTargetRequest { run: run.run.clone(), target: Some(target) };
        denied(ann.add_target(target.clone()).await.unwrap_err());
        denied(finish(&mut ann, &run).await.unwrap_err());
        denied(operator.drain(control::DrainRequest { node: "node-a".into(), back: false }).await.unwrap_err());
        let kind = operator.add_target(target).await.unwrap_err();
        assert!(kind.message().contains("it has no targets"), "{kind}");
        let nowhere = control::AddSourceRequest { at: Vec::new(), ..source(&run, "data", Path::new("/x")) };
        assert_eq!(operator.add_source(nowhere).await.unwrap_err().code(), Code::InvalidArgument);
        let empty = finish(&mut operator, &control::Run { run: run.run.clone(), ..Default::default() }).await;
        assert!(empty.unwrap_err().message().contains("nothing to back up"));
        // One that nobody needs is stopped, and the same request finds how it ended.
        operator.cancel(control::CancelRequest { run: run.run.clone() }).await.unwrap();
        let failed = until(&mut operator, &backup("1"), |r| r.state() == control::run::State::Failed).await;
        assert!(failed.reason.contains("stopped"), "{failed:?}");
        assert_eq!(operator.open_run(backup("")).await.unwrap_err().code(), Code::InvalidArgument);
    });
}
