//! Compiles the .proto files with `protox`: no system `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files =
        ["milkrun/agent/v1/agent.proto", "milkrun/control/v1/control.proto", "milkrun/identity/v1/enrollment.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
