//! `commits`: the commit of a point that reuses 10^5 packs, against a simulated store in which each call takes 10 ms.
//!
//! ```text
//! cargo run --release -p milkrun-benches --bin commits             100,000 packs, 10 ms
//! cargo run --release -p milkrun-benches --bin commits -- 20000 40
//! ```
//! It runs once with locks that last (one HEAD for each pack), and once with locks that are too short (extension and
//! HEAD).

use std::collections::HashMap;
use std::error::Error;
use std::io::Write;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use milkrun_repository::chunk::page_cutter::PageCutter;
use milkrun_repository::chunk::stream_cutter::StreamCutter;
use milkrun_repository::clock::Moment;
use milkrun_repository::config::{Config, LockMode, LockPolicy};
use milkrun_repository::id::{AppId, DomainId, PackId, RepositoryId, RunId};
use milkrun_repository::index::PackInfo;
use milkrun_repository::keys::{Domain, KeyRing, Secret};
use milkrun_repository::pack::{PackKind, SealedKey};
use milkrun_repository::point::commit::{Commit, Locks};
use milkrun_repository::point::root::Class;
use milkrun_repository::point::{Root, RootBody};
use milkrun_repository::store::grant::{GetGrant, PutGrant, PutTerms};
use milkrun_repository::store::listing::{Mark, Page};
use milkrun_repository::store::{
    Capabilities, CreateError, DeleteError, Failure, Firmness, GetError, Head, Key, Listed, Lock, Operation, Store,
    Trouble, Version,
};

const PERIOD: Duration = Duration::from_secs(30 * 86_400);
const PACK_BYTES: u64 = 32 << 20;

/// A store of objects without bytes. Each call takes some time.
struct Simulated {
    latency: Duration,
    objects: Mutex<HashMap<String, (u64, Option<Lock>)>>,
    calls: AtomicU64,
}

impl Simulated {
    async fn called(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(self.latency).await;
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<String, (u64, Option<Lock>)>) -> T) -> T {
        work(&mut self.objects.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

fn unused(operation: Operation) -> Failure {
    Failure::new(operation, "simulated", Trouble::Unreachable)
}

#[async_trait]
impl Store for Simulated {
    fn describe(&self) -> String {
        "simulated".into()
    }

    async fn capabilities(&self) -> Result<Capabilities, Failure> {
        Err(unused(Operation::Head))
    }

    async fn identity(&self) -> Result<String, Failure> {
        Ok(self.describe())
    }

    async fn create(&self, key: &Key, body: Bytes, lock: Option<Lock>) -> Result<Version, CreateError> {
        self.called().await;
        self.with(|o| o.insert(key.to_string(), (body.len() as u64, lock)));
        Ok(Version("1".into()))
    }

    async fn get(&self, _: &Key, _: Option<&Version>, _: Option<Range<u64>>) -> Result<Bytes, GetError> {
        Err(unused(Operation::Get).into())
    }

    async fn head(&self, key: &Key, _: Option<&Version>) -> Result<Head, GetError> {
        self.called().await;
        let found = self.with(|o| o.get(key.as_str()).copied());
        let (length, lock) = found.ok_or_else(|| GetError::NotFound(key.to_string()))?;
        Ok(Head { version: Version("1".into()), length, modified: Moment::now(), lock, crc32: None })
    }

    async fn lock_of(&self, key: &Key, version: &Version) -> Result<Option<Lock>, GetError> {
        Ok(self.head(key, Some(version)).await?.lock)
    }

    async fn versions_page(&self, _: &str, _: Option<&Mark>) -> Result<Page<Listed>, Failure> {
        Err(unused(Operation::List))
    }

    async fn keys_page(&self, _: &str, _: Option<&Mark>) -> Result<Page<Key>, Failure> {
        Err(unused(Operation::List))
    }

    async fn extend_lock(&self, key: &Key, _: &Version, lock: Lock) -> Result<(), GetError> {
        self.called().await;
        self.with(|o| drop(o.entry(key.to_string()).and_modify(|o| o.1 = Some(lock))));
        Ok(())
    }

    async fn delete(&self, _: &Key, _: &Version) -> Result<(), DeleteError> {
        Err(unused(Operation::Delete).into())
    }

    async fn grant_put(&self, _: &PutTerms) -> Result<PutGrant, Failure> {
        Err(unused(Operation::Create))
    }

    async fn grant_get(&self, _: &Key, _: &Version) -> Result<GetGrant, Failure> {
        Err(unused(Operation::Get))
    }
}

fn pack(n: u64) -> PackInfo {
    let mut id = [0; 16];
    id.copy_from_slice(&blake3::hash(&n.to_le_bytes()).as_bytes()[..16]);
    PackInfo {
        id: PackId::from_bytes(id),
        kind: PackKind::Data,
        length: PACK_BYTES,
        digest: [7; 32],
        version: Version("3sL4kqtJlcpXroDTDmJ".into()),
        key: SealedKey { encapsulated: [1; 32], ciphertext: [2; 48], slots: 400, directory_len: 20_000 },
        locked_until: None,
    }
}

fn anonymous_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) >> 10
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let packs: u64 = args.next().map_or(Ok(100_000), |a| a.parse())?;
    let latency: u64 = args.next().map_or(Ok(10), |a| a.parse())?;
    let ring = KeyRing::from_secret(&Secret::generate());
    let config = Config {
        id: RepositoryId::from_bytes([1; 16]),
        created: Moment::now(),
        pages: PageCutter::DEFAULT,
        streams: StreamCutter::DEFAULT,
        lock: LockPolicy { mode: LockMode::Compliance, period: PERIOD },
        keys: ring.public(),
    };
    let application = AppId::local("shop".parse()?);
    let id = DomainId { app: ring.app_hash(&application), number: 0 };
    let domain = Domain::generate(id, &config.id, &ring).0;
    let moment = Moment::now();
    let locks = Locks::of(&config, moment, PERIOD);
    for (what, held) in [("locks that last", locks.packs), ("locks that are too short", None)] {
        let short = Some(Lock { firmness: Firmness::Compliance, until: moment });
        let objects = (0..packs).map(|n| (Key::pack(&pack(n).id).to_string(), (PACK_BYTES, held.or(short)))).collect();
        let store = Simulated {
            latency: Duration::from_millis(latency),
            objects: Mutex::new(objects),
            calls: AtomicU64::new(0),
        };
        let root = Root {
            tombstone: false,
            repository: config.id,
            app: domain.id().app,
            domain: 0,
            class: Class::None,
            run: RunId::from_bytes([3; 8]),
            moment,
            lock_until: locks.point.map(|l| l.until),
        };
        let body = RootBody {
            application: application.clone(),
            namespace_uid: String::new(),
            host: String::new(),
            writer: String::new(),
            parent: None,
            duration_ms: 0,
            stored_bytes: 0,
            lock_ms: 0,
            skipped: Vec::new(),
            volumes: Vec::new(),
            manifests: None,
        };
        let before = anonymous_mib();
        let known = held.map_or(moment, |l| l.until);
        let reused = (0..packs).map(|n| PackInfo { locked_until: Some(known), ..pack(n) }).collect();
        let began = Instant::now();
        let commit = Commit {
            store: &store,
            config: &config,
            ring: &ring,
            domain: &domain,
            root,
            body,
            maps: Vec::new(),
            locks,
            stored: Vec::new(),
            reused,
        };
        let done = commit.run().await?;
        writeln!(
            std::io::stdout().lock(),
            "{packs} packs with {what}, {latency} ms a call: {:.1} s, {} calls, {} locks extended, placement and root {:.1} MiB, {} MiB more memory",
            began.elapsed().as_secs_f64(),
            store.calls.load(Ordering::Relaxed),
            done.locks_extended,
            done.stored_bytes as f64 / f64::from(1 << 20),
            anonymous_mib().saturating_sub(before),
        )?;
    }
    Ok(())
}
