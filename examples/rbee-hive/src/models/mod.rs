//! What models there are, how they are named, and how they get here.

mod catalog;
mod downloads;
mod fetch;
mod fetch_web;
mod gguf;
mod hub;
mod known;
mod memory;
mod naming;
mod progress;
mod reach;
mod removal;
mod server;
mod source;
mod split;
mod web;

pub(crate) use catalog::{Catalog, Model};
pub(crate) use downloads::{Downloads, start as download};
pub(crate) use fetch::run as fetch;
pub(crate) use progress::Stage;
pub(crate) use source::SourceRef;
