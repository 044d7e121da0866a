//! Restore points through a coordinator: listed, shown and verified by whoever may see them, as on the repository itself.

use std::fs;

use milkrun_tests::binary::ran;
use milkrun_tests::cluster::Cluster;
use milkrun_tests::noise;

#[test]
fn points_are_listed_shown_and_verified_through_a_coordinator() {
    let c = Cluster::in_directory();
    c.repository().run(["init"]).ok();
    let at = |name: &str| c.folder().join(name).display().to_string();
    fs::write(at("shop.img"), noise(3 << 20, 1)).unwrap();
    fs::write(at("m.yaml"), "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: shop}\n").unwrap();
    c.inventory("nodes: { node-a: }\n");
    let volume = format!("data={}", at("shop.img"));
    let backup = |args: &[&str]| {
        let base = ["--volume", &volume, "--manifests", &at("m.yaml"), "--json"];
        c.repository().run([&["backup"], args, &base].concat()).ok().json()["point"].as_str().unwrap().to_owned()
    };
    let points = [backup(&["shop"]), backup(&["till"]), backup(&["shop", "--cluster-id", "west"])];
    let _coordinator = c.coordinator();

    // The same documents as without a coordinator.
    for args in [&["points"][..], &["show", "shop"], &["show", &points[2]], &["verify"], &["verify", "till", "--data"]]
    {
        let args = [args, &["--json"]].concat();
        assert_eq!(c.run(&args).ok().json(), c.repository().run(&args).ok().json(), "{args:?}");
    }
    assert_eq!(c.run(&["points"]).ok().out, c.repository().run(["points"]).ok().out);
    assert_eq!(c.run(&["show", "shop"]).ok().out, c.repository().run(["show", "shop"]).ok().out);
    c.run(&["show", "nothing"]).fails(1, "no such restore point");
    c.run(&["show", "shop", "--cluster-id", "east"]).fails(1, "--cluster-id");

    // A role for one application covers the coordinator's own of that name, and no other.
    let ann = |args: &[&str]| ran(c.command("ann", &["view:shop"], args).output());
    let listed = ann(&["points", "--json"]).ok().json();
    let seen: Vec<_> = listed["points"].as_array().unwrap().iter().map(|p| p["point"].as_str().unwrap()).collect();
    assert_eq!(seen, [&points[0]]);
    ann(&["show", "shop"]).ok();
    ann(&["verify", "shop"]).ok();
    for args in [
        &["show", "till"][..],
        &["show", &points[2]],
        &["points", "till"],
        &["points", "shop", "--cluster-id", "west"],
        &["verify"],
        &["verify", &points[1]],
        &["verify", "shop", "--set-aside"],
    ] {
        ann(args).fails(1, "no role");
    }

    // What is damaged is found and set aside there, too.
    let packs = c.folder().join("repository/packs");
    for folder in fs::read_dir(packs).unwrap() {
        for pack in fs::read_dir(folder.unwrap().path()).unwrap() {
            let pack = pack.unwrap().path();
            let mut bytes = fs::read(&pack).unwrap();
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
            fs::write(pack, bytes).unwrap();
        }
    }
    let found = c.run(&["verify", "--data", "--set-aside", "--json"]);
    assert_eq!(found.code, Some(3), "{found:?}");
    assert!(found.json()["set_aside"].as_u64().unwrap() > 0, "{}", found.out);
    let again = c.repository().run(["backup", "till", "--volume", &volume, "--json"]).ok().json();
    assert_eq!(again["volumes"][0]["new_bytes"], 3 << 20, "{again}");

    // More objects that are no points than one message holds: all of them are named.
    const PLANTED: usize = 600;
    let of_an_application = fs::read_dir(c.folder().join("repository/points")).unwrap().next().unwrap().unwrap().path();
    let root = fs::read_dir(&of_an_application).unwrap().next().unwrap().unwrap().file_name().into_string().unwrap();
    for n in 0..PLANTED {
        let name = format!("{}{n:04x}", &root[..root.len() - 4]);
        fs::write(of_an_application.join(name), "rubbish").unwrap();
    }
    let listed = c.run(&["points", "--json"]).ok().json();
    assert!(listed["refused"].as_array().unwrap().len() >= PLANTED, "{listed}");
    let found = c.run(&["verify", "--json"]);
    assert_eq!(found.code, Some(3), "{found:?}");
    assert!(found.json()["findings"].as_array().unwrap().len() >= PLANTED, "{}", found.out);
}
