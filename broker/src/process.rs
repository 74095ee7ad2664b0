//! What the system says of this process: processor time and memory, for dashboards and benchmarks.

use rustix::time::{ClockId, clock_gettime};

/// What the process used so far (seconds, user and system).
pub(crate) fn cpu_seconds() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

/// What the process holds (bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    /// All of it, mapped files included.
    pub(crate) resident: u64,
    /// Without files.
    pub(crate) anonymous: u64,
}

/// What the process holds; `None` where the system does not tell.
pub(crate) fn memory() -> Option<Memory> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn parse(status: &str) -> Option<Memory> {
    let bytes = |name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
    };
    Some(Memory { resident: bytes("VmRSS:")?, anonymous: bytes("RssAnon:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_by_its_name() {
        let status = "Name:\tquire\nVmHWM:\t   99 kB\nVmRSS:\t   12 kB\nRssAnon:\t    8 kB\n";
        assert_eq!(parse(status), Some(Memory { resident: 12_288, anonymous: 8_192 }));
        assert_eq!(parse("VmRSS:\t   12 kB\n"), None);
    }

    #[test]
    fn work_takes_time() {
        let before = cpu_seconds();
        let sum = (0..2_000_000u64).fold(0, |sum: u64, n| std::hint::black_box(sum.wrapping_add(n * n)));
        assert!(cpu_seconds() > before, "{sum}");
    }
}
