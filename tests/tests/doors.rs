//! Who comes to the queen's socket, how many, and for how long.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rbee_tests::harness::{Home, Launch, Queen, eventually, raw};
use rbee_tests::proc;
use serde_json::json;

const TOKEN: &str = "a-token-of-the-tests";

/// The first half of HTTP/2's preface.
const HALF_A_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nS";

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// An HTTP/2 SETTINGS frame without settings.
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

/// An HTTP/2 PING frame.
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0abcdefgh";

fn with_token<'h>(home: &'h Home) -> Launch<'h> {
    home.queen().env("QUEEN_TOKEN", TOKEN)
}

fn connect(queen: &Queen) -> TcpStream {
    let stream = raw::connect(queen).expect("the queen listens");
    stream
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("a socket");
    stream
}

/// A connection from another address of this machine.
fn connect_from(queen: &Queen, host: u8) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), 0)))?;
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, queen.port()));
        socket.connect(to).await?.into_std()
    });
    let stream = stream.expect("the queen listens");
    stream.set_nonblocking(false).expect("a socket");
    stream
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("a socket");
    stream
}

/// Whether the other side has closed a connection; what it sent is thrown away.
fn is_closed(stream: &mut TcpStream) -> bool {
    let mut piece = [0; 1024];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => {
                use std::io::ErrorKind::{TimedOut, WouldBlock};
                return !matches!(error.kind(), WouldBlock | TimedOut);
            }
        }
    }
}

fn ask(stream: &mut TcpStream, token: &str) -> (u16, String) {
    let request = format!(
        "GET /v2/workers/list HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\r\n"
    );
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a socket");
    stream.write_all(request.as_bytes()).expect("it is read");
    let answer = raw::answer(stream).expect("an answer");
    stream
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("a socket");
    answer
}

#[test]
fn a_client_gets_in_beside_a_thousand_that_never_say_who_they_are() {
    let home = Home::new();
    let queen = with_token(&home)
        .config("limits.max_connections = 100")
        .config("timeouts.first_request = \"10min\"")
        .start();
    let mut known = connect(&queen);
    assert_eq!(ask(&mut known, TOKEN).0, 200);
    let mut strangers: Vec<TcpStream> = (0..1010)
        .map(|number| {
            let mut stranger = connect(&queen);
            let start = [HALF_A_PREFACE, b"P", b"GET / HT", b""][number % 4];
            // One that was put out already may be told so by a reset.
            let _ = stranger.write_all(start);
            stranger
        })
        .collect();
    let mut client = connect(&queen);
    assert_eq!(ask(&mut client, TOKEN).0, 200);
    assert_eq!(ask(&mut known, TOKEN).0, 200, "it was there before them");
    eventually(
        "those that are too many are put out",
        Duration::from_secs(30),
        || {
            strangers.retain_mut(|stranger| {
                stranger.set_nonblocking(true).expect("a socket");
                !is_closed(stranger)
            });
            strangers.len() <= 100
        },
    );
    // A wrong token makes nobody known.
    let mut guesser = connect(&queen);
    assert_eq!(ask(&mut guesser, "wrong").0, 401);
    let _more: Vec<TcpStream> = (0..100).map(|_| connect(&queen)).collect();
    eventually("a guesser is put out", Duration::from_secs(30), || {
        is_closed(&mut guesser)
    });
    assert_eq!(ask(&mut known, TOKEN).0, 200);
}

#[test]
fn a_first_request_that_does_not_come_to_its_end_closes_the_connection() {
    let home = Home::new();
    let queen = with_token(&home)
        .config("timeouts.first_request = \"1s\"")
        .start();
    let starts: [&[&[u8]]; 7] = [
        &[],
        &[b"P"],
        &[HALF_A_PREFACE],
        &[PREFACE],
        &[PREFACE, SETTINGS],
        &[PREFACE, SETTINGS, b"\0\0\x05\x01\0\0\0\0\x01"],
        &[b"POST /v2/tasks HTTP/1.1\r\nhost: localhost\r\n"],
    ];
    let mut open: Vec<TcpStream> = starts
        .iter()
        .map(|start| {
            let mut stream = connect(&queen);
            start
                .iter()
                .for_each(|piece| stream.write_all(piece).expect("it is read"));
            stream
        })
        .collect();
    // Those that always send a little more, and those that play with frames, fare no better.
    let mut drips = connect(&queen);
    let mut pings = connect(&queen);
    drips.write_all(b"GET / HTTP/1.1\r\nx: ").expect("read");
    pings.write_all(PREFACE).expect("it is read");
    pings.write_all(SETTINGS).expect("it is read");
    let (mut dripped, mut pinged) = (true, true);
    eventually("all are closed", Duration::from_secs(30), || {
        dripped = dripped && drips.write_all(b"y").is_ok() && !is_closed(&mut drips);
        pinged = pinged && pings.write_all(PING).is_ok() && !is_closed(&mut pings);
        open.retain_mut(|stream| !is_closed(stream));
        open.is_empty() && !dripped && !pinged
    });
    assert_eq!(ask(&mut connect(&queen), TOKEN).0, 200);
}

#[test]
fn a_connection_without_requests_is_closed_and_one_at_work_is_not() {
    let home = Home::new();
    let queen = home
        .queen()
        .config("timeouts.idle_connection = \"1s\"")
        .start();
    let stub = home.stub(&["--tokens", "40", "--itl-ms", "100"]);
    queen.register(&stub, "file:long", &json!({}));
    let body = json!({"model": "file:long", "prompt": "x", "max_tokens": 40}).to_string();
    let mut working = raw::post(&queen, "/v2/tasks", &[], &body).expect("it is read");
    let mut idle = connect(&queen);
    assert_eq!(ask(&mut idle, TOKEN).0, 200);
    eventually("the idle one is closed", Duration::from_secs(30), || {
        is_closed(&mut idle)
    });
    let mut dripping = connect(&queen);
    assert_eq!(ask(&mut dripping, TOKEN).0, 200);
    eventually(
        "a second head that drips ends",
        Duration::from_secs(30),
        || dripping.write_all(b"G").is_err() || is_closed(&mut dripping),
    );
    let mut text = String::new();
    working.read_to_string(&mut text).expect("the whole stream");
    assert!(text.contains("\"type\":\"end\""), "{text}");
}

#[test]
fn a_connection_too_many_is_told_so_while_all_others_work() {
    let home = Home::new();
    let queen = home.queen().config("limits.max_connections = 2").start();
    let stub = home.stub(&["--tokens", "1000", "--itl-ms", "50"]);
    queen.register(&stub, "file:long", &json!({"slots_total": 2}));
    let body = json!({"model": "file:long", "prompt": "x", "max_tokens": 1000}).to_string();
    let streams: Vec<TcpStream> = (0..2)
        .map(|_| {
            let mut stream = raw::post(&queen, "/v2/tasks", &[], &body).expect("it is read");
            stream.read_exact(&mut [0; 15]).expect("it has begun");
            stream
        })
        .collect();
    let mut third = connect(&queen);
    let (status, text) = ask(&mut third, TOKEN);
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("OVERLOADED"), "{text}");
    assert!(text.to_lowercase().contains("retry-after: "), "{text}");
    assert!(queen.log().contains("as many connections"));
    drop(streams);
    eventually("there is room again", Duration::from_secs(30), || {
        ask(&mut connect(&queen), TOKEN).0 == 200
    });
}

#[test]
fn one_address_can_not_take_the_places_of_others() {
    let home = Home::new();
    let queen = with_token(&home)
        .config("limits.max_connections_per_address = 4")
        .config("timeouts.first_request = \"10min\"")
        .start();
    let mut waiting = connect(&queen);
    waiting.write_all(b"GET /v2/workers/list").expect("read");
    let mut others: Vec<TcpStream> = (0..40).map(|_| connect_from(&queen, 2)).collect();
    eventually("their own first ones go", Duration::from_secs(30), || {
        others.retain_mut(|other| {
            other.set_nonblocking(true).expect("a socket");
            !is_closed(other)
        });
        others.len() <= 4
    });
    assert!(!is_closed(&mut waiting), "it came from another address");
    let mut from_there = connect_from(&queen, 2);
    assert_eq!(ask(&mut from_there, TOKEN).0, 200);
}

#[test]
fn a_first_byte_that_waits_for_the_next_costs_nothing() {
    let home = Home::new();
    let queen = with_token(&home)
        .config("timeouts.first_request = \"10min\"")
        .start();
    let strangers: Vec<TcpStream> = (0..1000)
        .map(|_| {
            let mut stranger = connect(&queen);
            stranger.write_all(b"P").expect("it is read");
            stranger
        })
        .collect();
    let spent = || proc::usage(&[queen.pid()]).cpu_s;
    let before = spent();
    let until = Instant::now() + Duration::from_secs(2);
    eventually("two seconds pass", Duration::from_secs(30), || {
        Instant::now() >= until
    });
    let spent = spent() - before;
    assert!(spent < 0.5, "{spent} s of a core for those who say nothing");
    drop(strangers);
}

#[test]
fn a_foreign_page_starts_nothing() {
    let home = Home::new();
    let queen = home.queen().start();
    let get = |path: &str, headers: &str| {
        let mut stream = raw::connect(&queen).expect("the queen listens");
        let request = format!("GET {path} HTTP/1.1\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).expect("it is read");
        raw::answer(&mut stream).expect("an answer")
    };
    let foreign = [
        "host: localhost\r\nsec-fetch-site: cross-site\r\n",
        "host: localhost\r\nhost: evil.example\r\n",
        "host: localhost@evil.example\r\n",
        "host: localhost\r\norigin: http://evil.example\r\nsec-fetch-site: cross-site\r\n",
    ];
    for headers in foreign {
        for path in ["/v1/models", "/v2/logs?node=localhost", "/v2/models/list"] {
            let (status, text) = get(path, headers);
            assert_eq!(status, 403, "{headers}{text}");
            assert!(text.contains("FORBIDDEN"), "{text}");
        }
    }
    let (status, text) = get("http://evil.example/v1/models", "host: localhost\r\n");
    assert_eq!(status, 403, "{text}");
    let hives = queen.look("/v2/registry/beehives/list").json();
    assert_eq!(hives["nodes"][0]["status"], "offline", "{hives}");
    let ours = "host: localhost.:1\r\nsec-fetch-site: none\r\n";
    assert_eq!(get("/v2/workers/list", ours).0, 200);
}
