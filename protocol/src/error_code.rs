//! Every error that crosses the wire: a stable number, a name, whether a retry can help, and what to do.

use std::fmt;

macro_rules! error_codes {
    ($($number:literal $variant:ident $name:literal $retriable:literal $advice:literal)*) => {
        /// A stable error number. The meaning of a number never changes; numbers are never reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum ErrorCode {
            $(#[doc = $advice] $variant = $number,)*
        }

        impl ErrorCode {
            /// Every code, in the order of their numbers.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant,)*];

            /// The code of this number, or `None` if this version does not know it.
            pub fn from_number(number: u16) -> Option<ErrorCode> {
                match number { $($number => Some(ErrorCode::$variant),)* _ => None }
            }

            /// The number as it is sent.
            pub fn number(self) -> u16 {
                self as u16
            }

            /// The name as users see it, e.g. `UNKNOWN_TOPIC`.
            pub fn name(self) -> &'static str {
                match self { $(ErrorCode::$variant => $name,)* }
            }

            /// Whether the same request may succeed later without anybody changing it.
            pub fn is_retriable(self) -> bool {
                match self { $(ErrorCode::$variant => $retriable,)* }
            }

            /// A sentence that says what to do.
            pub fn advice(self) -> &'static str {
                match self { $(ErrorCode::$variant => $advice,)* }
            }
        }
    };
}

error_codes! {
    1  UnknownTopic         "UNKNOWN_TOPIC"          false "Check the name, or create the topic."
    2  UnknownPartition     "UNKNOWN_PARTITION"      false "Use a partition number below the topic's partition count."
    3  OffsetOutOfRange     "OFFSET_OUT_OF_RANGE"    false "Start from an offset in the range that the message names."
    4  RecordTooLarge       "RECORD_TOO_LARGE"       false "Send smaller records, or raise the topic's max.message.bytes."
    5  CorruptBatch         "CORRUPT_BATCH"          true  "The batch was damaged on its way; it can be sent again."
    6  InvalidBatch         "INVALID_BATCH"          false "The client built a batch the broker does not accept; update the client."
    7  MemoryFull           "MEMORY_FULL"            true  "The broker's produce memory is in use; retry after a pause, or raise its limit."
    8  DiskFull             "DISK_FULL"              true  "Free space on the broker's disk, or lower retention; produce resumes by itself."
    9  StorageFailed        "STORAGE_FAILED"         true  "The broker's disk failed a write; whether the records were kept is unknown. Restart the broker after checking its disk."
    10 CorruptLog           "CORRUPT_LOG"            false "The partition's log is damaged; run 'quire log verify' on the broker's data directory to see what is affected."
    11 NotLeader            "NOT_LEADER"             true  "Another broker leads the partition; refresh metadata and retry there."
    12 FencedLeaderEpoch    "FENCED_LEADER_EPOCH"    true  "The request names an older leadership; refresh metadata and retry."
    13 TopicAlreadyExists   "TOPIC_ALREADY_EXISTS"   false "Use the existing topic, or choose another name."
    14 InvalidTopicName     "INVALID_TOPIC_NAME"     false "Use 1 to 249 letters, digits, '.', '_' or '-', other than '.' and '..'."
    15 InvalidConfig        "INVALID_CONFIG"         false "Correct the key or the value that the message names."
    16 InvalidRequest       "INVALID_REQUEST"        false "The broker does not take this request; correct what the message names, or update the client."
    17 UnsupportedVersion   "UNSUPPORTED_VERSION"    false "Use a client and a broker whose protocol versions overlap."
    18 NotAuthorized        "NOT_AUTHORIZED"         false "Use a profile whose principal has this right."
    19 ShuttingDown         "SHUTTING_DOWN"          true  "The broker is stopping; retry when it or another one is back."
    20 TimedOut             "TIMED_OUT"              true  "No answer came in time; whether the request took effect is unknown."
    21 LimitExceeded        "LIMIT_EXCEEDED"         true  "A limit of the broker is reached; close what is not needed, or raise the limit."
    22 Internal             "INTERNAL"               false "This is a defect in the broker; its log says more."
    23 InvalidPartitionCount "INVALID_PARTITION_COUNT" false "Give a partition count in the range that the message names; it can grow but not shrink."
    24 NotEnoughReplicas    "NOT_ENOUGH_REPLICAS"    true  "Too few in-sync replicas; retry when brokers are back, or lower min.insync.replicas."
    25 Unavailable          "UNAVAILABLE"            true  "The partition is not ready yet; retry after a pause."
    26 InvalidReplicaCount  "INVALID_REPLICA_COUNT"  false "Ask for at most as many replicas as there are brokers."
    27 LeadershipLost       "LEADERSHIP_LOST"        true  "The broker stopped leading before the records were committed; whether they were kept is unknown. Refresh metadata and retry at the new leader."
    28 FencedBrokerEpoch    "FENCED_BROKER_EPOCH"    true  "The broker registered again since; what it asked for before is void."
    29 PartitionChanged     "PARTITION_CHANGED"      true  "The partition changed meanwhile; look at it again, and ask again if it is still needed."
    30 IneligibleReplica    "INELIGIBLE_REPLICA"     true  "The broker can not hold or lead the partition as it is; retry when it is back."
    31 UnknownBroker        "UNKNOWN_BROKER"         false "Use the number of a broker that 'quire cluster status' shows."
    32 NotPossible          "NOT_POSSIBLE"           false "First change what the message names."
    33 OutOfOrderSequence   "OUT_OF_ORDER_SEQUENCE"  false "Batches before this one are missing in the log; it was not appended. Send it again as a new record if it is still wanted."
    34 DuplicateSequence    "DUPLICATE_SEQUENCE"     false "The batch was appended before, so long ago that its offset is not remembered; do not send it again."
    35 UnknownProducerId    "UNKNOWN_PRODUCER_ID"    false "The partition does not remember the producer; whether what was sent before is in the log can be seen by reading it. Use a new producer."
    36 FencedProducerEpoch  "FENCED_PRODUCER_EPOCH"  false "Another producer has taken over this one's id; use a new producer."
    37 NotCoordinator       "NOT_COORDINATOR"        true  "Another broker coordinates the group; look it up again and retry there."
    38 CoordinatorLoading   "COORDINATOR_LOADING"    true  "The group's coordinator has just moved and reads the group's log; retry after a pause."
    39 UnknownGroup         "UNKNOWN_GROUP"          false "Check the name: 'quire group list' shows the groups there are."
    40 UnknownMember        "UNKNOWN_MEMBER"         false "The member left, or was taken for dead: it has to join again."
    41 FencedMemberEpoch    "FENCED_MEMBER_EPOCH"    false "The member's generation is over, and its partitions belong to others: it has to join again."
    42 StaleMemberEpoch     "STALE_MEMBER_EPOCH"     true  "The member's generation has moved on; heartbeat, then retry with the new one."
    43 GroupNotEmpty        "GROUP_NOT_EMPTY"        false "Stop the group's consumers first: this is only done while it has no members."
    44 InstanceInUse        "INSTANCE_IN_USE"        false "Another member uses this instance id; give each consumer one of its own, or wait until the session of one that crashed is over."
    45 OffsetGoesBack       "OFFSET_GOES_BACK"       false "A later offset is committed already; commits only move forwards. To go back, stop the group and reset its offsets."
}

impl ErrorCode {
    /// Whether a request answered with this code may have taken effect all the same.
    pub fn is_outcome_unknown(self) -> bool {
        matches!(self, ErrorCode::StorageFailed | ErrorCode::TimedOut | ErrorCode::LeadershipLost)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_stable_and_lead_back_to_their_code() {
        for (index, code) in ErrorCode::ALL.iter().enumerate() {
            assert_eq!(code.number() as usize, index + 1, "numbers are dense and in order");
            assert_eq!(ErrorCode::from_number(code.number()), Some(*code));
            assert!(code.advice().ends_with('.'), "{code}: advice is a sentence");
        }
        assert_eq!(ErrorCode::from_number(0), None);
        assert_eq!(ErrorCode::from_number(u16::MAX), None);
    }
}
