//! The compression level rises while a backup waits for uploads.

use std::fs;

use milkrun_tests::cluster::Cluster;
use milkrun_tests::noise;

/// Random words, and repetitions of text that came shortly before: a higher level finds longer ones.
fn text(len: usize) -> Vec<u8> {
    const LATELY: usize = 30_000;
    let syllables =
        ["ka", "lo", "mi", "ren", "su", "ta", "vor", "ne", "shi", "pal", "or", "eth", "in", "dra", "gu", "wes"];
    let chance = noise(len, 3);
    let mut chance = chance.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);
    let mut out: Vec<u8> = Vec::with_capacity(len + 16);
    while let Some(n) = chance.next().filter(|_| out.len() < len) {
        if out.len() > LATELY && n % 3 > 0 {
            let from = out.len() - 12 - (n >> 8) % (LATELY - 12);
            out.extend_from_within(from..from + 4 + (n >> 4) % 8);
        } else {
            for k in 0..=(n >> 28) % 4 {
                out.extend_from_slice(syllables[(n >> (4 * k + 4)) % 16].as_bytes());
            }
            out.push(b' ');
        }
    }
    out.truncate(len);
    out
}

#[test]
fn a_backup_that_waits_for_uploads_compresses_harder() {
    // Compressed, this is more than the agent's memory holds.
    const SIZE: usize = 192 << 20;
    let mut c = Cluster::in_directory();
    c.repository().run(["init"]).ok();
    let at = |name: &str| c.folder().join(name).display().to_string();
    c.inventory(&format!(
        "nodes: {{ node-a: }}
applications:
  fixed: {{ volumes: {{ data: {{ at: {{ node-a: {0} }} }} }} }}
  adapting-1: {{ volumes: {{ data: {{ at: {{ node-a: {0} }} }} }} }}
  adapting-2: {{ volumes: {{ data: {{ at: {{ node-a: {0} }} }} }} }}
  adapting-3: {{ volumes: {{ data: {{ at: {{ node-a: {0} }} }} }} }}
",
        at("data.img")
    ));
    fs::write(at("data.img"), text(SIZE)).unwrap();
    c.agent_args.extend(["--memory".into(), "64MiB".into()]);
    let _coordinator = c.coordinator();
    let quick = c.agent("node-a");
    c.wait_for_agents(&["node-a"]);
    let stored = |c: &Cluster, application: &str, level: &str| {
        let made = c.run(&["backup", application, "--level", level, "--json"]).ok().json();
        // Maps and the journal are not counted: a slow backup writes more of them.
        made["volumes"][0]["stored_bytes"].as_u64().unwrap()
    };
    let fixed = stored(&c, "fixed", "3");
    drop(quick);
    // The upload is so slow that even slow cores, with another test at the same time, are mostly idle.
    c.agent_args.extend(["--limit-upload".into(), "4MiB".into()]);
    let _slow = c.agent("node-a");
    c.wait_for_agents(&["node-a"]);
    // If the cores are busy with other tests, the level rightly does not rise: then the test is tried once more.
    let mut tried = Vec::new();
    let adapting = ["adapting-1", "adapting-2", "adapting-3"].into_iter().find(|application| {
        tried.push(stored(&c, application, "auto"));
        tried.last().is_some_and(|bytes| bytes + fixed / 200 < fixed)
    });
    let Some(adapting) = adapting else { panic!("{tried:?} bytes of {fixed}") };
    let back = c.folder().join("data.back");
    c.repository().run(["restore", adapting, "--volume", &format!("data={}", back.display())]).ok();
    assert!(fs::read(c.folder().join("data.img")).unwrap() == fs::read(back).unwrap());
}
