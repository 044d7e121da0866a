//! A compromised agent: everything that its node has, in the wrong hands. The tests play it over the wire, with its
//! genuine certificate.

use std::fs;

use milkrun_proto::agent::v1 as wire;
use milkrun_proto::agent::v1::download_client::DownloadClient;
use milkrun_proto::agent::v1::upload_client::UploadClient;
use milkrun_proto::control::v1 as control;
use milkrun_proto::control::v1::control_client::ControlClient;
use milkrun_tests::cluster::Cluster;
use milkrun_tests::process::{Process, wait_for};
use nix::sys::signal::Signal;
use tonic::Code;

use crate::many_nodes::two_nodes;
use crate::scripted_agent::{ROLES, ScriptedAgent, chunks_of, code, ended, nonsense, order, runtime, seal_rubbish};

/// Makes a point, and stops node-a's agent: the next agent of its name is given its volume.
fn a_point_and_then_node_a_is_gone(c: &Cluster) -> [Process; 2] {
    c.repository().run(["init"]).ok();
    two_nodes(c);
    let coordinator = c.coordinator();
    let honest = c.agent("node-a");
    let other = c.agent("node-b");
    c.wait_for_agents(&["node-a", "node-b"]);
    c.run(&["backup", "shop"]).ok();
    drop(honest);
    coordinator.wait_for_log("an agent is gone node=\"node-a\"");
    [coordinator, other]
}

#[test]
fn a_compromised_agent_reaches_only_its_own_volume() {
    let c = Cluster::in_directory();
    // An earlier point, so that there is something to read.
    let [coordinator, b] = a_point_and_then_node_a_is_gone(&c);
    // The point must be older than the run; some stores have times of whole seconds.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    // node-b is gone, too: its volume waits, so that the run stays open during the attempts.
    drop(b);
    coordinator.wait_for_log("an agent is gone node=\"node-b\"");
    let order = order(&c, &[]);
    let run_id = wait_for("the run", || {
        let run = c.runs().into_iter().find(|r| r["state"] == "running")?;
        Some(run["run"].as_str().unwrap().to_owned())
    });
    let runtime = runtime();
    runtime.block_on(tries(&c));
    // The run may have failed because of the agent's last message.
    c.run(&["cancel", &run_id]);
    let ended = milkrun_tests::binary::ran(order.wait_with_output());
    assert_eq!(ended.code, Some(1));
    assert!(!ended.err.lines().any(|l| l.starts_with("rp-2030")), "{}", ended.err);
    let points = c.repository().run(["points", "--json"]).ok().json();
    assert_eq!(points["points"].as_array().unwrap().len(), 1, "nothing of it is listed");
    c.repository().run(["verify", "--data"]).ok();
}

async fn tries(c: &Cluster) {
    // Another node's name.
    let other = ScriptedAgent::register(c, "agent-node-a", "node-b", 2).await;
    assert_eq!(code(other), Code::PermissionDenied);
    let mut agent = ScriptedAgent::register(c, "agent-node-a", "node-a", 2).await.unwrap();
    let backup = agent.assignment().await;
    let own = backup.assignment.clone().unwrap();
    let mut upload = UploadClient::new(agent.channel.clone());
    let mut download = DownloadClient::new(agent.channel.clone());
    let with = |change: fn(&mut wire::Assignment)| {
        let mut a = own.clone();
        change(&mut a);
        Some(a)
    };
    let foreign = [
        with(|a| a.volume = "wal".into()),
        with(|a| a.volume = "none".into()),
        with(|a| a.run = vec![9; 8].into()),
        with(|a| a.attempt += 1),
        with(|a| a.epoch += 1),
        None,
    ];
    for assignment in foreign {
        // Refused are the parent's extents, lookups, grants to store, and checkpoints.
        let refused = Code::FailedPrecondition;
        assert_eq!(
            code(
                upload
                    .parent(wire::ParentRequest { assignment: assignment.clone(), pages: true, outline: false })
                    .await
            ),
            refused
        );
        let sample = wire::SampleRequest { assignment: assignment.clone(), leaves: 1 };
        assert_eq!(code(upload.sample(sample).await), refused);
        let ids = vec![1; 32].into();
        let lookup = wire::LookupRequest { assignment: assignment.clone(), ids, share: true, wait: false };
        assert_eq!(code(upload.lookup(lookup).await), refused);
        let grant =
            wire::GrantRequest { assignment: assignment.clone(), pack: vec![1; 16].into(), length: 1000, crc32: 0 };
        assert_eq!(code(upload.grant(grant).await), refused);
        let checkpoint = wire::CheckpointRequest { assignment: assignment.clone(), regions: Vec::new() };
        assert_eq!(code(upload.checkpoint(checkpoint).await), refused);
        let finish = wire::FinishRequest { assignment: assignment.clone(), ..Default::default() };
        assert_eq!(code(upload.finish(finish).await), refused);
        assert_eq!(code(download.plan(wire::PlanRequest { assignment, ..Default::default() }).await), refused);
    }
    // The assignment of a backup gives no grant to read.
    let plan = wire::PlanRequest { assignment: Some(own.clone()), ..Default::default() };
    assert_eq!(code(download.plan(plan).await), Code::FailedPrecondition);
    // The keys that it has open no chunk: a key for ids, and a public key.
    assert_eq!(backup.domain_key.len(), 32);
    // Grants for more than its volume can need, at once or in parts (the volume has 24 MiB).
    let grant = |length: u64, n: u8| wire::GrantRequest {
        assignment: Some(own.clone()),
        pack: vec![n; 16].into(),
        length,
        crc32: 0,
    };
    // A pack that was stored before, by anybody: its statements about it would contradict the true ones.
    let packs = c.folder().join("repository/packs");
    let one = fs::read_dir(fs::read_dir(&packs).unwrap().next().unwrap().unwrap().path()).unwrap().next().unwrap();
    let name = one.unwrap().file_name().into_string().unwrap();
    let byte = |at: usize| u8::from_str_radix(&name[at..at + 2], 16).unwrap();
    let foreign: Vec<u8> = (0..name.len()).step_by(2).map(byte).collect();
    let theirs = wire::GrantRequest { pack: foreign.into(), ..grant(1 << 20, 0) };
    let refused = upload.grant(theirs).await;
    assert!(refused.as_ref().is_err_and(|e| e.message().contains("not this run's to store")), "{refused:?}");
    assert_eq!(code(upload.grant(grant(1 << 40, 1)).await), Code::ResourceExhausted);
    let mut granted = 0u64;
    let mut n = 2;
    while upload.grant(grant(16 << 20, n)).await.is_ok() {
        granted += 16 << 20;
        n += 1;
        assert!(granted < 1 << 30, "no quota");
    }
    assert!(granted >= 24 << 20, "a quota that an honest agent could not keep: {granted}");
    // A pack that it never stored.
    let seal = wire::SealRequest {
        assignment: Some(own.clone()),
        pack: vec![2; 16].into(),
        length: 16 << 20,
        digest: vec![0; 32].into(),
        sealed_key: vec![0; 80].into(),
        ..Default::default()
    };
    assert_ne!(code(upload.seal(seal.clone()).await), Code::Ok);
    // A pack for which it has no grant: it can't change what is known about a pack.
    let ungranted = wire::SealRequest { pack: vec![99; 16].into(), ..seal };
    assert_eq!(code(upload.seal(ungranted).await), Code::FailedPrecondition);
    // Chunks that it does not know from the coordinator; regions out of order; an end before the volume's end.
    let extent = wire::Extent {
        length: 4096,
        chunk: vec![7; 32].into(),
        chunk_offset: 0,
        chunk_length: 4096,
        ..Default::default()
    };
    let region = |offset, extents| wire::Region { offset, length: 4096, unchanged: false, extents };
    // A region that it reports as unchanged, although the coordinator never sent that part of the parent.
    let unchanged = wire::Region { offset: 0, length: 16 << 20, unchanged: true, extents: Vec::new() };
    let endless = wire::Region { length: 1 << 62, ..region(0, Vec::new()) };
    // A `kept` extent of such a part.
    let kept = region(0, vec![wire::Extent { length: 4096, kept: true, ..Default::default() }]);
    let unknown = region(0, vec![extent]);
    for region in [unknown, region(4096, Vec::new()), unchanged, kept, endless] {
        let regions = vec![region];
        let checkpoint = wire::CheckpointRequest { assignment: Some(own.clone()), regions };
        assert_ne!(code(upload.checkpoint(checkpoint).await), Code::Ok);
    }
    let finish = wire::FinishRequest { assignment: Some(own.clone()), length: 24 << 20, ..Default::default() };
    assert_ne!(code(upload.finish(finish).await), Code::Ok);
    // Its certificate gives no access to the control service.
    let mut control = ControlClient::new(agent.channel.clone());
    assert_eq!(code(control.list_runs(control::ListRunsRequest {}).await), Code::PermissionDenied);
    assert_eq!(code(control.cancel(control::CancelRequest { run: own.run.clone() }).await), Code::PermissionDenied);
    let drain = control::DrainRequest { node: "node-b".into(), back: false };
    assert_eq!(code(control.drain(drain).await), Code::PermissionDenied);
    let restore = control::RestoreRequest { selector: "shop".into(), manifests: true, ..Default::default() };
    assert_eq!(code(control.restore(restore).await), Code::PermissionDenied);
    // Its texts for people can't make more than one line.
    let reason = "broken\nrp-20300101t000000z-0000000000000000  shop  ok".to_owned();
    let failed = wire::Failed { assignment: Some(own), reason, kind: wire::failed::Kind::Source.into() };
    agent.up.send(wire::FromAgent { message: Some(wire::from_agent::Message::Failed(failed)) }).await.unwrap();
    drop(agent.up);
}

/// It can report false page digests: a later backup would treat changed pages as unchanged. A verification finds that.
#[test]
fn page_digests_of_a_compromised_agent_are_compared_with_the_bytes() {
    let c = Cluster::in_directory();
    let _processes = a_point_and_then_node_a_is_gone(&c);
    let checked = c.repository().run(["verify", "--data", "--json"]).ok().json();
    assert!(checked["checked"]["extents_compared"].as_u64().unwrap() > 50, "{checked}");
    let order = order(&c, &[]);
    let runtime = runtime();
    let lied = runtime.block_on(async {
        let mut agent = ScriptedAgent::register(&c, "agent-node-a", "node-a", 2).await.unwrap();
        let own = agent.assignment().await.assignment;
        let mut upload = UploadClient::new(agent.channel.clone());
        let request = wire::ParentRequest { assignment: own.clone(), pages: true, outline: false };
        let mut parent = upload.parent(request).await.unwrap().into_inner();
        let (mut len, mut lied) = (0, 0);
        while let Some(mut range) = parent.message().await.unwrap() {
            for extent in range.extents.iter_mut().filter(|e| !e.pages.is_empty()) {
                let mut pages = extent.pages.to_vec();
                pages[3] ^= 1;
                extent.pages = pages.into();
                lied += 1;
            }
            len = range.offset + range.length;
            let region =
                wire::Region { offset: range.offset, length: range.length, unchanged: false, extents: range.extents };
            let checkpoint = wire::CheckpointRequest { assignment: own.clone(), regions: vec![region] };
            upload.checkpoint(checkpoint).await.unwrap();
        }
        let finish = wire::FinishRequest { assignment: own, length: len, ..Default::default() };
        upload.finish(finish).await.unwrap();
        // The agent stays connected until the end.
        ended(order).await.ok();
        lied
    });
    assert!(lied > 50, "{lied}");
    // Nothing is missing or damaged, and everything can be restored.
    c.repository().run(["verify"]).ok();
    let found = c.repository().run(["verify", "--data", "--json"]);
    assert_eq!(found.code, Some(3), "{found:?}");
    let findings = found.json()["findings"].clone();
    let says = |f: &serde_json::Value| f["reason"].as_str().unwrap().contains("maps keep other digests of its pages");
    assert!(findings.as_array().unwrap().iter().all(says), "{findings}");
    assert!(findings.as_array().unwrap().iter().all(|f| f["points"].as_array().unwrap().len() == 2), "{findings}");
    // Following the advice in the message helps.
    let _honest = c.agent("node-a");
    c.wait_for_agents(&["node-a"]);
    let mended = c.run(&["backup", "shop", "--parent", "none", "--json"]).ok().json();
    c.repository().run(["verify", "--data", mended["point"].as_str().unwrap()]).ok();
}

/// Its `kept` extents are resolved only from the parts of the parent that the coordinator sent it. A call that fails
/// half-way leaves the state that it had reached.
#[test]
fn a_compromised_agent_can_keep_only_what_it_was_sent() {
    let c = Cluster::in_directory();
    let _processes = a_point_and_then_node_a_is_gone(&c);
    let order = order(&c, &[]);
    let runtime = runtime();
    runtime.block_on(async {
        let mut agent = ScriptedAgent::register(&c, "agent-node-a", "node-a", 2).await.unwrap();
        let backup = agent.assignment().await;
        assert!(backup.may_keep, "the coordinator knows what is kept");
        let own = backup.assignment;
        let mut upload = UploadClient::new(agent.channel.clone());
        let request = wire::ParentRequest { assignment: own.clone(), pages: true, outline: false };
        let mut parent = upload.parent(request).await.unwrap().into_inner();
        let mut told = Vec::new();
        while let Some(range) = parent.message().await.unwrap() {
            told.push(range);
        }
        let [first, second] = &told[..] else { panic!("{} ranges", told.len()) };
        let kept = |length| wire::Extent { length, kept: true, ..Default::default() };
        let unknown =
            |length| wire::Extent { chunk: vec![9; 32].into(), chunk_length: length, length, ..Default::default() };
        let region = |of: &wire::ParentRange, extents| wire::Region {
            offset: of.offset,
            length: of.length,
            unchanged: false,
            extents,
        };
        let calls = |regions| wire::CheckpointRequest { assignment: own.clone(), regions };
        let whole = u32::try_from(first.length).unwrap();
        // None of these is accepted. The parent's part of a region serves for one call.
        let not_there = "a part that is kept of a parent that does not have it";
        for (extents, why) in [
            (vec![kept(u32::MAX)], not_there),
            (vec![kept(0), kept(whole)], "an empty extent"),
            (vec![kept(whole)], not_there),
        ] {
            assert_eq!(nonsense(upload.checkpoint(calls(vec![region(first, extents)])).await), why);
        }
        // The first of these regions is accepted, and then the call fails.
        let rest = u32::try_from(second.length).unwrap();
        let half = vec![region(first, first.extents.clone()), region(second, vec![kept(rest - 4096), unknown(4096)])];
        assert_eq!(nonsense(upload.checkpoint(calls(half)).await), "a chunk that nobody knows");
        let again = upload.checkpoint(calls(vec![region(first, first.extents.clone())])).await;
        assert_eq!(nonsense(again), "a region out of order", "what was taken is not taken again");
        upload.checkpoint(calls(vec![region(second, second.extents.clone())])).await.unwrap();
        let length = second.offset + second.length;
        let finish = wire::FinishRequest { assignment: own.clone(), length, ..Default::default() };
        upload.finish(finish).await.unwrap();
        // The agent stays connected until the end.
        ended(order).await.ok();
    });
    c.repository().run(["verify", "--data"]).ok();
    let back = c.folder().join("data.back");
    c.repository().run(["restore", "shop", "--volume", &format!("data={}", back.display())]).ok();
    assert!(fs::read(back).unwrap() == fs::read(c.folder().join("data.img")).unwrap());
}

/// The next leader continues to count the grants of the one before.
#[test]
fn a_quota_outlives_the_coordinator() {
    let c = Cluster::in_directory();
    c.repository().run(["init"]).ok();
    two_nodes(&c);
    let mut coordinator = c.coordinator();
    c.certs(&["agent", "node-a"]);
    let mut order = order(&c, &ROLES);
    let runtime = runtime();
    let grant = |a: &Option<wire::Assignment>, n: u8| wire::GrantRequest {
        assignment: a.clone(),
        pack: vec![n; 16].into(),
        length: 16 << 20,
        crc32: 0,
    };
    runtime.block_on(async {
        let mut agent = ScriptedAgent::register(&c, "agent-node-a", "node-a", 2).await.unwrap();
        let own = agent.assignment().await.assignment;
        let mut upload = UploadClient::new(agent.channel.clone());
        let mut n = 0;
        while upload.grant(grant(&own, n)).await.is_ok() {
            n += 1;
            assert!(n < 64, "no quota");
        }
        // Grants are written to the journal with the next regions.
        let region = wire::Region { offset: 0, length: 16 << 20, unchanged: false, extents: Vec::new() };
        let checkpoint = wire::CheckpointRequest { assignment: own, regions: vec![region] };
        upload.checkpoint(checkpoint).await.unwrap();
    });
    coordinator.signal(Signal::SIGKILL);
    coordinator.wait();
    order.kill().unwrap();
    order.wait().unwrap();
    let next = c.coordinator_with("next", &[]);
    next.wait_for_log("a run that another coordinator left goes on");
    runtime.block_on(async {
        let mut agent = ScriptedAgent::register(&c, "agent-node-a", "node-a", 2).await.unwrap();
        let own = agent.assignment().await.assignment;
        // One more copy of the volume is allowed, since uploads in flight may have to be repeated, but not a whole new
        // quota.
        let mut upload = UploadClient::new(agent.channel.clone());
        let mut again = 0;
        let refused = loop {
            match upload.grant(grant(&own, 100 + again)).await {
                Ok(_) => again += 1,
                Err(refused) => break refused,
            }
        };
        assert_eq!((refused.code(), again), (Code::ResourceExhausted, 1), "{refused:?}");
    });
}

/// It can claim to have stored chunks, and store something else. A point that refers to them is damaged: a verification
/// finds this, and the next backup stores again what was set aside.
#[test]
fn chunks_that_a_compromised_agent_never_stored_are_found_and_stored_again() {
    let c = Cluster::in_directory();
    c.repository().run(["init"]).ok();
    two_nodes(&c);
    let _coordinator = c.coordinator();
    c.certs(&["agent", "node-a"]);
    let order = order(&c, &ROLES);
    let runtime = runtime();
    let victim = runtime.block_on(async {
        let mut agent = ScriptedAgent::register(&c, "agent-node-a", "node-a", 2).await.unwrap();
        let backup = agent.assignment().await;
        let own = backup.assignment.clone();
        // It is assumed to know the other node's content.
        let content = fs::read(c.folder().join("wal.img")).unwrap();
        let chunks = chunks_of(&backup, &content);
        assert!(chunks.len() > 12, "{}", chunks.len());
        seal_rubbish(&mut UploadClient::new(agent.channel.clone()), own.clone(), &chunks).await;
        let honest = c.agent("node-b");
        let region = wire::Region { offset: 0, length: 24 << 20, unchanged: false, extents: Vec::new() };
        let mut upload = UploadClient::new(agent.channel.clone());
        let checkpoint = wire::CheckpointRequest { assignment: own.clone(), regions: vec![region] };
        upload.checkpoint(checkpoint).await.unwrap();
        let finish = wire::FinishRequest { assignment: own, length: 24 << 20, ..Default::default() };
        upload.finish(finish).await.unwrap();
        ended(order).await.ok();
        honest
    });
    // The store has exactly the pack that was sealed. Only opening its chunks shows the damage.
    let found = c.repository().run(["verify", "--data", "--json"]);
    assert_eq!(found.code, Some(3), "{found:?}");
    let back = c.folder().join("wal.back");
    let target = format!("wal={}", back.display());
    assert_eq!(c.repository().run(["restore", "shop", "--volume", &target]).code, Some(3));
    assert_eq!(c.repository().run(["verify", "--data", "--set-aside"]).code, Some(3));
    let _honest = (c.agent("node-a"), victim);
    c.wait_for_agents(&["node-a", "node-b"]);
    let mended = c.run(&["backup", "shop", "--json"]).ok().json();
    c.repository().run(["verify", "--data", mended["point"].as_str().unwrap()]).ok();
    let _ = fs::remove_file(&back);
    c.repository().run(["restore", "shop", "--volume", &target]).ok();
    assert!(fs::read(back).unwrap() == fs::read(c.folder().join("wal.img")).unwrap());
}
