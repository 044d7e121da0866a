//! Object keys: the names of design section 5, made in one place.

use std::fmt::{self, Write};

use crate::id::{AppHash, DomainId, KeyId, NoteId, PackId, PointId, RunId, SegmentId};

/// A key within a repository; slash-separated, no empty, `.` or `..` part.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// From text that came from a listing or is written here.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it can be a relative path that stays inside its directory.
    pub fn is_sound(&self) -> bool {
        !self.0.is_empty()
            && !self.0.contains(['\0', '\\'])
            && self.0.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
    }

    /// No object at such a key is longer, in bytes. Whoever may write to a bucket can put anything there; what is longer is
    /// refused before it is read.
    pub fn length_max(&self) -> u64 {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        match self.0.split_once('/').map_or(self.0.as_str(), |(folder, _)| folder) {
            // 32 MiB by default, and never more than a slot's offset can say of many chunks.
            "packs" => 512 * MIB,
            // Volumes with their notes; commit refuses a longer one.
            "points" => 4 * MIB,
            // About 200 bytes for each pack that a point needs: 2.6 million packs.
            "placements" => 512 * MIB,
            // 56 bytes for each chunk; what is merged holds at most 6 million.
            "index" => 512 * MIB,
            // 16 bytes for each pack.
            "damaged" => 64 * MIB,
            // 3 MB, or one record that has more: what an order brings, 256 MiB of manifests at most.
            "journal" => 320 * MIB,
            // What an order brings: 256 MiB of manifests at most.
            "leases" if self.0.starts_with(Self::all_waiting()) => 320 * MIB,
            // `repository.json`, keys, leases, beats, probes.
            _ => 64 * KIB,
        }
    }

    /// `repository.json`
    pub fn config() -> Self {
        Self("repository.json".into())
    }

    /// Whether its content, wrapped as it is, is for its owner's eyes alone.
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

    /// The domain from the key.
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

    /// The pack from its key.
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

    /// The parts of a root's key.
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

    /// The id of an index segment from its key.
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

    /// The run of an order that waits from the key.
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

    /// Epoch and beat of a leader from the key.
    pub fn parse_leader(&self) -> Option<(u64, u32)> {
        series(self.0.strip_prefix(Self::leaders())?)
    }

    /// The run of a lease from the key.
    pub fn parse_lease(&self) -> Option<RunId> {
        self.0.strip_prefix("leases/")?.parse().ok()
    }

    /// `ended/<run>`: what all ends of a run begin with.
    pub fn ends(run: &RunId) -> String {
        format!("ended/{run}")
    }

    /// `ended/<run>-<random>`. No folder of the run's: where an object and a folder exclude each other, somebody could take its name.
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

    /// Epoch and number of a journal's object from the key.
    pub fn parse_journal(&self) -> Option<(u64, u32)> {
        series(self.0.strip_prefix("journal/")?.split_once('/')?.1)
    }

    /// `probe/<random>`: what `init` tries the locks on.
    pub fn probe(id: &KeyId) -> Self {
        Self(format!("probe/{id}"))
    }
}

/// `<epoch>-<number>`, in the one form that is written.
fn series(text: &str) -> Option<(u64, u32)> {
    let (epoch, number) = text.split_once('-')?;
    let (e, n) = (u64::from_str_radix(epoch, 16).ok()?, u32::from_str_radix(number, 16).ok()?);
    (text == format!("{e:016x}-{n:08x}")).then_some((e, n))
}

/// For people: names that somebody else chose may hold what a terminal obeys, or a line break.
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
