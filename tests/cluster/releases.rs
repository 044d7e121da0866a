//! Agents and coordinators of two consecutive releases.

use std::fs;
use std::process::Stdio;

use milkrun_proto::agent::v1 as wire;
use milkrun_proto::agent::v1::download_client::DownloadClient;
use milkrun_proto::agent::v1::upload_client::UploadClient;
use milkrun_tests::cluster::Cluster;
use milkrun_tests::noise;
use tonic::Code;

use crate::many_nodes::two_nodes;
use crate::scripted_agent::{ROLES, ScriptedAgent, order, runtime};

#[test]
fn protocols_one_release_apart_are_served_and_older_ones_are_not() {
    let c = Cluster::in_directory();
    c.repository().run(["init"]).ok();
    two_nodes(&c);
    let coordinator = c.coordinator();
    c.certs(&["agent", "node-a"]);
    let runtime = runtime();
    runtime.block_on(async {
        for (protocol, wanted) in
            [(0, Code::FailedPrecondition), (1, Code::Ok), (2, Code::Ok), (3, Code::Ok), (4, Code::FailedPrecondition)]
        {
            let registered = ScriptedAgent::register(&c, "agent-node-a", "node-a", protocol).await;
            assert_eq!(registered.as_ref().err().map_or(Code::Ok, |e| e.code()), wanted, "protocol {protocol}");
            if let Err(e) = registered {
                assert!(e.message().contains("update the older one"), "{e}");
            }
        }
        // An agent of the last release does not share lookups, and is never told to wait.
        let mut order = order(&c, &ROLES);
        let mut old = ScriptedAgent::register(&c, "agent-node-a", "node-a", 1).await.unwrap();
        let own = old.assignment().await.assignment;
        let lookup = wire::LookupRequest { assignment: own, ids: vec![1; 64].into(), ..Default::default() };
        let known = UploadClient::new(old.channel.clone()).lookup(lookup).await.unwrap().into_inner().known;
        assert_eq!(known[..], [0, 0]);
        order.kill().unwrap();
        order.wait().unwrap();
    });
    assert!(coordinator.log().contains("an agent is refused"));
}

/// An agent of the last release gets each write as a message of its own. An agent that asks for it gets the same writes
/// packed.
#[test]
fn a_plan_is_sent_in_the_form_that_the_agent_knows() {
    let c = Cluster::in_directory();
    c.repository().run(["init"]).ok();
    two_nodes(&c);
    let at = |name: &str| c.folder().join(name).display().to_string();
    let volume = format!("data={}", at("data.img"));
    c.repository().run(["backup", "shop", "--volume", &volume]).ok();
    // Single pages change, so that the plan writes parts of chunks.
    let mut content = fs::read(at("data.img")).unwrap();
    for page in [3, 700, 701, 2000] {
        content[page * 4096..][..4096].copy_from_slice(&noise(4096, page as u64));
    }
    fs::write(at("data.img"), content).unwrap();
    c.repository().run(["backup", "shop", "--volume", &volume]).ok();
    let _coordinator = c.coordinator();
    c.certs(&["agent", "node-a"]);
    runtime().block_on(async {
        let target = format!("data=node-a:{}", at("wal.back"));
        let mut command = c.command("root", &ROLES, &["restore", "shop", "--volume", &target]);
        let mut played = ScriptedAgent::register(&c, "agent-node-a", "node-a", 1).await.unwrap();
        let mut order = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let own = played.restore().await.assignment;
        let mut told = Vec::new();
        let ways = [(false, false, false), (true, false, false), (false, true, false), (true, true, true)];
        for (packed, in_order, grouped) in ways {
            let request = wire::PlanRequest { assignment: own.clone(), packed, in_order, grouped, from: 0 };
            let mut pages = DownloadClient::new(played.channel.clone()).plan(request).await.unwrap().into_inner();
            let (mut writes, mut until) = (Vec::new(), 0);
            while let Some(page) = pages.message().await.unwrap() {
                assert_eq!(page.grouped, grouped);
                let before = writes.len();
                for slot in page.ranges.iter().flat_map(|r| &r.slots) {
                    let one_by_one = slot.writes.iter();
                    let one_by_one = one_by_one.map(|w| [w.volume_offset, w.chunk_offset.into(), w.length.into()]);
                    let (triples, rest) = slot.packed_writes.as_chunks::<3>();
                    assert!(rest.is_empty() && triples.is_empty() != packed && slot.writes.is_empty() == packed);
                    writes.extend(one_by_one.chain(triples.iter().copied()));
                }
                if grouped {
                    // Here each page of the plan is a group: all writes of one region.
                    assert!(page.until > until || page.ranges.is_empty(), "a group without its end");
                    let inside = |&[at, _, len]: &[u64; 3]| until <= at && at + len <= page.until;
                    assert!(writes[before..].iter().all(inside), "{page:?}");
                }
                until = until.max(page.until);
            }
            assert_eq!(until, 24 << 20);
            assert!(!in_order || grouped || writes.is_sorted(), "a plan for what can't seek is out of order");
            writes.sort_unstable();
            told.push(writes);
        }
        for other in &told[1..] {
            assert_eq!(told[0], *other);
        }
        assert!(told[0].iter().any(|[_, from, _]| *from > 0), "no part of a chunk");
        assert_eq!(told[0].iter().map(|[_, _, len]| len).sum::<u64>(), 20 << 20);
        order.kill().unwrap();
        order.wait().unwrap();
    });
}
