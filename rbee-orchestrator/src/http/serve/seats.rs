//! Who is connected, and who has to go when there is no room for one more.
//!
//! A connection is a *newcomer* until a request of its own was let in. When there is no room, the
//! oldest newcomer goes, then the oldest connection that waits for its next request: whoever has
//! said who it is and works is never put out, and whoever wants to can get in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::descriptors;
use crate::config::Config;

/// Connections that may have been told to leave and be there yet, before no more are accepted.
const LEAVING_AT_ONCE: usize = 128;

/// How many connections there may be, and how long they may be silent.
#[derive(Debug, Clone)]
pub(super) struct Bounds {
    all: usize,
    per_address: usize,
    per_loopback_address: usize,
    first_request: Duration,
    idle: Duration,
}

impl Bounds {
    pub(super) fn of(config: &Config) -> Self {
        let all = descriptors::connections(config.limits.max_connections);
        let per_address = config.limits.max_connections_per_address;
        Bounds {
            all,
            per_address: per_address.unwrap_or(all / 2),
            per_loopback_address: per_address.unwrap_or(all),
            first_request: config.timeouts.first_request,
            idle: config.timeouts.idle_connection,
        }
    }

    fn of_one(&self, origin: IpAddr) -> usize {
        if origin.is_loopback() {
            self.per_loopback_address
        } else {
            self.per_address
        }
    }
}

/// What a connection is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// End after the answers that are under way.
    Finish,
    /// End at once.
    Leave,
}

/// One connection, as the others see it.
#[derive(Debug)]
struct Seat {
    number: u64,
    origin: IpAddr,
    is_newcomer: AtomicBool,
    has_asked: AtomicBool,
    in_flight: AtomicU32,
    /// Since when nothing is in flight, in seconds of [`Seats`].
    quiet_since: AtomicU32,
    /// Zero, or the [`Word`] that was said last.
    word: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

impl Seat {
    fn is_idle(&self) -> bool {
        self.in_flight.load(Acquire) == 0
    }

    fn tell(&self, word: Word) {
        self.word.fetch_max(1 + word as u8, Release);
        if let Some(waker) = &*lock(&self.waker) {
            waker.wake_by_ref();
        }
    }
}

/// All connections.
#[derive(Debug)]
pub(super) struct Seats {
    bounds: Bounds,
    started: Instant,
    /// Seconds since then, as of the last sweep.
    now: AtomicU32,
    leaving: AtomicUsize,
    ledger: Mutex<Ledger>,
}

#[derive(Debug, Default)]
struct Ledger {
    next: u64,
    seats: BTreeMap<u64, Arc<Seat>>,
    newcomers: BTreeSet<u64>,
    origins: HashMap<IpAddr, Origin>,
}

#[derive(Debug, Default)]
struct Origin {
    count: usize,
    newcomers: BTreeSet<u64>,
}

impl Ledger {
    fn remove(&mut self, number: u64) -> Option<Arc<Seat>> {
        let seat = self.seats.remove(&number)?;
        self.newcomers.remove(&number);
        if let Some(origin) = self.origins.get_mut(&seat.origin) {
            origin.newcomers.remove(&number);
            origin.count -= 1;
            if origin.count == 0 {
                self.origins.remove(&seat.origin);
            }
        }
        Some(seat)
    }

    /// Who goes first, of those from an address or of all.
    fn first_to_go(&self, origin: Option<IpAddr>) -> Option<u64> {
        let newcomers = match origin {
            Some(origin) => &self.origins.get(&origin)?.newcomers,
            None => &self.newcomers,
        };
        newcomers.first().copied().or_else(|| {
            let mut all = self.seats.values();
            let idle =
                all.find(|seat| seat.is_idle() && origin.is_none_or(|from| seat.origin == from));
            idle.map(|seat| seat.number)
        })
    }
}

impl Seats {
    pub(super) fn new(bounds: Bounds) -> Self {
        Seats {
            bounds,
            started: Instant::now(),
            now: AtomicU32::new(0),
            leaving: AtomicUsize::new(0),
            ledger: Mutex::default(),
        }
    }

    /// A place for one more, if need be somebody else's; none if all of them are at work.
    pub(super) fn take(self: &Arc<Self>, from: IpAddr) -> Option<Place> {
        let origin = origin(from);
        let mut ledger = lock(&self.ledger);
        let from_there = ledger.origins.get(&origin).map_or(0, |one| one.count);
        if from_there >= self.bounds.of_one(origin) {
            let victim = ledger.first_to_go(Some(origin))?;
            self.put_out(&mut ledger, victim);
        } else if ledger.seats.len() >= self.bounds.all {
            let victim = ledger.first_to_go(None)?;
            self.put_out(&mut ledger, victim);
        }
        let number = ledger.next;
        ledger.next += 1;
        let seat = Arc::new(Seat {
            number,
            origin,
            is_newcomer: AtomicBool::new(true),
            has_asked: AtomicBool::new(false),
            in_flight: AtomicU32::new(0),
            quiet_since: AtomicU32::new(self.now.load(Relaxed)),
            word: AtomicU8::new(0),
            waker: Mutex::default(),
        });
        ledger.seats.insert(number, Arc::clone(&seat));
        ledger.newcomers.insert(number);
        let one = ledger.origins.entry(origin).or_default();
        one.count += 1;
        one.newcomers.insert(number);
        Some(Place {
            seats: Arc::clone(self),
            seat,
            waker: None,
        })
    }

    fn put_out(&self, ledger: &mut MutexGuard<'_, Ledger>, number: u64) {
        if let Some(seat) = ledger.remove(number) {
            self.leaving.fetch_add(1, Relaxed);
            seat.tell(Word::Leave);
        }
    }

    /// Puts one out, if any can be.
    pub(super) fn make_room(&self) {
        let mut ledger = lock(&self.ledger);
        if let Some(victim) = ledger.first_to_go(None) {
            self.put_out(&mut ledger, victim);
        }
    }

    /// Whether many who were told to leave are still there, with their descriptors.
    pub(super) fn are_leaving_slowly(&self) -> bool {
        self.leaving.load(Relaxed) > LEAVING_AT_ONCE
    }

    /// Puts out who has been silent for too long.
    pub(super) fn sweep(&self) {
        let now = u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX);
        self.now.store(now, Relaxed);
        let mut ledger = lock(&self.ledger);
        let is_over = |seat: &&Arc<Seat>| {
            let patience = if seat.has_asked.load(Relaxed) {
                self.bounds.idle
            } else {
                self.bounds.first_request
            };
            let quiet = now.saturating_sub(seat.quiet_since.load(Relaxed));
            seat.is_idle() && Duration::from_secs(quiet.into()) > patience
        };
        let silent = ledger.seats.values().filter(is_over);
        for seat in silent.map(Arc::clone).collect::<Vec<_>>() {
            // An HTTP/2 client that is told before its connection closes loses no request.
            let is_warned = seat.word.load(Acquire) != 0;
            if is_warned || !seat.has_asked.load(Relaxed) {
                self.put_out(&mut ledger, seat.number);
            } else {
                seat.tell(Word::Finish);
            }
        }
    }

    /// Tells all to end.
    pub(super) fn finish(&self) {
        for seat in lock(&self.ledger).seats.values() {
            seat.tell(Word::Finish);
        }
    }
}

/// A connection's own place; given back by dropping it.
#[derive(Debug)]
pub(super) struct Place {
    seats: Arc<Seats>,
    seat: Arc<Seat>,
    waker: Option<Waker>,
}

impl Place {
    /// What this connection is told, once it is told something. For the connection's own task.
    pub(super) fn poll_word(&mut self, cx: &Context<'_>) -> Poll<Word> {
        if !self
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            self.waker = Some(cx.waker().clone());
            *lock(&self.seat.waker) = Some(cx.waker().clone());
        }
        match self.seat.word.load(Acquire) {
            0 => Poll::Pending,
            1 => Poll::Ready(Word::Finish),
            _ => Poll::Ready(Word::Leave),
        }
    }

    /// What tells of this connection's requests.
    pub(super) fn guest(&self) -> Guest {
        Guest {
            seats: Arc::clone(&self.seats),
            seat: Arc::clone(&self.seat),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let known = lock(&self.seats.ledger).remove(self.seat.number);
        if known.is_none() {
            self.seats.leaving.fetch_sub(1, Relaxed);
        }
    }
}

/// A request's tie to its connection: while one exists that was made by [`Guest::asks`], the
/// connection is at work.
#[derive(Debug)]
pub(in crate::http) struct Guest {
    seats: Arc<Seats>,
    seat: Arc<Seat>,
}

impl Guest {
    /// A request's head is complete.
    pub(super) fn asks(&self) -> Asking {
        self.seat.in_flight.fetch_add(1, AcqRel);
        if !self.seat.has_asked.load(Relaxed) {
            self.seat.has_asked.store(true, Relaxed);
        }
        Asking(Guest {
            seats: Arc::clone(&self.seats),
            seat: Arc::clone(&self.seat),
        })
    }
}

/// A request in flight, until its answer has gone out.
#[derive(Debug)]
pub(in crate::http) struct Asking(Guest);

impl Asking {
    /// The request was let in: this is no newcomer any more.
    pub(in crate::http) fn is_let_in(&self) {
        let Guest { seats, seat } = &self.0;
        if !seat.is_newcomer.load(Relaxed) || !seat.is_newcomer.swap(false, Relaxed) {
            return;
        }
        let mut ledger = lock(&seats.ledger);
        ledger.newcomers.remove(&seat.number);
        if let Some(origin) = ledger.origins.get_mut(&seat.origin) {
            origin.newcomers.remove(&seat.number);
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let Guest { seats, seat } = &self.0;
        seat.quiet_since.store(seats.now.load(Relaxed), Relaxed);
        seat.in_flight.fetch_sub(1, AcqRel);
    }
}

/// Whose connection it is: an IPv4 address, or the network that an IPv6 host is given (a /64).
fn origin(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)))
        }
        other => other,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
