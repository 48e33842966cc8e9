//! What models there are, how they are named, and how they get here.

mod catalog;
mod downloads;
mod fetch;
mod gguf;
mod hub;
mod memory;
mod progress;
mod split;

pub(crate) use catalog::{Catalog, Model};
pub(crate) use downloads::{Downloads, start as download};
pub(crate) use fetch::run as fetch;
pub(crate) use hub::HubRef;
pub(crate) use progress::Stage;
