//! Object keys: the names of design section 5. All keys are made here.

use std::fmt::{self, Write};

use crate::id::{AppHash, DomainId, KeyId, NoteId, PackId, PointId, RunId, SegmentId};

/// A key within a repository; slash-separated, no empty, `.` or `..` part.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// A key from a listing, or from text in this crate.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it can be used as a relative path that stays inside its directory.
    pub fn is_sound(&self) -> bool {
        !self.0.is_empty()
            && !self.0.contains(['\0', '\\'])
            && self.0.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
    }

    /// The greatest length, in bytes, of an object at such a key. Anybody who may write to a bucket can put anything there; a
    /// longer object is refused before it is read.
    pub fn length_max(&self) -> u64 {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        match self.0.split_once('/').map_or(self.0.as_str(), |(folder, _)| folder) {
            // A pack is sealed at 32 MiB. The rest is room for a larger size in later versions.
            "packs" => 512 * MIB,
            // Volumes with their notes. The commit refuses a longer one.
            "points" => 4 * MIB,
            // About 200 bytes for each pack that a point needs: 2.6 million packs.
            "placements" => 512 * MIB,
            // 56 bytes for each chunk; a merged segment holds at most 6 million.
            "index" => 512 * MIB,
            // 16 bytes for each pack.
            "damaged" => 64 * MIB,
            // 3 MB, or a single record that is longer: an order with at most 256 MiB of manifests.
            "journal" => 320 * MIB,
            // An order with at most 256 MiB of manifests.
            "leases" if self.0.starts_with(Self::all_waiting()) => 320 * MIB,
            // `repository.json`, keys, leases, beats, probes.
            _ => 64 * KIB,
        }
    }

    /// `repository.json`
    pub fn config() -> Self {
        Self("repository.json".into())
    }

    /// Whether only its owner may read its content, although the content is wrapped.
    pub fn is_secret(&self) -> bool {
        self.0.starts_with("keys/")
    }

    /// `keys/<id>`
    pub fn secret(id: &KeyId) -> Self {
        Self(format!("keys/{id}"))
    }

    /// `keys/`
    pub fn secrets() -> &'static str {
        "keys/"
    }

    /// `domains/<application hash>/<n>`
    pub fn domain(id: &DomainId) -> Self {
        Self(format!("domains/{id}"))
    }

    /// `domains/` or `domains/<application hash>/`
    pub fn domains(app: Option<&AppHash>) -> String {
        app.map_or_else(|| "domains/".into(), |a| format!("domains/{a}/"))
    }

    /// The domain, parsed from the key.
    pub fn parse_domain(&self) -> Option<DomainId> {
        let (app, number) = self.0.strip_prefix("domains/")?.split_once('/')?;
        let id = DomainId { app: app.parse().ok()?, number: number.parse().ok()? };
        (Self::domain(&id) == *self).then_some(id)
    }

    /// `packs/<xx>/<id>`
    pub fn pack(id: &PackId) -> Self {
        let hex = id.hex();
        Self(format!("packs/{}/{hex}", &hex[..2]))
    }

    /// The pack, parsed from the key.
    pub fn parse_pack(&self) -> Option<PackId> {
        let id = self.0.strip_prefix("packs/")?.split_once('/')?.1.parse().ok()?;
        (Self::pack(&id) == *self).then_some(id)
    }

    /// `points/<application hash>/<time>-<run>`
    pub fn point(app: &AppHash, point: &PointId) -> Self {
        Self(format!("points/{app}/{}", point.key_part()))
    }

    /// `points/` or `points/<application hash>/`
    pub fn points(app: Option<&AppHash>) -> String {
        app.map_or_else(|| "points/".into(), |a| format!("points/{a}/"))
    }

    /// The parts of a root's key, parsed.
    pub fn parse_point(&self) -> Option<(AppHash, PointId)> {
        let (app, point) = self.0.strip_prefix("points/")?.split_once('/')?;
        Some((app.parse().ok()?, format!("rp-{point}").parse().ok()?))
    }

    /// `placements/<point>/<n>`
    pub fn placement(point: &PointId, n: u32) -> Self {
        Self(format!("placements/{}/{n:08}", point.key_part()))
    }

    /// `placements/<point>/`
    pub fn placements(point: &PointId) -> String {
        format!("placements/{}/", point.key_part())
    }

    /// `index/<application hash>/<n>/<id>`
    pub fn segment(domain: &DomainId, id: &SegmentId) -> Self {
        Self(format!("index/{domain}/{id}"))
    }

    /// `index/<application hash>/<n>/`
    pub fn segments(domain: &DomainId) -> String {
        format!("index/{domain}/")
    }

    /// The index segment, parsed from the key.
    pub fn parse_segment(&self) -> Option<SegmentId> {
        self.0.strip_prefix("index/")?.rsplit_once('/')?.1.parse().ok()
    }

    /// `damaged/<application hash>/<id>`
    pub fn damaged(app: &AppHash, id: &NoteId) -> Self {
        Self(format!("damaged/{app}/{id}"))
    }

    /// `damaged/<application hash>/`
    pub fn all_damaged(app: &AppHash) -> String {
        format!("damaged/{app}/")
    }

    /// `leases/<run>`
    pub fn lease(run: &RunId) -> Self {
        Self(format!("leases/{run}"))
    }

    /// `leases/waiting/`: orders that wait for their turn.
    pub fn all_waiting() -> &'static str {
        "leases/waiting/"
    }

    /// `leases/waiting/<run>`
    pub fn waiting(run: &RunId) -> Self {
        Self(format!("leases/waiting/{run}"))
    }

    /// The run of a waiting order, parsed from the key.
    pub fn parse_waiting(&self) -> Option<RunId> {
        self.0.strip_prefix(Self::all_waiting())?.parse().ok()
    }

    /// `leases/leader/`: who leads.
    pub fn leaders() -> &'static str {
        "leases/leader/"
    }

    /// `leases/leader/<epoch>-<beat>`
    pub fn leader(epoch: u64, beat: u32) -> Self {
        Self(format!("leases/leader/{epoch:016x}-{beat:08x}"))
    }

    /// Epoch and beat of a leader, parsed from the key.
    pub fn parse_leader(&self) -> Option<(u64, u32)> {
        series(self.0.strip_prefix(Self::leaders())?)
    }

    /// The run of a lease, parsed from the key.
    pub fn parse_lease(&self) -> Option<RunId> {
        self.0.strip_prefix("leases/")?.parse().ok()
    }

    /// `ended/<run>`: the prefix of all ends of a run.
    pub fn ends(run: &RunId) -> String {
        format!("ended/{run}")
    }

    /// `ended/<run>-<random>`. The run has no folder of its own: if an object and a folder can't have the same name, somebody
    /// could take the folder's name.
    pub fn ended(run: &RunId, random: u64) -> Self {
        Self(format!("ended/{run}-{random:016x}"))
    }

    /// `journal/<run>/`
    pub fn journals(run: &RunId) -> String {
        format!("journal/{run}/")
    }

    /// `journal/<run>/<epoch>-<number>`
    pub fn journal(run: &RunId, epoch: u64, number: u32) -> Self {
        Self(format!("journal/{run}/{epoch:016x}-{number:08x}"))
    }

    /// Epoch and number of a journal's object, parsed from the key.
    pub fn parse_journal(&self) -> Option<(u64, u32)> {
        series(self.0.strip_prefix("journal/")?.split_once('/')?.1)
    }

    /// `probe/<random>`: the object on which `init` tries the locks.
    pub fn probe(id: &KeyId) -> Self {
        Self(format!("probe/{id}"))
    }
}

/// Parses `<epoch>-<number>`, in the only form that is written.
fn series(text: &str) -> Option<(u64, u32)> {
    let (epoch, number) = text.split_once('-')?;
    let (e, n) = (u64::from_str_radix(epoch, 16).ok()?, u32::from_str_radix(number, 16).ok()?);
    (text == format!("{e:016x}-{n:08x}")).then_some((e, n))
}

/// For people. Names that somebody else chose may hold a terminal's control characters, or a line break.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .chars()
            .try_for_each(|c| if c.is_control() { write!(f, "{}", c.escape_default()) } else { f.write_char(c) })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
