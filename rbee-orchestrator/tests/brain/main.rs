//! The brain under a clock that is moved by hand.

#![allow(
    clippy::cloned_ref_to_slice_refs,
    reason = "`[id.clone()]` says what is expected better than a slice of a reference does"
)]

mod addresses;
mod batch;
mod blame;
mod dice;
mod eviction;
mod fairness;
mod fleet;
mod flowing;
mod health;
mod loading;
mod minutes;
mod no_place;
mod odd_schedulers;
mod parts;
mod placement;
mod pressure;
mod provisioning;
mod provisioning_faults;
mod queue;
mod random;
mod requests;
mod restarts;
mod retry;
mod spared;
mod tenants;
mod two_steps;
mod workers;
mod world;
