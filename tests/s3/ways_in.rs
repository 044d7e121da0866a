//! Ways to connect to a server: TLS with a private CA, a proxy, path style, a bandwidth limit.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use milkrun_tests::noise;
use milkrun_tests::seaweed::Seaweed;
use milkrun_tests::troublemaker::{Trouble, Troublemaker};
use tokio::runtime::Runtime;

pub(crate) fn run(server: &Seaweed, runtime: &Runtime) {
    a_private_ca_is_trusted_when_named(server, runtime);
    a_proxy_is_used(server, runtime);
    uploads_keep_to_their_bound(server);
    refusals_come_with_advice(server, runtime);
    a_store_that_hangs_does_not_delay_a_stop(server, runtime);
}

/// Kubernetes sends SIGKILL 30 s after SIGTERM: the command must have ended before.
fn a_store_that_hangs_does_not_delay_a_stop(server: &Seaweed, runtime: &Runtime) {
    let folder = tempfile::tempdir().unwrap();
    let between = runtime.block_on(Troublemaker::start(&server.endpoint()));
    let endpoint = format!("http://{}", between.address());
    let m = server.milkrun("locked-bucket", "hung", folder.path()).env("AWS_ENDPOINT_URL", &endpoint).aloud();
    m.run(["init", "--lock", "none"]).ok();
    let image = folder.path().join("image");
    std::fs::write(&image, noise(64 << 20, 5)).unwrap();
    let hung = Arc::new(AtomicBool::new(false));
    let seen = hung.clone();
    between.script(move |_, request| {
        let packs = request.method() == hyper::Method::PUT && request.uri().path().contains("/packs/");
        (seen.fetch_or(packs, Ordering::SeqCst) || packs).then_some(Trouble::Stall)
    });
    let mut command = m.command(["backup", "shop", "--volume", &format!("data={}", image.display())]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while !hung.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let began = Instant::now();
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let ended = milkrun_tests::binary::ran(child.wait_with_output());
    assert!(began.elapsed() < Duration::from_secs(28), "{:?}", began.elapsed());
    ended.fails(1, "did not stop within 20 s");
    between.behave();
    assert_eq!(m.run(["points", "--json"]).ok().json()["points"].as_array().unwrap().len(), 0);
}

fn refusals_come_with_advice(server: &Seaweed, runtime: &Runtime) {
    let folder = tempfile::tempdir().unwrap();
    let between = runtime.block_on(Troublemaker::start(&server.endpoint()));
    let endpoint = format!("http://{}", between.address());
    let m = server.milkrun("locked-bucket", "refused", folder.path()).env("AWS_ENDPOINT_URL", &endpoint);
    m.run(["init", "--lock", "none"]).ok();
    for (code, exit, wanted) in [
        ("AccessDenied", 1, "Check the credentials and the bucket policy"),
        ("RequestTimeTooSkewed", 1, "Set the clock of this host right"),
    ] {
        between.script(move |_, _| Some(Trouble::Answer(403, code)));
        m.run(["points"]).fails(exit, wanted);
        between.behave();
    }
    m.run(["points"]).ok();
}

fn a_private_ca_is_trusted_when_named(server: &Seaweed, runtime: &Runtime) {
    let folder = tempfile::tempdir().unwrap();
    let (tls, pem) = runtime.block_on(Troublemaker::start_tls(&server.endpoint()));
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    let image = folder.path().join("image");
    std::fs::write(&image, noise(3 << 20, 1)).unwrap();
    let (out, volume) = (folder.path().join("out"), format!("data={}", image.display()));
    let endpoint = format!("https://localhost:{}", tls.address().port());
    let m = server.milkrun("locked-bucket", "tls", folder.path()).env("AWS_ENDPOINT_URL", &endpoint);
    let ca = ca.display().to_string();
    m.run(["init", "--ca-file", &ca, "--lock", "none"]).ok();
    m.run(["backup", "shop", "--volume", &volume, "--ca-file", &ca]).ok();
    assert!(tls.requests() > 10, "went another way");
    // The SDK's own variable works, too, for metadata and packs.
    let by_variable = server.milkrun("locked-bucket", "tls", folder.path());
    let by_variable = by_variable.env("AWS_ENDPOINT_URL", &endpoint).env("AWS_CA_BUNDLE", &ca);
    by_variable.run(["restore", "shop", "--volume", &format!("data={}", out.display())]).ok();
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&image).unwrap());

    for (content, wanted) in [("no certificate", "no PEM certificate"), ("", "no PEM certificate")] {
        let bad = folder.path().join("bad.pem");
        std::fs::write(&bad, content).unwrap();
        m.run(["points", "--ca-file", &bad.display().to_string()]).fails(1, wanted);
    }
    m.run(["points", "--ca-file", "/no/such/ca.pem"]).fails(1, "/no/such/ca.pem");
    // If the CA is not trusted, nothing is known about the store, and the message says why.
    m.run(["points"]).fails(4, "certificate");
}

/// The endpoint has a name that can't be resolved: only the proxy knows its address.
fn a_proxy_is_used(server: &Seaweed, runtime: &Runtime) {
    let folder = tempfile::tempdir().unwrap();
    let proxy = runtime.block_on(Troublemaker::start(&server.endpoint()));
    let image = folder.path().join("image");
    std::fs::write(&image, noise(3 << 20, 2)).unwrap();
    let out = folder.path().join("out");
    let m = server
        .milkrun("locked-bucket", "proxied", folder.path())
        .env("AWS_ENDPOINT_URL", "http://s3.test.invalid:9000")
        .env("http_proxy", &format!("http://{}", proxy.address()));
    m.run(["init", "--s3-addressing", "path"]).ok();
    m.run(["backup", "shop", "--volume", &format!("data={}", image.display())]).ok();
    let before = proxy.requests();
    m.run(["restore", "shop", "--volume", &format!("data={}", out.display())]).ok();
    assert!(proxy.requests() > before);
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&image).unwrap());
}

fn uploads_keep_to_their_bound(server: &Seaweed) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    std::fs::write(&image, noise(6 << 20, 3)).unwrap();
    let volume = format!("data={}", image.display());
    for m in [
        server.milkrun("locked-bucket", "bounded", folder.path()),
        milkrun_tests::binary::Milkrun::in_folder(folder.path()),
    ] {
        m.run(["init", "--lock", "none"]).ok();
        let began = Instant::now();
        m.run(["backup", "shop", "--volume", &volume, "--limit-upload", "2MiB"]).ok();
        // 6 MiB at 2 MiB a second take three seconds; the limiter may be one second ahead.
        assert!(began.elapsed() > Duration::from_secs(2), "{:?} to {}", began.elapsed(), m.url());
    }
}
