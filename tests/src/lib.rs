//! What the end-to-end tests and the benchmarks stand on.

pub mod bench;
pub mod bench_fleet;
pub mod bench_lists;
pub mod bench_store;
pub mod chaos;
pub mod clock;
pub mod harness;
pub mod load;
pub mod machines;
pub mod proc;
pub mod random;
pub mod stub;
pub mod token;
pub mod words;
