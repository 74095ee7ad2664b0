//! Groups: their members, their offsets, their coordinators, and what all of them make of a log and clocks that fail.

mod assignment;
mod client;
mod coordinator;
mod desk;
mod log;
mod members;
mod offsets;
mod records;
mod script;
mod simulation;
mod world;
