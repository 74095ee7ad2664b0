//! A topic's configuration: the keys users set, their defaults, their bounds.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::limits;

const MILLION: u32 = 1_000_000;

/// When an acknowledgement may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sync {
    /// After the batch is on disk. Survives power loss.
    #[default]
    Always,
    /// After the batch is in the page cache; the disk follows every `sync.interval.ms`. Survives a crash of the
    /// broker, not of the machine.
    Interval,
}

/// Whose clock record timestamps come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MessageTimestampType {
    /// The producer's.
    #[default]
    CreateTime,
    /// The broker's at append.
    LogAppendTime,
}

/// What becomes of old records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CleanupPolicy {
    /// Segments go by age and size.
    #[default]
    Delete,
    /// Of each key the last record stays.
    Compact,
    /// Both.
    CompactAndDelete,
}

impl CleanupPolicy {
    /// Whether segments go by age and size.
    pub fn deletes(self) -> bool {
        self != CleanupPolicy::Compact
    }

    /// Whether of each key only the last record stays.
    pub fn compacts(self) -> bool {
        self != CleanupPolicy::Delete
    }

    /// As users write it, in any order.
    fn parse(value: &str) -> Option<CleanupPolicy> {
        let mut names: Vec<_> = value.split(',').map(str::trim).collect();
        names.sort_unstable();
        match names[..] {
            ["delete"] => Some(CleanupPolicy::Delete),
            ["compact"] => Some(CleanupPolicy::Compact),
            ["compact", "delete"] => Some(CleanupPolicy::CompactAndDelete),
            _ => None,
        }
    }
}

/// A topic's effective configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicConfig {
    /// `sync`
    pub sync: Sync,
    /// `sync.interval.ms`
    pub sync_interval: Duration,
    /// `retention.ms`; `None` keeps for ever.
    pub retention: Option<Duration>,
    /// `retention.bytes` of one partition; `None` is no limit.
    pub retention_bytes: Option<u64>,
    /// `segment.bytes`
    pub segment_bytes: u64,
    /// `segment.ms`: an active segment older than this is sealed so that retention reaches it.
    pub segment_age: Duration,
    /// `max.message.bytes`
    pub message_bytes_max: usize,
    /// `message.timestamp.type`
    pub timestamp_type: MessageTimestampType,
    /// `min.insync.replicas`
    pub min_insync_replicas: u32,
    /// `unclean.leader.election.enable`
    pub is_unclean_election_enabled: bool,
    /// `cleanup.policy`
    pub cleanup: CleanupPolicy,
    /// `delete.retention.ms`
    pub delete_retention: Duration,
    /// `min.cleanable.dirty.ratio`, in millionths.
    pub dirty_millionths_min: u32,
    /// `min.compaction.lag.ms`
    pub compaction_lag_min: Duration,
    /// `max.compaction.lag.ms`; `None` is no limit.
    pub compaction_lag_max: Option<Duration>,
    /// `catch.up.bytes.per.second`; `None` is no limit.
    pub catch_up_bytes_per_second: Option<u64>,
}

impl Default for TopicConfig {
    fn default() -> TopicConfig {
        TopicConfig {
            sync: Sync::Always,
            sync_interval: Duration::from_millis(1000),
            retention: Some(Duration::from_secs(7 * 24 * 3600)),
            retention_bytes: None,
            segment_bytes: limits::SEGMENT_BYTES_DEFAULT,
            segment_age: Duration::from_secs(7 * 24 * 3600),
            message_bytes_max: limits::MESSAGE_BYTES_DEFAULT,
            timestamp_type: MessageTimestampType::CreateTime,
            min_insync_replicas: 1,
            is_unclean_election_enabled: false,
            cleanup: CleanupPolicy::Delete,
            delete_retention: Duration::from_secs(24 * 3600),
            dirty_millionths_min: MILLION / 2,
            compaction_lag_min: Duration::ZERO,
            compaction_lag_max: None,
            catch_up_bytes_per_second: None,
        }
    }
}

/// A key or value that no topic can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicConfigError {
    /// No such key.
    #[error("no topic setting \"{key}\"{}", nearest.map(|n| format!("; did you mean \"{n}\"?")).unwrap_or_default())]
    UnknownKey {
        /// What was given.
        key: String,
        /// The known key closest to it.
        nearest: Option<&'static str>,
    },
    /// A value outside the key's range.
    #[error("{key} = \"{value}\": expected {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
        /// What it takes.
        expected: String,
    },
    /// What may be compacted only later than it has to be.
    #[error(
        "min.compaction.lag.ms = {min_ms} is more than max.compaction.lag.ms = {max_ms}: expected at most as much"
    )]
    CompactionLag {
        /// How long a record is safe from compaction (milliseconds).
        min_ms: u128,
        /// In how long it is to be compacted (milliseconds).
        max_ms: u128,
    },
}

/// One key a topic can be configured with.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// As users write it.
    pub name: &'static str,
    /// What it does and costs, one sentence.
    pub doc: &'static str,
    set: fn(&mut TopicConfig, &str) -> Result<(), String>,
    show: fn(&TopicConfig) -> String,
}

/// Every key, in alphabetical order.
pub const KEYS: &[Key] = &[
    Key {
        name: "catch.up.bytes.per.second",
        doc: "A replica that is not in sync, since it is new or was away, fetches a partition no faster than this, so that \
              copying leaves disks and networks to others; one that is slower than producers never gets in sync. -1 is \
              no limit.",
        set: |c, v| {
            unlimited(v, limits::CATCH_UP_BYTES_PER_SECOND_MIN, u64::MAX >> 1)
                .map(|n| c.catch_up_bytes_per_second = n)
        },
        show: |c| c.catch_up_bytes_per_second.map_or("-1".into(), |n| n.to_string()),
    },
    Key {
        name: "cleanup.policy",
        doc: "delete: segments go by age and size. compact: of each key only the last record stays, and records without \
              one. compact,delete: both. Compaction reads and writes each partition again now and then.",
        set: |c, v| {
            c.cleanup = CleanupPolicy::parse(v).ok_or("delete, compact or compact,delete")?;
            Ok(())
        },
        show: |c| match c.cleanup {
            CleanupPolicy::Delete => "delete".into(),
            CleanupPolicy::Compact => "compact".into(),
            CleanupPolicy::CompactAndDelete => "compact,delete".into(),
        },
    },
    Key {
        name: "delete.retention.ms",
        doc: "A tombstone (a record without a value) stays so long after compaction first came past it: who reads a \
              compacted topic from its start must get through it within this time to learn of every deletion.",
        set: |c, v| number(v, 0, u64::MAX >> 1).map(|n| c.delete_retention = Duration::from_millis(n)),
        show: |c| c.delete_retention.as_millis().to_string(),
    },
    Key {
        name: "max.compaction.lag.ms",
        doc: "A record is compacted once it was appended longer ago than this, however little there is; -1 is no limit.",
        set: |c, v| {
            unlimited(v, 1, u64::MAX >> 1).map(|n| c.compaction_lag_max = n.map(Duration::from_millis))
        },
        show: |c| c.compaction_lag_max.map_or("-1".into(), |d| d.as_millis().to_string()),
    },
    Key {
        name: "max.message.bytes",
        doc: "Largest batch the topic accepts; larger costs memory in every client.",
        set: |c, v| number(v, 1024, limits::BATCH_BYTES_MAX as u64).map(|n| c.message_bytes_max = n as usize),
        show: |c| c.message_bytes_max.to_string(),
    },
    Key {
        name: "message.timestamp.type",
        doc: "CreateTime keeps the producer's timestamps; LogAppendTime stamps batches at append.",
        set: |c, v| {
            c.timestamp_type = match v {
                "CreateTime" => MessageTimestampType::CreateTime,
                "LogAppendTime" => MessageTimestampType::LogAppendTime,
                _ => return Err("CreateTime or LogAppendTime".into()),
            };
            Ok(())
        },
        show: |c| format!("{:?}", c.timestamp_type),
    },
    Key {
        name: "min.cleanable.dirty.ratio",
        doc: "A partition is compacted once this part of it was not compacted yet; smaller costs more reading and writing.",
        set: |c, v| ratio(v).map(|millionths| c.dirty_millionths_min = millionths),
        show: |c| (f64::from(c.dirty_millionths_min) / f64::from(MILLION)).to_string(),
    },
    Key {
        name: "min.compaction.lag.ms",
        doc: "A record is not compacted before it was appended so long ago: until then readers see all of its key's.",
        set: |c, v| number(v, 0, u64::MAX >> 1).map(|n| c.compaction_lag_min = Duration::from_millis(n)),
        show: |c| c.compaction_lag_min.as_millis().to_string(),
    },
    Key {
        name: "min.insync.replicas",
        doc: "Replicas that must hold a batch before acks=all is answered.",
        set: |c, v| number(v, 1, limits::REPLICAS_MAX as u64).map(|n| c.min_insync_replicas = n as u32),
        show: |c| c.min_insync_replicas.to_string(),
    },
    Key {
        name: "retention.bytes",
        doc: "Oldest segments of a partition go when it exceeds this; -1 is no limit.",
        set: |c, v| unlimited(v, 0, u64::MAX >> 1).map(|n| c.retention_bytes = n),
        show: |c| c.retention_bytes.map_or("-1".into(), |n| n.to_string()),
    },
    Key {
        name: "retention.ms",
        doc: "Segments go when their newest record was appended longer ago than this; -1 keeps for ever.",
        set: |c, v| unlimited(v, 0, u64::MAX >> 1).map(|n| c.retention = n.map(Duration::from_millis)),
        show: |c| c.retention.map_or("-1".into(), |d| d.as_millis().to_string()),
    },
    Key {
        name: "segment.bytes",
        doc: "Size at which a segment is sealed; retention deletes whole segments.",
        set: |c, v| {
            number(v, limits::SEGMENT_BYTES_MIN, limits::SEGMENT_BYTES_MAX).map(|n| c.segment_bytes = n)
        },
        show: |c| c.segment_bytes.to_string(),
    },
    Key {
        name: "segment.ms",
        doc: "Age at which a segment is sealed even if it is not full, so that deletion and compaction reach it.",
        set: |c, v| number(v, 1000, u64::MAX >> 1).map(|n| c.segment_age = Duration::from_millis(n)),
        show: |c| c.segment_age.as_millis().to_string(),
    },
    Key {
        name: "sync",
        doc: "always: acknowledged means on disk. interval: faster, a power loss takes up to sync.interval.ms with it.",
        set: |c, v| {
            c.sync = match v {
                "always" => Sync::Always,
                "interval" => Sync::Interval,
                _ => return Err("always or interval".into()),
            };
            Ok(())
        },
        show: |c| format!("{:?}", c.sync).to_lowercase(),
    },
    Key {
        name: "sync.interval.ms",
        doc: "How often the disk is synced under sync = interval.",
        set: |c, v| number(v, 1, 3_600_000).map(|n| c.sync_interval = Duration::from_millis(n)),
        show: |c| c.sync_interval.as_millis().to_string(),
    },
    Key {
        name: "unclean.leader.election.enable",
        doc: "true: when no replica with every acknowledged record is left, any other leads, and records are lost.",
        set: |c, v| {
            c.is_unclean_election_enabled = match v {
                "true" => true,
                "false" => false,
                _ => return Err("true or false".into()),
            };
            Ok(())
        },
        show: |c| c.is_unclean_election_enabled.to_string(),
    },
];

impl TopicConfig {
    /// The defaults with `overrides` applied.
    ///
    /// # Errors
    /// At the first unknown key or value out of range.
    pub fn with_overrides(overrides: &BTreeMap<String, String>) -> Result<TopicConfig, TopicConfigError> {
        let mut config = TopicConfig::default();
        for (name, value) in overrides {
            let key = KEYS.iter().find(|key| key.name == name).ok_or_else(|| unknown_key(name))?;
            (key.set)(&mut config, value).map_err(|expected| TopicConfigError::Value {
                key: key.name,
                value: value.chars().take(64).collect(),
                expected,
            })?;
        }
        Ok(config)
    }

    /// Whether the settings go with one another. Apart from [`TopicConfig::with_overrides`], so that what is already kept
    /// can always be read.
    ///
    /// # Errors
    /// If two of them contradict each other.
    pub fn check(&self) -> Result<(), TopicConfigError> {
        match self.compaction_lag_max {
            Some(max) if max < self.compaction_lag_min => Err(TopicConfigError::CompactionLag {
                min_ms: self.compaction_lag_min.as_millis(),
                max_ms: max.as_millis(),
            }),
            _ => Ok(()),
        }
    }

    /// Every key with its effective value, in alphabetical order.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, String)> + '_ {
        KEYS.iter().map(|key| (key.name, (key.show)(self)))
    }
}

fn unknown_key(name: &str) -> TopicConfigError {
    let name: String = name.chars().take(64).collect();
    let nearest = KEYS
        .iter()
        .map(|key| (strsim::levenshtein(key.name, &name), key.name))
        .min()
        .filter(|(distance, _)| *distance <= 4)
        .map(|(_, name)| name);
    TopicConfigError::UnknownKey { key: name, nearest }
}

fn number(value: &str, min: u64, max: u64) -> Result<u64, String> {
    let parsed = value.parse().ok().filter(|n| (min..=max).contains(n));
    parsed.ok_or_else(|| format!("a whole number from {min} to {max}"))
}

fn ratio(value: &str) -> Result<u32, String> {
    let parsed = value.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    parsed
        .map(|ratio| (ratio * f64::from(MILLION)).round() as u32)
        .ok_or_else(|| "a number from 0 to 1".into())
}

fn unlimited(value: &str, min: u64, max: u64) -> Result<Option<u64>, String> {
    if value == "-1" {
        return Ok(None);
    }
    number(value, min, max).map(Some).map_err(|expected| format!("{expected}, or -1 for no limit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(key: &str, value: &str) -> Result<TopicConfig, TopicConfigError> {
        TopicConfig::with_overrides(&BTreeMap::from([(key.to_owned(), value.to_owned())]))
    }

    #[test]
    fn shown_defaults_parse_to_the_defaults() {
        let shown = TopicConfig::default().entries().map(|(key, value)| (key.to_owned(), value)).collect();
        assert_eq!(TopicConfig::with_overrides(&shown), Ok(TopicConfig::default()));
    }

    #[test]
    fn a_mistyped_key_suggests_the_nearest() {
        let error = with("retention.mss", "5").expect_err("no such key");
        assert_eq!(error.to_string(), "no topic setting \"retention.mss\"; did you mean \"retention.ms\"?");
        let error = with("colour", "red").expect_err("no such key");
        assert_eq!(error.to_string(), "no topic setting \"colour\"");
    }

    #[test]
    fn a_value_out_of_range_is_named_with_its_range() {
        let error = with("sync", "never").expect_err("no such value");
        assert_eq!(error.to_string(), "sync = \"never\": expected always or interval");
        assert!(with("segment.bytes", "1").is_err());
        assert_eq!(with("retention.ms", "-1").map(|c| c.retention), Ok(None));
        let error = with("min.cleanable.dirty.ratio", "1.5").expect_err("more than all");
        assert_eq!(error.to_string(), "min.cleanable.dirty.ratio = \"1.5\": expected a number from 0 to 1");
        assert!(with("min.cleanable.dirty.ratio", "NaN").is_err());
    }

    #[test]
    fn a_cleanup_policy_is_one_of_two_or_both_in_any_order() {
        let policy = |value| with("cleanup.policy", value).map(|c| c.cleanup);
        assert_eq!(policy("compact"), Ok(CleanupPolicy::Compact));
        for both in ["compact,delete", "delete,compact", "delete, compact"] {
            let config = with("cleanup.policy", both).expect("both");
            assert!(config.cleanup.compacts() && config.cleanup.deletes());
            assert!(config.entries().any(|entry| entry == ("cleanup.policy", "compact,delete".to_owned())));
        }
        let error = with("cleanup.policy", "compact,compact").expect_err("twice");
        let expected = "cleanup.policy = \"compact,compact\": expected delete, compact or compact,delete";
        assert_eq!(error.to_string(), expected);
        assert!(policy("").is_err() && policy("purge").is_err());
    }

    #[test]
    fn nothing_is_safe_from_compaction_for_longer_than_until_it_has_to_be_compacted() {
        let lags = |min: &str, max: &str| {
            let overrides = [("min.compaction.lag.ms", min), ("max.compaction.lag.ms", max)];
            let overrides = overrides.map(|(key, value)| (key.to_owned(), value.to_owned()));
            TopicConfig::with_overrides(&BTreeMap::from(overrides)).expect("each is in range").check()
        };
        assert_eq!(lags("1000", "1000"), Ok(()));
        assert_eq!(lags("1000", "-1"), Ok(()));
        let told = lags("1000", "10").expect_err("not both can be").to_string();
        let expected =
            "min.compaction.lag.ms = 1000 is more than max.compaction.lag.ms = 10: expected at most as much";
        assert_eq!(told, expected);
    }

    #[test]
    fn a_ratio_is_kept_to_a_millionth() {
        for value in ["0", "1", "0.5", "0.000001", "0.123456"] {
            let config = with("min.cleanable.dirty.ratio", value).expect("a ratio");
            assert!(config.entries().any(|entry| entry == ("min.cleanable.dirty.ratio", value.to_owned())));
        }
    }
}
