//! Wakes a session's thread out of its poll.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

/// A bell that any thread rings and one thread polls for.
#[derive(Debug)]
pub(super) struct Wake {
    ringer: UnixStream,
    listener: UnixStream,
    /// Whether it was rung since it was last cleared: one byte is enough then.
    rung: AtomicBool,
}

impl Wake {
    pub(super) fn new() -> io::Result<Self> {
        let (ringer, listener) = UnixStream::pair()?;
        ringer.set_nonblocking(true)?;
        listener.set_nonblocking(true)?;
        Ok(Wake {
            ringer,
            listener,
            rung: AtomicBool::new(false),
        })
    }

    pub(super) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // Full means that bytes are waiting, which is as good.
            let _ = (&self.ringer).write(&[1]);
        }
    }

    /// Before a look at what there is to do: what is rung for afterwards rings anew.
    pub(super) fn clear(&self) {
        self.rung.swap(false, Ordering::AcqRel);
    }

    /// After a poll that found it readable.
    pub(super) fn drain(&self) {
        let mut bytes = [0; 64];
        let _ = (&self.listener).read(&mut bytes);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
