//! Nodes in one process, on disks that lose what was not synced and over a network that loses what it is told to.

mod cluster;
mod mesh;
mod storage;

use std::path::{Path, PathBuf};

use quire_storage::disk::{Disk, SimDisk};

const DIR: &str = "/data/metadata";

/// A disk with a data directory, as the broker makes it before it opens anything in it.
fn disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.create_dir_all(Path::new("/data")).expect("the disk has room");
    disk.sync_dir(Path::new("/")).expect("it is there");
    disk
}

fn dir() -> PathBuf {
    PathBuf::from(DIR)
}
