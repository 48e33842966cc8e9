//! A whole answer on its way: it is read to its end before its client sees any of it, and until the
//! client has taken it its memory counts against the bound of all such answers.

use bytes::Bytes;

use super::attempt::Failure;
use super::call::Call;
use crate::budget::{Budget, Held, SMALL};
use crate::domain::WorkerSpec;
use crate::error::{Code, Error};

/// The least by which an answer's memory grows when its length is not told.
const STEP: usize = 256 << 10;

pub(super) struct Gathered<'a> {
    budget: &'a Budget,
    limit: usize,
    /// The length that the answer's head told, or 0.
    pub(super) told: usize,
    /// The first piece, which as a rule is all of it.
    first: Bytes,
    all: Vec<u8>,
    held: Option<Held>,
}

impl<'a> Gathered<'a> {
    pub(super) fn new(call: &'a Call, told: Option<u64>) -> Self {
        Gathered {
            budget: &call.answers,
            limit: call.max_response_bytes,
            told: told.map_or(0, |told| usize::try_from(told).unwrap_or(usize::MAX)),
            first: Bytes::new(),
            all: Vec::new(),
            held: None,
        }
    }

    /// Holds room for so many bytes in all.
    ///
    /// # Errors
    /// `UPSTREAM_INVALID` when no answer may be that long; `OVERLOADED` when there is no room. Another
    /// try would make the worker write all of it again, so the client is to decide on that.
    pub(super) fn fits(&mut self, worker: &WorkerSpec, bytes: usize) -> Result<(), Failure> {
        let limit = self.limit;
        if bytes > limit {
            let message = format!("worker {} answered with more than {limit} bytes", worker.id);
            return Err(Error::new(Code::UpstreamInvalid, message).into());
        }
        if bytes <= SMALL {
            return Ok(());
        }
        let fits = match &mut self.held {
            Some(held) => held.grow(bytes),
            none => {
                *none = self.budget.hold(bytes);
                none.is_some()
            }
        };
        if fits {
            return Ok(());
        }
        Err(Error::new(
            Code::Overloaded,
            "the answers that are being collected, or wait for their clients to take them, hold as \
             much as they may; try again, take it as a stream, or raise limits.max_answers_bytes of \
             the queen's configuration",
        )
        .into())
    }

    pub(super) fn add(&mut self, worker: &WorkerSpec, data: Bytes) -> Result<(), Failure> {
        let length = self.first.len().max(self.all.len()) + data.len();
        if self.first.is_empty() && self.all.is_empty() {
            self.fits(worker, length.max(self.told))?;
            self.first = data;
            return Ok(());
        }
        if length > self.all.capacity() {
            let grown = self.all.capacity() / 4 + STEP + self.all.capacity();
            let wanted = match self.told {
                0 => length.max(grown.min(self.limit)),
                told => length.max(told),
            };
            self.fits(worker, wanted)?;
            self.all.reserve_exact(wanted - self.all.len());
        }
        if self.all.is_empty() {
            self.all.extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.all.extend_from_slice(&data);
        Ok(())
    }

    pub(super) fn whole(self) -> Bytes {
        let bytes = match self.all.is_empty() {
            true => self.first,
            false => self.all.into(),
        };
        match self.held {
            Some(held) => held.keep(bytes),
            None => bytes,
        }
    }
}
