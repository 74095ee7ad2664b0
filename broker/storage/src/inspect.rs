//! Looking at a log that no broker has open: read-only, and without recovery.
