//! The load itself: tasks that produce and consume, each with a connection of its own.

pub mod consume;
pub mod outstanding;
pub mod produce;
pub mod reading;
