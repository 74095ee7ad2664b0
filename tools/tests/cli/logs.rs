//! `quire log`
