//! Goal: whatever fails, and wherever, the disk is the old one, one that says it is unfinished, or the finished one;
//! and what a run says of it is true.
//! Method: real rebuilds on a simulated disk. Every operation of each is followed by a power cut (with any part of the
//! unsynced writes), fails with every error, lies, or sees a cancel; a prober that shares no code with the engine looks
//! at what is left, and the same rebuild is run again on it. `cargo test` takes a sample of the crashes;
//! `REIMAGE_CRASH_POINTS=all` takes all of them.

mod cancels;
mod crashes;
mod disks;
mod faults;
mod lab;
mod lies;
mod nested;
mod operations;
mod phases;
mod probe;
mod scenarios;
mod states;
mod undo;
