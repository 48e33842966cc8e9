//! What models there are, and how they are named.

mod catalog;
mod gguf;
mod memory;

pub(crate) use catalog::{Catalog, Model};
