//! The client against a real broker, over UDP and TLS.

mod cluster;
mod consuming;
mod failures;
mod grouping;
mod managing;
mod producing;
mod rack;
mod replaying;
mod rights;
mod support;
