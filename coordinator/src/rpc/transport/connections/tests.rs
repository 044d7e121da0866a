use milkrun_identity::authority::Authority;

use super::*;
use crate::rpc::transport::limits::Account;

fn certificate(folder: &std::path::Path, peer: &Peer, valid: Duration) -> Certificate {
    let authority = Authority::open(folder).or_else(|_| Authority::create(folder, Duration::from_secs(3600))).unwrap();
    Credentials::new(authority.issue(peer, &[], valid).unwrap()).own_certificate().unwrap()
}

fn limits() -> Limits {
    let account = Account { of_connection: 100, of_peer: 150, in_all: 200 };
    Limits { connections: 4, connections_of_agent: 2, requests: account, ..Limits::default() }
}

fn agent(name: &str) -> Peer {
    Peer::Agent(name.parse().unwrap())
}

const HERE: ([u8; 4], u16) = ([127, 0, 0, 1], 1);

#[test]
fn nobody_takes_what_others_need() {
    let folder = tempfile::tempdir().unwrap();
    let hour = Duration::from_secs(3600);
    let [a, b, c] = ["a", "b", "c"].map(|n| certificate(folder.path(), &agent(n), hour));
    let connections = Connections::new(limits());
    let admit = |c: &Certificate| connections.admit(c.clone(), HERE.into());
    let (a1, a2) = (admit(&a).unwrap(), admit(&a).unwrap());
    assert!(matches!(admit(&a), Err(RefusedConnection::PeerFull { .. })));
    let (b1, _c1) = (admit(&b).unwrap(), admit(&c).unwrap());
    assert!(matches!(admit(&b), Err(RefusedConnection::Full(4))));
    // The limits on bytes: of a connection, of a peer, in all.
    let charge = |e: &Entry| e.caller().call().charge(Of::Requests).unwrap();
    let (mut first, mut second, mut other) = (charge(&a1), charge(&a2), charge(&b1));
    first.add(90).unwrap();
    assert!(first.add(20).unwrap_err().message().contains("this connection"));
    second.add(50).unwrap();
    assert!(second.add(20).unwrap_err().message().contains("of you"));
    assert!(other.add(70).unwrap_err().message().contains("all together"));
    other.add(60).unwrap();
    // Finished calls don't count any more, even if their connection is gone.
    drop((a1, a2, first, second));
    other.add(40).unwrap();
    let again = admit(&a).unwrap();
    charge(&again).add(100).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_connection_ends_with_its_certificate_or_its_use() {
    let folder = tempfile::tempdir().unwrap();
    let hour = Duration::from_secs(3600);
    let server = Authority::create(folder.path(), hour).unwrap();
    let server = Credentials::new(server.issue(&Peer::Coordinator, &["c".into()], hour).unwrap());
    let connections = Connections::new(limits());
    let mut short = certificate(folder.path(), &agent("short"), hour);
    short.until = Moment::now();
    let long = certificate(folder.path(), &agent("long"), hour);
    let revoked = certificate(folder.path(), &agent("revoked"), hour);
    let admit = |c: &Certificate| connections.admit(c.clone(), HERE.into()).unwrap();
    let entries = [&short, &long, &revoked].map(admit);
    let used = entries.each_ref().map(|e| e.caller().call());
    let idle = connections.admit(long, HERE.into()).unwrap();
    let began = Instant::now();
    tokio::spawn(connections.clone().watch(server));
    let why = entries[0].caller().ended().await;
    assert!(why.message().contains("ended at"), "{why:?}");
    entries[0].closed().cancelled().await;
    Authority::open(folder.path()).unwrap().revoke("agent-revoked").unwrap();
    assert!(entries[2].caller().ended().await.message().contains("was revoked"));
    assert!(began.elapsed() < Duration::from_secs(5));
    // If the list is lost, the certificate stays revoked.
    std::fs::remove_file(folder.path().join("coordinator-c/ca.crl")).unwrap();
    tokio::time::sleep(LOOK_EVERY * 2).await;
    let again = connections.admit(revoked, HERE.into());
    assert!(matches!(again, Err(RefusedConnection::Revoked(_))));
    assert!(idle.caller().ended().await.message().contains("nothing was called"));
    assert!(began.elapsed() >= limits().idle);
    assert!(!entries[1].0.ending.is_cancelled(), "it has a call open");
    drop(used);
    assert!(entries[1].caller().ended().await.message().contains("nothing was called"));
}
