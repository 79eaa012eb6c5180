//! `zmlx`, the command line.

fn main() {}
