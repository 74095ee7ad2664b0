//! `quire drill`: kill leaders under load, then account for every record.
//!
//! Its parts serve the tests too: the [`history`] of what clients asked for and were answered, and the [`checks`] that
//! judge it, and the [`relay`] between processes that spoils what passes.

pub mod checks;
pub mod history;
pub mod relay;
