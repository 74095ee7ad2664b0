//! `quire bench`: load made on a schedule, measured without flattery.

pub mod report;
