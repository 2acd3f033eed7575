//! The `reimage` command.

fn main() {}
