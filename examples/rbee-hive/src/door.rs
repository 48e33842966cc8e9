//! Where connections come in: how many there may be, and how long each may take to say what it wants.
//!
//! Who has not made a call that was let in may be anybody: such connections end when they are silent, and go first
//! when there are too many, so that the queen always gets in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tower_service::Service;

/// Connections in all, and from one address.
const MOST: usize = 512;
const MOST_OF_ONE: usize = 128;

/// How long nothing is accepted when the system has nothing left for another connection.
const PAUSE: Duration = Duration::from_millis(20);

/// Answers to calls that may not have been let in: the last one is given without a look at the token.
const TURNED_AWAY: [StatusCode; 3] = [
    StatusCode::UNAUTHORIZED,
    StatusCode::FORBIDDEN,
    StatusCode::METHOD_NOT_ALLOWED,
];

/// How often that is said.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// Raises this process's limit of open files as far as it may.
pub(crate) fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "the limit of open files stays as it is");
        }
    }
}

/// Serves until it is told to stop; then each connection ends with the answer that is under way.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    head_timeout: Duration,
    stop: CancellationToken,
) {
    let guests = Arc::new(Guests::default());
    let graceful = GracefulShutdown::new();
    let mut said: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, from)) => {
                if let Some(place) = guests.take(from.ip()) {
                    greet(stream, &router, place, head_timeout, &graceful);
                } else {
                    note(&mut said, from, "as many connections as there may be");
                }
            }
            Err(error) => {
                note(&mut said, listener.local_addr(), &error.to_string());
                sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    graceful.shutdown().await;
}

fn note(said: &mut Option<Instant>, at: impl std::fmt::Debug, why: &str) {
    if said.is_none_or(|said| said.elapsed() > SAID_EVERY) {
        *said = Some(Instant::now());
        tracing::warn!(?at, why, "a connection was not taken");
    }
}

fn greet(
    stream: TcpStream,
    router: &Router,
    place: Place,
    head_timeout: Duration,
    graceful: &GracefulShutdown,
) {
    // Without this, small answers wait 40 ms for the other side's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let (router, known) = (router.clone(), place.guest.known.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let (mut router, known) = (router.clone(), known.clone());
        let says_health = request.uri().path().ends_with("/health");
        async move {
            let answer = router.call(request.map(Body::new)).await;
            if let Ok(answer) = &answer
                && !says_health
                && !TURNED_AWAY.contains(&answer.status())
            {
                known.store(true, Relaxed);
            }
            answer
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout);
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    let serving = graceful.watch(serving);
    tokio::spawn(async move {
        let ended = tokio::select! {
            served = serving => served.map_err(|error| error.to_string()),
            () = place.guest.leave.cancelled() => Err("it made room for another".to_owned()),
        };
        if let Err(error) = ended {
            tracing::debug!(error, "a connection ended");
        }
        drop(place);
    });
}

/// Who is connected.
#[derive(Debug, Default)]
struct Guests(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    next: u64,
    guests: HashMap<u64, Guest>,
}

#[derive(Debug, Clone)]
struct Guest {
    from: IpAddr,
    /// Whether it made a call that was let in.
    known: Arc<AtomicBool>,
    leave: CancellationToken,
}

/// A connection's place among them; given back when it is dropped.
struct Place {
    id: u64,
    guest: Guest,
    guests: Arc<Guests>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.guests.book().guests.remove(&self.id);
    }
}

impl Guests {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more; the oldest that nobody knows leaves for it, if need be.
    fn take(self: &Arc<Self>, from: IpAddr) -> Option<Place> {
        let mut book = self.book();
        let of_one = book.guests.values().filter(|guest| guest.from == from);
        let too_many_of_one = of_one.count() >= MOST_OF_ONE;
        if too_many_of_one || book.guests.len() >= MOST {
            let goes = |guest: &Guest| {
                !guest.known.load(Relaxed) && (guest.from == from || !too_many_of_one)
            };
            let strangers = book.guests.iter().filter(|(_, guest)| goes(guest));
            let oldest = strangers.map(|(id, _)| *id).min()?;
            book.guests.remove(&oldest)?.leave.cancel();
        }
        let id = book.next;
        book.next += 1;
        let guest = Guest {
            from,
            known: Arc::default(),
            leave: CancellationToken::new(),
        };
        book.guests.insert(id, guest.clone());
        Some(Place {
            id,
            guest,
            guests: self.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_stranger_leaves_for_a_newcomer_and_whoever_is_known_stays() {
        let guests = Arc::new(Guests::default());
        let near = IpAddr::from([127, 0, 0, 1]);
        let known = guests.take(near).unwrap();
        known.guest.known.store(true, Relaxed);
        let strangers: Vec<Place> = (1..MOST_OF_ONE)
            .map(|_| guests.take(near).unwrap())
            .collect();
        let newcomer = guests.take(near).unwrap();
        assert!(strangers[0].guest.leave.is_cancelled());
        assert!(!strangers[1].guest.leave.is_cancelled());
        assert!(!known.guest.leave.is_cancelled());
        for place in strangers.iter().chain([&newcomer]) {
            place.guest.known.store(true, Relaxed);
        }
        assert!(guests.take(near).is_none());
        assert!(guests.take(IpAddr::from([10, 0, 0, 1])).is_some());
        drop(newcomer);
        assert!(guests.take(near).is_some());
    }
}
