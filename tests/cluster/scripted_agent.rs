//! A scripted agent: it does what a test says, over the wire, with a genuine certificate. Helpers do the work of an
//! honest agent.

use std::fs;
use std::process::{Child, Stdio};

use milkrun_identity::channel::dial;
use milkrun_identity::tls::Credentials;
use milkrun_proto::agent::v1 as wire;
use milkrun_proto::agent::v1::session_client::SessionClient;
use milkrun_proto::agent::v1::upload_client::UploadClient;
use milkrun_repository::chunk::Piece;
use milkrun_repository::chunk::page_cutter::PageCutter;
use milkrun_repository::id::{ChunkId, PackId};
use milkrun_repository::keys::DomainKey;
use milkrun_repository::pack::{HEADER_LEN, TAG_LEN};
use milkrun_tests::binary::{Ran, ran};
use milkrun_tests::cluster::Cluster;
use milkrun_tests::noise;
use tokio::sync::mpsc;
use tonic::Code;
use tonic::transport::Channel;
use wire::from_agent::Message as Up;
use wire::to_agent::Message as Down;

/// The roles of the user who orders.
pub(crate) const ROLES: [&str; 4] = ["view", "backup", "restore", "operate"];

/// An agent that does what the test says.
pub(crate) struct ScriptedAgent {
    pub(crate) channel: Channel,
    pub(crate) up: mpsc::Sender<wire::FromAgent>,
    down: tonic::Streaming<wire::ToAgent>,
}

impl ScriptedAgent {
    pub(crate) async fn register(
        c: &Cluster,
        certificate: &str,
        node: &str,
        protocol: u32,
    ) -> Result<Self, tonic::Status> {
        let credentials = Credentials::new(c.folder().join("certs").join(certificate));
        let channel = dial(&credentials, &c.url().parse().unwrap()).await.unwrap();
        let (up, outgoing) = mpsc::channel(8);
        let register = wire::Register { node: node.into(), version: "0.0.0".into(), protocol, ..Default::default() };
        up.send(wire::FromAgent { message: Some(Up::Register(register)) }).await.unwrap();
        let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
        let down = SessionClient::new(channel.clone()).attach(outgoing).await?.into_inner();
        Ok(Self { channel, up, down })
    }

    async fn next(&mut self) -> Down {
        let next = tokio::time::timeout(std::time::Duration::from_secs(30), self.down.message());
        next.await.unwrap().unwrap().unwrap().message.unwrap()
    }

    pub(crate) async fn assignment(&mut self) -> wire::BackupVolume {
        loop {
            if let Down::Backup(b) = self.next().await {
                return b;
            }
        }
    }

    pub(crate) async fn restore(&mut self) -> wire::RestoreVolume {
        loop {
            if let Down::Restore(r) = self.next().await {
                return r;
            }
        }
    }
}

pub(crate) fn code<T>(answer: Result<T, tonic::Status>) -> Code {
    answer.err().map_or(Code::Ok, |e| e.code())
}

/// The message of a refused call.
pub(crate) fn nonsense<T>(answer: Result<T, tonic::Status>) -> String {
    let message = answer.err().map_or(String::new(), |e| e.message().to_owned());
    message.split_once("makes no sense: ").map_or(message.clone(), |(_, why)| why.to_owned())
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Orders a backup of the application `shop`, and does not wait for it.
pub(crate) fn order(c: &Cluster, roles: &[&str]) -> Child {
    c.command("root", roles, &["backup", "shop"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// How an order ended.
pub(crate) async fn ended(order: Child) -> Ran {
    tokio::task::spawn_blocking(move || ran(order.wait_with_output())).await.unwrap()
}

/// The chunks into which an agent would cut some content: ids and lengths.
pub(crate) fn chunks_of(backup: &wire::BackupVolume, content: &[u8]) -> Vec<(ChunkId, usize)> {
    let domain = DomainKey::from_bytes(backup.domain_key[..].try_into().unwrap());
    let c = backup.cutters.unwrap();
    let cutter =
        PageCutter { min_pages: c.min_pages, avg_pages: c.avg_pages, max_pages: c.max_pages, hole_pages: c.hole_pages };
    let mut pieces = Vec::new();
    cutter.cut(domain.cut_seed(), content, &mut pieces);
    let chunk = |piece: &Piece| match *piece {
        Piece::Data { offset, len } => Some((domain.identify(&content[offset..offset + len]), len)),
        Piece::Hole { .. } => None,
    };
    pieces.iter().filter_map(chunk).collect()
}

/// Stores a pack of noise, and claims that it holds these chunks.
pub(crate) async fn seal_rubbish(
    upload: &mut UploadClient<Channel>,
    own: Option<wire::Assignment>,
    chunks: &[(ChunkId, usize)],
) {
    let pack = PackId::random();
    let ids: Vec<u8> = chunks.iter().flat_map(|(id, _)| *id.as_bytes()).collect();
    let lookup = wire::LookupRequest { assignment: own.clone(), ids: ids.into(), share: true, wait: false };
    assert!(
        upload.lookup(lookup).await.unwrap().into_inner().known.iter().all(|k| *k == 0),
        "they are its own to store"
    );
    let mut entries = Vec::new();
    let (mut at, tag) = (u32::try_from(HEADER_LEN).unwrap(), u32::try_from(TAG_LEN).unwrap());
    for (id, len) in chunks {
        let plain = u32::try_from(*len).unwrap();
        entries.extend_from_slice(id.as_bytes());
        for number in [at, plain + tag, plain] {
            entries.extend_from_slice(&number.to_le_bytes());
        }
        entries.push(0);
        at += plain + tag;
    }
    let rubbish = noise(at as usize + 1000, 99);
    let (length, crc32) = (rubbish.len() as u64, crc32fast::hash(&rubbish));
    let grant = wire::GrantRequest { assignment: own.clone(), pack: pack.as_bytes().to_vec().into(), length, crc32 };
    let granted = upload.grant(grant).await.unwrap().into_inner().grant.unwrap();
    let Some(wire::grant::Kind::File(file)) = granted.kind else { panic!("no grant for a file") };
    let path = std::path::Path::new(&file.root).join(file.key);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, &rubbish).unwrap();
    let seal = wire::SealRequest {
        assignment: own,
        pack: pack.as_bytes().to_vec().into(),
        length,
        crc32,
        digest: vec![7; 32].into(),
        sealed_key: vec![7; 80].into(),
        slots: u32::try_from(chunks.len()).unwrap(),
        directory_length: 500,
        entries: entries.into(),
        version: String::new(),
    };
    upload.seal(seal).await.unwrap();
}
