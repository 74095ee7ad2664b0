//! What every disk must do: each test runs on the machine's own and on the simulated one.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

use super::{Disk, DiskFile, OpenMode, OsDisk, SimDisk};

/// Runs a test on a fresh directory of each disk.
fn on_each_disk(test: impl Fn(&dyn Disk, &Path)) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    test(&OsDisk, dir.path());
    let sim = SimDisk::new(1);
    let dir = PathBuf::from("/data");
    sim.create_dir_all(&dir).expect("an empty disk");
    test(&sim, &dir);
}

fn kind<T>(result: io::Result<T>) -> Option<io::ErrorKind> {
    result.err().map(|error| error.kind())
}

fn write(file: &dyn DiskFile, position: u64, bytes: &[u8]) {
    file.write_at(position, &[IoSlice::new(bytes)]).expect("room");
}

fn content(disk: &dyn Disk, path: &Path) -> Vec<u8> {
    let file = disk.open(path, OpenMode::Read).expect("there");
    let mut bytes = vec![0; file.len().expect("a length") as usize];
    file.read_exact_at(0, &mut bytes).expect("all of it");
    bytes
}

#[test]
fn bytes_are_read_as_written_and_holes_as_zeros() {
    on_each_disk(|disk, dir| {
        let file = disk.open(&dir.join("f"), OpenMode::CreateNew).expect("new");
        assert!(file.is_empty().expect("a length"));
        file.write_at(1000, &[IoSlice::new(b"de"), IoSlice::new(b""), IoSlice::new(b"parted")])
            .expect("room");
        write(&*file, 1002, b"--");
        let mut buf = [9; 12];
        assert_eq!(file.read_at(998, &mut buf).expect("read"), 10);
        assert_eq!(&buf, b"\0\0de--rted\x09\x09");
        assert_eq!(file.read_at(1008, &mut buf).expect("at the end"), 0);
        assert_eq!(file.read_at(5000, &mut buf).expect("behind the end"), 0);
        assert_eq!(kind(file.read_exact_at(1000, &mut buf)), Some(io::ErrorKind::UnexpectedEof));
        file.allocate(3000).expect("room");
        file.allocate(10).expect("already there");
        assert_eq!(file.len().expect("a length"), 3000);
        file.sync_data().expect("synced");
        let bytes = content(disk, &dir.join("f"));
        assert_eq!((&bytes[1000..1010], bytes.len()), (b"de--rted\0\0".as_slice(), 3000));
    });
}

#[test]
fn modes_are_kept_to() {
    on_each_disk(|disk, dir| {
        let path = dir.join("f");
        assert_eq!(kind(disk.open(&path, OpenMode::Read)), Some(io::ErrorKind::NotFound));
        assert_eq!(kind(disk.open(&path, OpenMode::ReadWrite)), Some(io::ErrorKind::NotFound));
        write(&*disk.open(&path, OpenMode::CreateNew).expect("new"), 0, b"a");
        assert_eq!(kind(disk.open(&path, OpenMode::CreateNew)), Some(io::ErrorKind::AlreadyExists));
        let reader = disk.open(&path, OpenMode::Read).expect("there");
        assert!(reader.write_at(0, &[IoSlice::new(b"b")]).is_err());
        write(&*disk.open(&path, OpenMode::ReadWrite).expect("there"), 1, b"b");
        assert_eq!(reader.len().expect("a length"), 2);
        let orphan = dir.join("missing").join("f");
        assert_eq!(kind(disk.open(&orphan, OpenMode::CreateNew)), Some(io::ErrorKind::NotFound));
    });
}

#[test]
fn names_come_move_and_go() {
    on_each_disk(|disk, dir| {
        disk.create_dir_all(&dir.join("b/c")).expect("room");
        disk.create_dir_all(&dir.join("b/c")).expect("already there");
        for name in ["z", "a"] {
            write(&*disk.open(&dir.join(name), OpenMode::CreateNew).expect("new"), 0, name.as_bytes());
        }
        assert_eq!(disk.list(dir).expect("there"), ["a", "b", "z"]);
        let kept_open = disk.open(&dir.join("z"), OpenMode::Read).expect("there");
        disk.rename(&dir.join("a"), &dir.join("z")).expect("replaces");
        disk.sync_dir(dir).expect("synced");
        assert_eq!(
            (disk.list(dir).expect("there").as_slice(), content(disk, &dir.join("z"))),
            (["b".to_owned(), "z".to_owned()].as_slice(), b"a".to_vec())
        );
        disk.rename(&dir.join("z"), &dir.join("b/y")).expect("into another directory");
        assert_eq!(disk.list(&dir.join("b")).expect("there"), ["c", "y"]);
        disk.remove(&dir.join("b/y")).expect("there");
        disk.sync_dir(&dir.join("b")).expect("synced");
        let mut byte = [0];
        kept_open.read_exact_at(0, &mut byte).expect("a file without a name can be read");
        assert_eq!(&byte, b"z");
        assert!(disk.remove_dir(&dir.join("b")).is_err(), "not empty");
        disk.remove_dir(&dir.join("b/c")).expect("empty");
        disk.remove_dir(&dir.join("b")).expect("empty");
        assert_eq!(disk.list(dir).expect("there"), Vec::<String>::new());
    });
}

#[test]
fn what_is_not_there_is_not_found() {
    on_each_disk(|disk, dir| {
        let missing = dir.join("missing");
        assert_eq!(kind(disk.list(&missing)), Some(io::ErrorKind::NotFound));
        assert_eq!(kind(disk.remove(&missing)), Some(io::ErrorKind::NotFound));
        assert_eq!(kind(disk.remove_dir(&missing)), Some(io::ErrorKind::NotFound));
        assert_eq!(kind(disk.rename(&missing, &dir.join("b"))), Some(io::ErrorKind::NotFound));
        assert_eq!(kind(disk.sync_dir(&missing)), Some(io::ErrorKind::NotFound));
        disk.free_bytes(dir).expect("known");
    });
}

#[test]
fn a_lock_has_one_holder() {
    on_each_disk(|disk, dir| {
        let path = dir.join("lock");
        let held = disk.lock(&path).expect("free");
        assert_eq!(kind(disk.lock(&path)), Some(io::ErrorKind::WouldBlock));
        drop(held);
        drop(disk.lock(&path).expect("free again"));
    });
}
