//! Grants, as the coordinator sends them.

use milkrun_proto::agent::v1 as wire;
use milkrun_repository::clock::Moment;
use milkrun_repository::store::grant::{GetGrant, PutGrant};
use milkrun_repository::store::{Firmness, Key, Lock};

fn lock(l: Option<wire::Lock>) -> Option<Lock> {
    l.map(|l| Lock {
        firmness: if l.compliance { Firmness::Compliance } else { Firmness::Governance },
        until: Moment::from_millis(l.until_ms),
    })
}

pub(super) fn put_grant(grant: Option<wire::Grant>) -> Option<PutGrant> {
    Some(match grant?.kind? {
        wire::grant::Kind::Presigned(p) => {
            PutGrant::Presigned { url: p.url, headers: p.headers.into_iter().map(|h| (h.name, h.value)).collect() }
        }
        wire::grant::Kind::File(f) => PutGrant::File { root: f.root.into(), key: Key::new(f.key), lock: lock(f.lock) },
    })
}

pub(super) fn get_grant(grant: Option<wire::Grant>) -> Option<GetGrant> {
    Some(match grant?.kind? {
        wire::grant::Kind::Presigned(p) => {
            GetGrant::Presigned { url: p.url, headers: p.headers.into_iter().map(|h| (h.name, h.value)).collect() }
        }
        wire::grant::Kind::File(f) => GetGrant::File { root: f.root.into(), key: Key::new(f.key) },
    })
}
