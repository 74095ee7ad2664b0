//! File systems that fail as real ones do, on the real kernel: one that loses what was not synced, one whose writes back
//! to the device fail, one that is full. All are mounted for a test alone, from files in memory, and gone after it.
//!
//! ```text
//!   data directory ─► ext4 ─► loop device ─► image ─► tmpfs
//!                      │                               └ full: write-back fails, and a sync tells (once)
//!                      └ shut down without its journal: what was not synced is gone after the next mount
//! ```
//! Only root may mount: [`unavailable`] says why a test has to be skipped.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::ioctl;

/// How long a file system may be in use after the processes on it were killed.
const UNMOUNT_TIME_MAX: Duration = Duration::from_secs(20);
/// `FS_IOC_SHUTDOWN`, `_IOR('X', 125, __u32)`.
const FS_IOC_SHUTDOWN: ioctl::Opcode = 0x8004_587d;
/// `FS_SHUTDOWN_FLAGS_NOLOGFLUSH`: not even the journal's last transaction is written.
const NO_LOG_FLUSH: u32 = 2;

/// Why such file systems can not be made here, if they can not.
pub fn unavailable() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root may mount file systems".to_owned());
    }
    let is_missing = |tool: &&&str| {
        let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
        !folders.iter().any(|folder| Path::new(folder).join(tool).exists())
    };
    if let Some(tool) = ["mkfs.ext4", "mount", "umount"].iter().find(is_missing) {
        return Some(format!("{tool} is not installed"));
    }
    let probe = tempfile_folder().and_then(|folder| {
        let mounted = Mount::tmpfs(&folder, 1 << 20);
        let _ = fs::remove_dir(&folder);
        mounted.map(drop)
    });
    probe.err().map(|error| format!("{error:#}"))
}

/// An ext4 file system whose power can be cut.
#[derive(Debug)]
pub struct LossyDisk {
    /// Where it is mounted; dropped first.
    mount: Option<Mount>,
    point: PathBuf,
    image: PathBuf,
    /// Takes up the room that write-back would need.
    filler: PathBuf,
    _memory: Mount,
}

impl LossyDisk {
    /// One of `bytes`, mounted in `folder`.
    ///
    /// # Errors
    /// If a step fails.
    pub fn new(folder: &Path, bytes: u64) -> Result<LossyDisk> {
        // Room for all of it, and the tmpfs's own.
        LossyDisk::with(folder, bytes, bytes + bytes / 8, &[])
    }

    /// One of `bytes` of which the device behind it holds only `device_bytes`: when they are used up, writing back fails.
    /// Without a journal, whose failure would end the file system instead.
    ///
    /// # Errors
    /// If a step fails.
    pub fn with_small_device(folder: &Path, bytes: u64, device_bytes: u64) -> Result<LossyDisk> {
        LossyDisk::with(folder, bytes, device_bytes, &["-O", "^has_journal"])
    }

    fn with(folder: &Path, bytes: u64, device_bytes: u64, options: &[&str]) -> Result<LossyDisk> {
        let (memory, point) = (folder.join("device"), folder.join("data"));
        fs::create_dir_all(&memory)?;
        fs::create_dir_all(&point)?;
        let device = Mount::tmpfs(&memory, device_bytes)?;
        let image = memory.join("image");
        File::create_new(&image)?.set_len(bytes)?;
        // Inode tables are written at once: a thread that writes them later would meet the full device before the test.
        let lazy = ["-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"];
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).args(lazy).args(options).arg(&image))?;
        let mut disk =
            LossyDisk { mount: None, point, image, filler: memory.join("filler"), _memory: device };
        disk.mount()?;
        Ok(disk)
    }

    /// The folder that it is mounted on.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// From now on nothing reaches the device any more, as when the power goes: what was not synced is lost. Processes on
    /// it get errors; kill them, and then [`LossyDisk::restore_power`].
    ///
    /// # Errors
    /// If the file system does not support it.
    pub fn cut_power(&self) -> Result<()> {
        let root = File::open(&self.point)?;
        // SAFETY: FS_IOC_SHUTDOWN reads one u32 through the pointer, which `Setter` gives it, and keeps nothing of it.
        let shut = unsafe {
            let flags = ioctl::Setter::<FS_IOC_SHUTDOWN, u32>::new(NO_LOG_FLUSH);
            ioctl::ioctl(&root, flags)
        };
        shut.context("shutting the file system down")
    }

    /// Mounts what the device holds.
    ///
    /// # Errors
    /// If a process still uses the file system, or it can not be mounted any more.
    pub fn restore_power(&mut self) -> Result<()> {
        if let Some(mount) = self.mount.take() {
            mount.unmount()?;
        }
        self.mount()
    }

    /// Uses up what is left of a small device, but for so many bytes: writing back fails soon.
    ///
    /// # Errors
    /// If not even the bytes to be left are there.
    pub fn fill_device(&self, left: u64) -> Result<()> {
        let stat = rustix::fs::statvfs(self.filler.parent().context("it lies in a folder")?)?;
        let free = stat.f_bavail * stat.f_frsize;
        let filler = File::create(&self.filler)?;
        let len = free.checked_sub(left).context("the device is fuller than that")?;
        rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, len)?;
        Ok(())
    }

    /// Gives back what [`LossyDisk::fill_device`] took.
    ///
    /// # Errors
    /// If it took nothing.
    pub fn free_device(&self) -> Result<()> {
        Ok(fs::remove_file(&self.filler)?)
    }

    fn mount(&mut self) -> Result<()> {
        let mut mount = Command::new("mount");
        // An error of the device is to be seen by who syncs, and not to stop the machine.
        mount.args(["-t", "ext4", "-o", "loop,errors=continue"]).arg(&self.image).arg(&self.point);
        run(&mut mount)?;
        self.mount = Some(Mount(self.point.clone()));
        Ok(())
    }
}

/// A file system in memory that is soon full.
#[derive(Debug)]
pub struct SmallDisk {
    mount: Mount,
}

impl SmallDisk {
    /// One of `bytes`, mounted in `folder`.
    ///
    /// # Errors
    /// If it can not be mounted.
    pub fn new(folder: &Path, bytes: u64) -> Result<SmallDisk> {
        let point = folder.join("data");
        fs::create_dir_all(&point)?;
        Ok(SmallDisk { mount: Mount::tmpfs(&point, bytes)? })
    }

    /// The folder that it is mounted on.
    pub fn path(&self) -> &Path {
        &self.mount.0
    }

    /// Fills it up to the last byte; what was taken is given back when the guard is dropped.
    ///
    /// # Errors
    /// If no file can be made.
    pub fn fill(&self) -> Result<Filler> {
        let filler = Filler(self.path().join("filler"));
        let mut file = File::create(&filler.0)?;
        for len in [1 << 20, 4096, 1] {
            let block = vec![0x5a; len];
            while file.write_all(&block).is_ok() {}
        }
        Ok(filler)
    }
}

/// What fills a [`SmallDisk`].
#[derive(Debug)]
pub struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        // Nothing depends on it: the whole disk goes with the test.
        let _ = fs::remove_file(&self.0);
    }
}

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(point: &Path, bytes: u64) -> Result<Mount> {
        let size = format!("size={bytes}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(point))?;
        Ok(Mount(point.to_owned()))
    }

    /// Waits for processes that were killed to let go of it.
    fn unmount(self) -> Result<()> {
        let started = Instant::now();
        loop {
            match run(Command::new("umount").arg(&self.0)) {
                Ok(()) => break,
                Err(error) if started.elapsed() > UNMOUNT_TIME_MAX => return Err(error),
                // The kernel offers no event for a mount that nobody uses any more.
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // It goes as soon as nobody uses it; a test that failed may have left a process.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}

fn tempfile_folder() -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!(
        "quire-mount-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    fs::create_dir(&folder)?;
    Ok(folder)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
