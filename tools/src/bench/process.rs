//! What the system says of a process: processor time and memory.

use std::fs;

/// What a process used so far, and what it holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Processor seconds, user and system.
    pub cpu_seconds: f64,
    /// Resident memory (bytes), mapped files included.
    pub memory_bytes: u64,
    /// Resident memory without files of the page cache (bytes), where the system tells.
    pub anonymous_bytes: Option<u64>,
}

impl Usage {
    /// Both together.
    pub fn plus(self, other: Usage) -> Usage {
        Usage {
            cpu_seconds: self.cpu_seconds + other.cpu_seconds,
            memory_bytes: self.memory_bytes + other.memory_bytes,
            anonymous_bytes: self.anonymous_bytes.zip(other.anonymous_bytes).map(|(one, other)| one + other),
        }
    }
}

/// What this process uses; `None` where the system does not tell.
pub fn usage_of_self() -> Option<Usage> {
    usage_of("self")
}

/// The same of another process, by its id.
pub fn usage_of_process(id: u32) -> Option<Usage> {
    usage_of(&id.to_string())
}

fn usage_of(process: &str) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    Some(Usage {
        cpu_seconds: cpu_ticks(&stat)? as f64 / rustix::param::clock_ticks_per_second() as f64,
        memory_bytes: kibibytes(&status, "VmRSS:")?,
        anonymous_bytes: kibibytes(&status, "RssAnon:"),
    })
}

/// User and system time; the process's name before them may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system) = (fields.next()?.parse::<u64>().ok()?, fields.next()?.parse::<u64>().ok()?);
    Some(user + system)
}

/// The bytes of a line such as `VmRSS:     1234 kB`.
fn kibibytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_behind_a_name_that_holds_anything() {
        let stat = "42 (a ) b 7) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 3 0 99 1 2";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("42 (short) S 1"), None);
    }

    #[test]
    fn memory_is_read_by_its_name() {
        let status = "Name:\tquire\nVmHWM:\t   99 kB\nVmRSS:\t   12 kB\nRssAnon:\t    8 kB\n";
        assert_eq!((kibibytes(status, "VmRSS:"), kibibytes(status, "RssAnon:")), (Some(12_288), Some(8_192)));
        assert_eq!(kibibytes(status, "RssFile:"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_uses_something() {
        let usage = usage_of_self().expect("the system tells");
        assert!(
            usage.memory_bytes > 0 && usage.anonymous_bytes.is_some_and(|bytes| bytes <= usage.memory_bytes)
        );
    }
}
