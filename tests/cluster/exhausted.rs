//! A client with a valid certificate tries to exhaust the coordinator. It gets its share, and honest agents go on.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::pin::Pin;
use std::process::{Child, Stdio};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body::Frame;
use milkrun_identity::channel::dial;
use milkrun_identity::tls::Credentials;
use milkrun_proto::control::v1 as control;
use milkrun_tests::binary::ran;
use milkrun_tests::cluster::Cluster;
use milkrun_tests::loopback::{free_port, http_get};
use milkrun_tests::noise;
use milkrun_tests::process::wait_for;
use prost::Message;
use tonic::body::Body;
use tonic::codegen::{Bytes, Service, http};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::scripted_agent::{ScriptedAgent, runtime};

/// The coordinator's memory stays below this, whatever clients do. Without limits each of these attacks took gigabytes.
const MEMORY_MAX: u64 = 900 << 20;
const CONNECTIONS: usize = 1600;

/// A request whose body has these pieces and never ends.
struct Unfinished(VecDeque<Bytes>);

impl http_body::Body for Unfinished {
    type Data = Bytes;
    type Error = Status;
    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.0.pop_front() {
            Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            None => Poll::Pending,
        }
    }
}

/// The frame of a message, of which only so many bytes are sent.
fn message(announced: usize, begin: &[u8], sent: usize) -> Vec<Bytes> {
    let mut head = vec![0];
    head.extend_from_slice(&u32::try_from(announced).unwrap().to_be_bytes());
    head.extend_from_slice(begin);
    let piece = Bytes::from(vec![1; 1 << 20]);
    let rest = sent - begin.len();
    let pieces = (0..rest.div_ceil(piece.len())).map(|n| piece.slice(..piece.len().min(rest - n * piece.len())));
    std::iter::once(head.into()).chain(pieces).collect()
}

/// Sends a request, and waits some seconds for its status; `None` if no answer comes.
async fn call(mut channel: Channel, path: &'static str, pieces: Vec<Bytes>) -> Option<Code> {
    let request = http::Request::post(format!("http://coordinator{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Unfinished(pieces.into())))
        .unwrap();
    let answer = async {
        std::future::poll_fn(|cx| channel.poll_ready(cx)).await.ok()?;
        let answer = channel.call(request).await.ok()?;
        let status = answer.headers().get("grpc-status")?.to_str().ok()?.parse::<i32>().ok()?;
        Some(Code::from(status))
    };
    tokio::time::timeout(Duration::from_secs(6), answer).await.ok().flatten()
}

/// Makes so many calls at once.
async fn calls(channels: &[Channel], path: &'static str, count: usize, pieces: &[Bytes]) -> Vec<Option<Code>> {
    let calls = (0..count).map(|n| call(channels[n % channels.len()].clone(), path, pieces.to_vec()));
    futures::future::join_all(calls).await
}

/// The application `shop` on the honest node-a, and `bank` on node-b, which is compromised.
fn honest_and_stolen(c: &Cluster) {
    let at = |name: &str| c.folder().join(name).display().to_string();
    c.inventory(&format!(
        "nodes: {{ node-a: , node-b: }}
applications:
  shop: {{ volumes: {{ data: {{ at: {{ node-a: {} }} }} }} }}
  bank: {{ volumes: {{ data: {{ at: {{ node-b: {} }} }} }} }}
",
        at("data.img"),
        at("bank.img")
    ));
    std::fs::write(at("data.img"), noise(200 << 20, 1)).unwrap();
    std::fs::write(at("bank.img"), noise(1 << 20, 2)).unwrap();
}

#[test]
fn a_client_can_not_exhaust_the_coordinator() {
    let c = Cluster::in_directory();
    c.repository().run(["init"]).ok();
    honest_and_stolen(&c);
    let port = free_port();
    let coordinator = c.coordinator_with("coordinator", &["--metrics", &format!("127.0.0.1:{port}")]);
    coordinator.wait_for_log("serving");
    let _honest = c.agent("node-a");
    c.wait_for_agents(&["node-a"]);
    c.certs(&["agent", "node-b"]);
    let refused = |what: &str| {
        let name = format!("milkrun_refused_total{{what=\"{what}\"}}");
        let metrics = http_get(port, "/metrics").1;
        let line = metrics.lines().find(|l| l.starts_with(&name)).map(|l| l.rsplit(' ').next().unwrap().to_owned());
        line.map_or(0.0, |count| count.parse::<f64>().unwrap())
    };
    // During each attack, a backup of new content succeeds.
    let mut seed = 10;
    let mut backup = || -> Child {
        seed += 1;
        std::fs::write(c.folder().join("data.img"), noise(200 << 20, seed)).unwrap();
        let args = ["backup", "shop", "--parent", "none"];
        c.command("root", &["view", "backup", "restore", "operate"], &args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let goes_on = |backup: Child| drop(ran(backup.wait_with_output()).ok());
    let runtime = runtime();
    let channel = |certificate: &str| {
        let credentials = Credentials::new(c.folder().join("certs").join(certificate));
        runtime.block_on(dial(&credentials, &c.url().parse().unwrap()))
    };

    // Requests that never end: some are far too long, some have a legal length.
    let stolen: Vec<Channel> = (0..4).map(|_| channel("agent-node-b").unwrap()).collect();
    let beside = backup();
    let lookup = "/milkrun.agent.v1.Upload/Lookup";
    let long = runtime.block_on(calls(&stolen, lookup, 20, &message(60 << 20, &[], 60 << 20)));
    assert!(long.iter().all(Option::is_some), "what is too long is refused at once: {long:?}");
    let many = runtime.block_on(calls(&stolen, lookup, 80, &message(7 << 20, &[], 6 << 20)));
    let exhausted = many.iter().filter(|code| **code == Some(Code::ResourceExhausted)).count();
    assert!(exhausted >= 40, "80 requests of 6 MiB are more than one agent may have under way: {many:?}");
    assert!(refused("bytes") >= 40.0);
    goes_on(beside);

    // Orders with manifests that never end.
    c.certs(&["user", "greedy", "--role", "backup:bank"]);
    let greedy = channel("user-greedy").unwrap();
    let order = control::BackupRequest {
        message: Some(control::backup_request::Message::Order(control::BackupOrder {
            application: "bank".into(),
            manifest_objects: 1,
            ..Default::default()
        })),
    };
    let manifests = control::BackupRequest {
        message: Some(control::backup_request::Message::Manifests(vec![b' '; 1 << 20].into())),
    };
    let frame = |m: &control::BackupRequest| {
        let bytes = m.encode_to_vec();
        let head = [&[0][..], &u32::try_from(bytes.len()).unwrap().to_be_bytes()].concat();
        [head, bytes].concat()
    };
    let pieces: Vec<Bytes> =
        std::iter::once(frame(&order)).chain((0..200).map(|_| frame(&manifests))).map(Bytes::from).collect();
    let beside = backup();
    let orders = runtime.block_on(calls(&[greedy], "/milkrun.control.v1.Control/Backup", 4, &pieces));
    let exhausted = orders.iter().filter(|code| **code == Some(Code::ResourceExhausted)).count();
    assert!(exhausted >= 2, "four orders of 200 MiB are more than one user may have under way: {orders:?}");
    goes_on(beside);

    // More connections than an agent needs.
    drop(stolen);
    let beside = backup();
    let open: Vec<_> = (0..12).map(|_| channel("agent-node-b")).collect();
    wait_for("refusals", || (refused("connections") >= 4.0).then_some(()));
    goes_on(beside);
    drop(open);

    // Connections that send nothing.
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let address = c.url().trim_start_matches("https://").to_owned();
    let silent: Vec<TcpStream> = (0..CONNECTIONS).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let began = Instant::now();
    goes_on(backup());
    // The coordinator waits 10 s for each of them, for some hundred at a time.
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    assert!(refused("handshakes") > 0.0);
    drop(silent);

    // Calls that ended are not counted any more, and the compromised agent can do its regular work.
    let registered = wait_for("a place", || {
        runtime.block_on(async { ScriptedAgent::register(&c, "agent-node-b", "node-b", 3).await.ok() })
    });
    drop(registered);
    let peak = coordinator.peak_memory();
    println!("the coordinator had {} MiB at its most", peak >> 20);
    assert!(peak < MEMORY_MAX, "{} MiB", peak >> 20);
    c.repository().run(["verify"]).ok();
}
