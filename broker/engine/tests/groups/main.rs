//! Groups: their members, their offsets, their coordinators, and what all of them make of a log and clocks that fail.

mod coordinator;
mod desk;
mod members;
mod offsets;
