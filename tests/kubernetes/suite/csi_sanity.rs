//! The tests' CSI driver does what the specification says, as far as `csi-sanity` knows.

use crate::playground::Playground;

#[test]
fn the_driver_of_the_tests_passes_csi_sanity() {
    let Some(cluster) = Playground::up("the_driver_of_the_tests_passes_csi_sanity", 1, &[]) else { return };
    let program = cluster.program("csi-sanity").display().to_string();
    let said = cluster.on(
        "node1",
        &[
            &program,
            "--csi.endpoint=/run/csi.sock",
            "--csi.stagingdir=/run/sanity-staging",
            "--csi.mountdir=/run/sanity-mount",
            "--csi.testvolumesize=67108864",
            "--csi.testvolumeexpandsize=134217728",
            "--ginkgo.no-color",
        ],
    );
    let summary = said.lines().find(|line| line.contains(" Passed | ")).unwrap_or_default();
    let passed: u32 = summary.split("-- ").nth(1).and_then(|s| s.split(' ').next()).unwrap_or("0").parse().unwrap();
    assert!(passed >= 80 && summary.contains(" 0 Failed "), "{summary}");
}
