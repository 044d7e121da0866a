//! Compression that gets harder while the line to the store is what a backup waits for.

use std::fs;

use milkrun_tests::cluster::Cluster;
use milkrun_tests::noise;

/// Words that come by chance, the first ones more often: harder compression makes something of it.
fn text(len: usize) -> Vec<u8> {
    let syllables =
        ["ka", "lo", "mi", "ren", "su", "ta", "vor", "ne", "shi", "pal", "or", "eth", "in", "dra", "gu", "wes"];
    let chance = noise(len, 3);
    let mut out = Vec::with_capacity(len + 16);
    for two in chance.chunks_exact(2) {
        let word = (u32::from(two[0]) * u32::from(two[1]) / 16).wrapping_mul(2_654_435_761);
        for n in 0..=(word >> 28) % 4 {
            out.extend_from_slice(syllables[(word >> (4 * n)) as usize % 16].as_bytes());
        }
        out.push(b' ');
        if out.len() >= len {
            break;
        }
    }
    out.truncate(len);
    out
}

#[test]
fn what_waits_for_the_line_is_compressed_harder() {
    const SIZE: usize = 256 << 20;
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
    c.agent_args.extend(["--limit-upload".into(), "8MiB".into(), "--memory".into(), "64MiB".into()]);
    let _coordinator = c.coordinator();
    let _agent = c.agent("node-a");
    c.wait_for_agents(&["node-a"]);
    let stored = |application: &str, level: &str| {
        let made = c.run(&["backup", application, "--level", level, "--json"]).ok().json();
        made["stored_bytes"].as_u64().unwrap()
    };
    let fixed = stored("fixed", "3");
    // While the cores are busy with other things (other tests), it is rightly not compressed harder: then once more.
    let mut tried = Vec::new();
    let adapting = ["adapting-1", "adapting-2", "adapting-3"].into_iter().find(|application| {
        tried.push(stored(application, "auto"));
        tried.last().is_some_and(|bytes| bytes + (128 << 10) < fixed)
    });
    let Some(adapting) = adapting else { panic!("{tried:?} bytes of {fixed}") };
    let back = c.folder().join("data.back");
    c.repository().run(["restore", adapting, "--volume", &format!("data={}", back.display())]).ok();
    assert!(fs::read(c.folder().join("data.img")).unwrap() == fs::read(back).unwrap());
}
