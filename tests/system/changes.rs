//! Single changed pages and changed-block lists: whatever is not read or is kept by reference, the volume is restored
//! bit for bit.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use milkrun_tests::binary::Milkrun;
use milkrun_tests::noise;
use serde_json::Value;

use crate::round_trip::volume;

const PAGE: usize = 4096;

/// A volume in a file, and its expected content.
struct Volume {
    m: Milkrun,
    folder: tempfile::TempDir,
    content: Vec<u8>,
    seed: u64,
}

impl Volume {
    fn new(content: Vec<u8>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let m = Milkrun::in_folder(folder.path());
        m.run(["init"]).ok();
        fs::write(folder.path().join("image"), &content).unwrap();
        Self { m, folder, content, seed: 7 }
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn pages(&self) -> usize {
        self.content.len() / PAGE
    }

    /// Changes so many random pages by a few bytes each. Returns the changed pages, in order, each once.
    fn change(&mut self, pages: usize) -> Vec<usize> {
        let mut changed: Vec<usize> = (0..pages)
            .map(|_| {
                self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                usize::try_from(self.seed >> 33).unwrap() % self.pages()
            })
            .collect();
        changed.sort_unstable();
        changed.dedup();
        let image = fs::File::options().write(true).open(self.image()).unwrap();
        for &page in &changed {
            let at = page * PAGE + 1000;
            self.content[at..at + 16].copy_from_slice(&noise(16, self.seed ^ page as u64));
            image.write_all_at(&self.content[at..at + 16], at as u64).unwrap();
        }
        changed
    }

    /// A list that names these pages.
    fn list(&self, since: &str, pages: &[usize]) -> String {
        let mut text = format!("since {since}\n");
        for page in pages {
            writeln!(text, "{} {PAGE}", page * PAGE).unwrap();
        }
        text.push_str("end\n");
        let path = self.folder.path().join("list");
        fs::write(&path, text).unwrap();
        format!("data={}", path.display())
    }

    fn back_up(&self, more: &[&str]) -> Value {
        let image = volume(&self.image());
        let words = ["backup", "app", "--json", "--volume", &image];
        self.m.run(words.iter().chain(more).copied()).ok().json()
    }

    /// Restores to a file and to a stream, and checks both. Returns how many reads each took.
    fn restores_whole(&self) -> [u64; 2] {
        let out = self.folder.path().join("out");
        ["--volume", "--stream"].map(|how| {
            let done = self.m.run(["restore", "app", how, &volume(&out), "--json"]).ok().json();
            assert!(fs::read(&out).unwrap() == self.content, "{how}");
            fs::remove_file(&out).unwrap();
            number(&done, "requests")
        })
    }
}

fn number(made: &Value, what: &str) -> u64 {
    made["volumes"][0][what].as_u64().unwrap()
}

fn point(made: &Value) -> &str {
    made["point"].as_str().unwrap()
}

fn notes(made: &Value) -> String {
    made["volumes"][0]["notes"].to_string()
}

fn mixed(mib: usize) -> Vec<u8> {
    [noise(mib << 19, 1), b"half of it can be compressed. ".repeat((mib << 19) / 30 + 1)].concat()[..mib << 20].to_vec()
}

#[test]
fn only_the_pages_that_changed_are_new() {
    let mut v = Volume::new(mixed(40));
    v.back_up(&[]);
    for generation in 0..4 {
        let changed = v.change(100 + generation);
        let made = v.back_up(&[]);
        assert_eq!(number(&made, "new_bytes"), (changed.len() * PAGE) as u64, "generation {generation}");
        v.restores_whole();
        assert_eq!(number(&v.back_up(&[]), "new_bytes"), 0);
    }
    v.m.run(["verify", "--data"]).ok();
    // Whole chunks are new if they are asked for; after that, single pages again.
    let changed = v.change(10);
    let made = v.back_up(&["--whole-chunks"]);
    assert!(number(&made, "new_bytes") > (changed.len() * PAGE * 4) as u64, "{made}");
    v.restores_whole();
    v.change(10);
    v.back_up(&[]);
    v.restores_whole();
    let changed = v.change(10);
    assert_eq!(number(&v.back_up(&[]), "new_bytes"), (changed.len() * PAGE) as u64);
    v.restores_whole();
    v.m.run(["verify", "--data"]).ok();
}

#[test]
fn only_the_ranges_of_a_list_are_read() {
    let mut v = Volume::new(mixed(40));
    let first = v.back_up(&[]);
    let changed = v.change(50);
    let made = v.back_up(&["--changed-from", &v.list(point(&first), &changed)]);
    let read = number(&made, "read_bytes") - number(&made, "sampled_bytes");
    assert_eq!((number(&made, "new_bytes"), read), ((changed.len() * PAGE) as u64, (changed.len() * PAGE) as u64));
    assert_eq!(number(&made, "lists_in_a_row"), 1);
    assert!(number(&made, "sampled_bytes") > 0);
    v.restores_whole();
    // A list of whole MiB, as some storage systems keep them: the ranges are read, and compared page by page.
    let changed = v.change(3);
    let coarse: String = changed.iter().map(|p| format!("{} {}\n", (p * PAGE) >> 20 << 20, 1 << 20)).collect();
    let list = v.list(point(&made), &[]);
    let path = v.folder.path().join("list");
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("end\n", &format!("{coarse}end\n"))).unwrap();
    let made = v.back_up(&["--changed-from", &list]);
    assert_eq!(number(&made, "new_bytes"), (changed.len() * PAGE) as u64);
    assert!(number(&made, "read_bytes") - number(&made, "sampled_bytes") <= 3 << 20, "{made}");
    assert_eq!(number(&made, "lists_in_a_row"), 2);
    v.restores_whole();
    let shown = v.m.run(["show", "app"]).ok().out;
    assert!(shown.contains("rests on lists of changes, 2 in a row"), "{shown}");
    // Nothing changed.
    let made = v.back_up(&["--changed-from", &v.list(point(&made), &[])]);
    assert_eq!((number(&made, "new_bytes"), number(&made, "lists_in_a_row")), (0, 3));
    v.restores_whole();
    // After three points in a row that rest on lists, the next one is read in full.
    let changed = v.change(5);
    let list = v.list(point(&made), &changed);
    let made = v.back_up(&["--changed-from", &list, "--full-every", "4"]);
    assert_eq!((number(&made, "lists_in_a_row"), number(&made, "read_bytes")), (0, v.content.len() as u64));
    v.restores_whole();
    // Whole chunks with a list: only the chunks of the pages that it names are read.
    let changed = v.change(5);
    let made = v.back_up(&["--whole-chunks", "--changed-from", &v.list(point(&made), &changed)]);
    let read = number(&made, "read_bytes") - number(&made, "sampled_bytes");
    assert!(read < 8 << 20 && number(&made, "new_bytes") <= read, "{made}");
    v.restores_whole();
    v.m.run(["verify", "--data"]).ok();
}

#[test]
fn a_wrong_list_is_noticed_and_everything_is_read() {
    let mut v = Volume::new(mixed(40));
    let first = v.back_up(&[]);
    // One of fifty changed pages is missing: a sample of some thousand pages has at least one of them.
    let changed = v.change(v.pages() / 25);
    let named: Vec<usize> = changed.iter().copied().step_by(2).collect();
    let made = v.back_up(&["--changed-from", &v.list(point(&first), &named)]);
    assert!(notes(&made).contains("THE LIST OF CHANGES IS WRONG"), "{made}");
    assert_eq!((number(&made, "lists_in_a_row"), number(&made, "read_bytes") >= v.content.len() as u64), (0, true));
    v.restores_whole();
    // Data in a former hole is a change, too.
    let mut v = Volume::new([noise(1 << 20, 1), vec![0; 30 << 20]].concat());
    let first = v.back_up(&[]);
    v.change(2000);
    let made = v.back_up(&["--changed-from", &v.list(point(&first), &[])]);
    assert!(notes(&made).contains("THE LIST OF CHANGES IS WRONG"), "{made}");
    v.restores_whole();
}

#[test]
fn a_list_that_does_not_fit_is_not_used() {
    let mut v = Volume::new(mixed(20));
    let first = v.back_up(&["--whole-chunks"]);
    // If the parent was made without digests, the list can't be checked.
    let changed = v.change(5);
    let made = v.back_up(&["--changed-from", &v.list(point(&first), &changed)]);
    assert!(notes(&made).contains("no digests of pages"), "{made}");
    v.restores_whole();
    // The list is relative to another point.
    v.change(5);
    let made = v.back_up(&["--changed-from", &v.list(point(&first), &[])]);
    assert!(notes(&made).contains("is since"), "{made}");
    assert_eq!(number(&made, "lists_in_a_row"), 0);
    v.restores_whole();
    // A volume that grew: everything behind the parent's end is read, whatever the list says.
    v.content.extend(noise((17 << 20) + 5, 9));
    fs::write(v.image(), &v.content).unwrap();
    let made = v.back_up(&["--changed-from", &v.list(point(&made), &[])]);
    assert_eq!(number(&made, "lists_in_a_row"), 1);
    v.restores_whole();
    // A volume that shrank to an end within a page: its list is right.
    v.content.truncate((18 << 20) + 77);
    fs::write(v.image(), &v.content).unwrap();
    let made = v.back_up(&["--changed-from", &v.list(point(&made), &[])]);
    assert_eq!(notes(&made), "[]");
    v.restores_whole();
    // A volume that grew from an end within a page: its former last page now belongs to another chunk. The sample
    // handles this.
    v.content.extend(noise(9000, 5));
    fs::write(v.image(), &v.content).unwrap();
    let last = (18 << 20) / PAGE;
    let made = v.back_up(&["--changed-from", &v.list(point(&made), &[last, last + 1, last + 2])]);
    assert_eq!(notes(&made), "[]");
    v.restores_whole();
    for _ in 0..3 {
        v.change(10);
        v.back_up(&[]);
        v.restores_whole();
    }
    v.m.run(["verify", "--data"]).ok();
}

#[test]
fn lists_that_make_no_sense_are_refused_before_a_byte_moves() {
    let v = Volume::new(noise(1 << 20, 1));
    let image = volume(&v.image());
    let run = |path: &Path| {
        let list = format!("data={}", path.display());
        v.m.run(["backup", "app", "--volume", &image, "--changed-from", &list])
    };
    let path = v.folder.path().join("list");
    v.back_up(&[]);
    for (text, said) in [
        ("0 4096\n", "does not say since which restore point"),
        ("since rp-20261124t120000z-0123456789abcdef\n# fine\n4096 a lot\n", "line 3"),
        ("since rp-20261124t120000z-0123456789abcdef\n0 18446744073709551615\n", "line 2"),
        ("since rp-20261124t120000z-0123456789abcdef\n0 4096\n", "was cut short"),
    ] {
        fs::write(&path, text).unwrap();
        run(&path).fails(1, said);
    }
    run(&v.folder.path().join("missing")).fails(1, "can't read the list of changes");
    let list = |name: &str| format!("{name}={}", path.display());
    v.m.run(["backup", "app", "--volume", &image, "--changed-from", &list("other")]).fails(2, "none is called other");
    let twice = ["--changed-from", &list("data"), "--changed-from", &list("data")];
    v.m.run(["backup", "app", "--volume", &image].into_iter().chain(twice)).fails(2, "two lists of changes");
    assert_eq!(v.m.run(["points", "--json"]).ok().json()["points"].as_array().unwrap().len(), 1);
}

#[test]
fn a_hundred_generations_stay_within_their_budgets() {
    let mut v = Volume::new(noise(48 << 20, 3));
    let mut made = v.back_up(&[]);
    let data = v.content.len() as u64;
    let (mut changed_bytes, mut new_bytes, mut requests) = (0, 0, 0);
    for generation in 1..=100 {
        let changed = v.change(v.pages() / 100);
        let list = v.list(point(&made), &changed);
        made = v.back_up(&["--changed-from", &list]);
        changed_bytes += (changed.len() * PAGE) as u64;
        new_bytes += number(&made, "new_bytes");
        requests = requests.max(number(&made, "restore_requests"));
        // Fragmentation that arises in this generation is removed by the next one.
        let opened = number(&made, "restore_opened_bytes");
        assert!(opened * 100 <= data * 153, "generation {generation} opens {opened} of {data}");
        if generation % 50 == 0 {
            // A stream opens a chunk once for each region that uses it, and not for each piece.
            let [anyhow, in_order] = v.restores_whole();
            assert!(in_order <= anyhow * 4, "{in_order} reads in order, {anyhow} otherwise");
        }
    }
    // Three regions of at most 65 packs each, with gaps in the first.
    println!("requests {requests}; {new_bytes} new for {changed_bytes} changed");
    assert!(requests <= 3 * 80, "{requests}");
    assert!(new_bytes <= changed_bytes * 2, "{new_bytes} for {changed_bytes}");
    v.m.run(["verify", "--data"]).ok();
}
