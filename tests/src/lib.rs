//! What the tests over the whole product share: brokers as processes, and the repository as something to check.
#![forbid(unsafe_code)]

pub mod process;
pub mod repository;
