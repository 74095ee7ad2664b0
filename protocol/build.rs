//! Compiles the control messages' schemas; needs no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(
        ["control.proto", "metadata.proto", "peer.proto", "join.proto", "raft.proto"],
        ["proto"],
    )?;
    prost_build::Config::new()
        .btree_map(["."])
        .bytes([".quire.peer.v1", ".quire.raft.v1"])
        .compile_fds(files)?;
    // Uses messages of the metadata, which stand in their own module.
    let files = protox::compile(["controller.proto"], ["proto"])?;
    let mut config = prost_build::Config::new();
    config.btree_map(["."]).extern_path(".quire.metadata.v1", "crate::rpc::metadata");
    config.compile_fds(files)?;
    Ok(())
}
