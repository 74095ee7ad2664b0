//! Where a benchmark runs: what a reader must know to judge its figures.

use std::fs;
use std::path::Path;
use std::thread::available_parallelism;

use super::report::Machine;

/// This machine, with the file system under `data` if the broker keeps its data here.
pub fn describe(data: Option<&Path>, is_shared: bool) -> Machine {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    Machine {
        cpu: cpu(&read("/proc/cpuinfo")).unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        cores: available_parallelism().map_or(1, |cores| cores.get() as u32),
        memory_bytes: memory(&read("/proc/meminfo"), "MemTotal:").unwrap_or(0),
        os: operating_system(),
        file_system: data.and_then(|data| {
            let data = data.canonicalize().ok()?;
            file_system(&read("/proc/self/mountinfo"), &data)
        }),
        is_shared,
    }
}

/// Memory that could be had without swapping (bytes).
pub fn memory_available() -> Option<u64> {
    memory(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

fn operating_system() -> String {
    let uname = rustix::system::uname();
    let part = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    format!("{} {}", part(uname.sysname()), part(uname.release()))
}

fn cpu(cpuinfo: &str) -> Option<String> {
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(name.split_once(':')?.1.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The bytes of a line such as `MemFree:     1234 kB`.
pub fn memory(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

/// The type of the mount that is nearest above `path`.
fn file_system(mountinfo: &str, path: &Path) -> Option<String> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let point = line.split(' ').nth(4)?.replace("\\040", " ");
        let kind = line.split_once(" - ")?.1.split(' ').next()?;
        path.starts_with(&point).then_some((point.len(), kind))
    });
    // Of two mounts at one place the later one is seen.
    mounts.max_by_key(|(length, _)| *length).map(|(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_and_the_memory_are_read_by_name() {
        let cpuinfo = "processor\t: 0\nmodel name\t: A  Fast(R) CPU\nmodel name\t: other\n";
        assert_eq!(cpu(cpuinfo).as_deref(), Some("A Fast(R) CPU"));
        assert_eq!(cpu("processor : 0"), None);
        assert_eq!(memory("MemTotal:  2 kB\nMemAvailable:  1 kB\n", "MemAvailable:"), Some(1024));
    }

    #[test]
    fn the_nearest_mount_has_the_file_system() {
        let mountinfo = "1 0 8:1 / / rw shared:1 - ext4 /dev/a rw\n\
                         2 1 8:2 / /data rw - xfs /dev/b rw\n\
                         3 1 8:3 / /data\\040two rw - btrfs /dev/c rw\n";
        let kind = |path| file_system(mountinfo, Path::new(path));
        assert_eq!(kind("/data/x").as_deref(), Some("xfs"));
        assert_eq!(kind("/database").as_deref(), Some("ext4"));
        assert_eq!(kind("/data two/x").as_deref(), Some("btrfs"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_can_be_described() {
        let machine = describe(Some(Path::new(".")), true);
        assert!(
            machine.cores > 0 && machine.memory_bytes > 0 && machine.os.starts_with("Linux "),
            "{machine:?}"
        );
        assert!(machine.file_system.is_some());
        assert!(memory_available().is_some_and(|bytes| bytes > 0 && bytes <= machine.memory_bytes));
    }
}
