//! The program: has nothing to do yet.

fn main() {}
