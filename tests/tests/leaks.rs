//! Ten thousand requests, a third of them abandoned at random moments: what they held comes back.

use rbee_tests::harness::{Home, Queen, StubEngine, eventually, raw};
use rbee_tests::proc;
use rbee_tests::random::Random;
use serde_json::{Value, json};
use std::io::{self, Read};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

const REQUESTS: usize = 10_000;
const CLIENTS: u64 = 16;
/// Fewer than the clients, so that some wait.
const SLOTS: usize = 10;
const MODEL: &str = "file:leaky";

/// Longer than most requests take here, so that clients leave in every phase: while they wait,
/// before the headers, before the first token, in midstream.
const LONGEST_STAY_US: u64 = 15_000;

fn request(random: &mut Random) -> (&'static str, Value) {
    let stream = random.percent(70);
    match random.percent(50) {
        true => (
            "/v2/tasks",
            json!({"model": MODEL, "prompt": "x", "max_tokens": 4, "stream": stream}),
        ),
        false => (
            "/v1/chat/completions",
            json!({"model": MODEL, "messages": [{"role": "user", "content": "x"}],
                   "max_tokens": 4, "stream": stream}),
        ),
    }
}

/// Reads the whole answer.
fn read_to_the_end(connection: &mut TcpStream) {
    let read = io::copy(connection, &mut io::sink());
    assert!(read.expect("the queen does not break off") > 0);
}

/// Reads until then, or until the answer ends.
fn read_for(connection: &mut TcpStream, stay: Duration) {
    let end = Instant::now() + stay;
    let mut piece = [0; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let set = connection.set_read_timeout(Some(left));
        set.expect("the time is not zero");
        match connection.read(&mut piece) {
            Ok(0) => return,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => panic!("the queen breaks off: {e}"),
        }
    }
}

/// Sends that many requests from several clients at once.
fn crowd(queen: &Queen, requests: usize, random: &Random) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let mut random = random.fork(client);
            let next = &next;
            scope.spawn(move || {
                while next.fetch_add(1, Relaxed) < requests {
                    let (path, body) = request(&mut random);
                    let sent = raw::post(queen, path, &[], &body.to_string());
                    let mut connection = sent.expect("the queen listens");
                    match random.percent(33) {
                        true => {
                            let stay = random.between(0, LONGEST_STAY_US);
                            read_for(&mut connection, Duration::from_micros(stay));
                        }
                        false => read_to_the_end(&mut connection),
                    }
                }
            });
        }
    });
}

/// Nothing is open, and no slot is taken.
#[track_caller]
fn is_quiet(queen: &Queen, stub: &StubEngine) {
    let within = Duration::from_secs(5);
    eventually("the engine is free", within, || {
        stub.count("in_flight") == 0
    });
    for state in ["queued", "running"] {
        let path = format!("/v2/tasks?state={state}");
        eventually("no task is open", within, || {
            queen.look(&path).json()["tasks"] == json!([])
        });
    }
    queen.assert_no_slot_leaked();
}

/// Files of connections to the database that are opened when more read at once than ever before: the
/// queen keeps four at most, each with the database and its log.
const READERS_FILES: usize = 8;

#[test]
fn after_ten_thousand_requests_everything_is_back_where_it_was() {
    let home = Home::new();
    let stub = home.stub(&["--ttft-ms", "2", "--itl-ms", "1"]);
    let queen = home.queen().start();
    queen.register(&stub, MODEL, &json!({"slots_total": SLOTS}));
    let seed = u64::from(std::process::id());
    eprintln!("seed {seed}");
    let random = Random::new(seed);
    let files = || proc::open_files(queen.pid());
    let rss_kb = || proc::usage(&[queen.pid()]).rss_kb;
    let (_, sockets) = files();
    // Idle connections to workers are kept for 3 s.
    let back = Duration::from_secs(10);
    // Pools, caches and the allocator's arenas are filled once.
    crowd(&queen, REQUESTS / 5, &random.fork(1));
    is_quiet(&queen, &stub);
    eventually("every socket is closed", back, || files().1 <= sockets);
    let ((files_before, sockets_before), rss_before) = (files(), rss_kb());

    crowd(&queen, REQUESTS, &random.fork(2));
    is_quiet(&queen, &stub);
    eventually("every file and socket is closed again", back, || {
        let (files, sockets) = files();
        sockets <= sockets_before && files <= files_before + READERS_FILES
    });
    let grown = rss_kb().saturating_sub(rss_before);
    eprintln!("{rss_before} KiB before, {grown} KiB more after");
    // A kilobyte a request would be ten megabytes.
    let most = rss_before / 10 + 4096;
    assert!(grown <= most, "{grown} KiB more than {rss_before} KiB");
    let all = (REQUESTS + REQUESTS / 5) as u64;
    // They left in every phase: some before the engine heard of them, some while it worked.
    let (asked, left) = (stub.count("requests"), stub.count("disconnects"));
    assert!(asked < all - 100 && left > 100, "{all}, {asked}, {left}");
}
