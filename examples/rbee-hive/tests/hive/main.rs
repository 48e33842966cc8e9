//! The hive as a queen and a person at a terminal see it: real processes, real ports.
//!
//! Engines are a stub (`stub_engine.py`), which proves that engines are a matter of
//! configuration, and once the real llama-server.

mod door;
mod downloads;
mod hub;
mod keys;
mod life;
mod llama;
mod logs;
mod refusals;
mod reload;
mod support;
mod survival;
mod web;
