//! What the end-to-end tests and the benchmarks stand on.

pub mod bench;
pub mod bench_store;
pub mod harness;
pub mod load;
pub mod proc;
pub mod stub;
pub mod token;
