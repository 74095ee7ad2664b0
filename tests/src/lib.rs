//! What the tests over the whole product share: brokers as processes, and the repository as something to check.
#![deny(unsafe_code)]

pub mod chaos;
pub mod load;
pub mod power_loss;
pub mod process;
pub mod repository;
pub mod sim;

/// The Rust examples of README.md, compiled and run as the page's readers would.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
