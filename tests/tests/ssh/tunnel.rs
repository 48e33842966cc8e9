//! Connections through the session.

use std::time::{Duration, Instant};

use rbee_orchestrator::transport::{HiveStream, HiveTransport, SshOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::proxy::Proxy;
use rbee_tests::harness::ports;
use rbee_tests::harness::sshd::Sshd;

use crate::eventually;

const MIB: usize = 1 << 20;

/// Listens on the machine's loopback address; hands out what connects.
async fn listen() -> (u16, mpsc::Receiver<TcpStream>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let (sender, accepted) = mpsc::channel(256);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            if sender.send(socket).await.is_err() {
                return;
            }
        }
    });
    (port, accepted)
}

/// Sends back what comes.
async fn echo() -> u16 {
    let (port, mut accepted) = listen().await;
    tokio::spawn(async move {
        while let Some(mut socket) = accepted.recv().await {
            tokio::spawn(async move {
                let (mut from, mut to) = socket.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        }
    });
    port
}

async fn within<T>(limit: Duration, what: &str, done: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(limit, done).await;
    done.unwrap_or_else(|_| panic!("not within {limit:?}: {what}"))
}

/// Bytes that tell where they belong.
fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length)
        .map(|index| (index.wrapping_mul(31) ^ (index >> 8) ^ seed) as u8)
        .collect()
}

async fn say_and_hear(stream: &mut dyn HiveStream, words: &[u8]) {
    stream.write_all(words).await.expect("sent");
    stream.flush().await.expect("sent");
    let mut heard = vec![0; words.len()];
    stream.read_exact(&mut heard).await.expect("received");
    assert_eq!(heard, words);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_go_on_while_one_is_stalled() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let (flood, mut flooded) = listen().await;
    let mut stalled = transport.connect(flood).await.expect("connected");
    let mut flooding = flooded.recv().await.expect("accepted");
    // As much as anything on the way takes, and nobody reads it.
    let chunk = pattern(0, MIB);
    let mut sent = 0;
    let second = Duration::from_secs(1);
    while let Ok(wrote) = tokio::time::timeout(second, flooding.write(&chunk[sent % MIB..])).await {
        sent += wrote.expect("open");
        assert!(sent < 64 * MIB, "the writer is never held back");
    }

    let port = echo().await;
    let transport = std::sync::Arc::new(transport);
    let mut streams = JoinSet::new();
    for number in 0..64 {
        let transport = std::sync::Arc::clone(&transport);
        streams.spawn(async move {
            let mut stream = transport.connect(port).await.expect("connected");
            let mut slowest = Duration::ZERO;
            for round in 0..50 {
                let begun = Instant::now();
                let words = pattern(number * 1000 + round, 100 + round * 40);
                say_and_hear(&mut *stream, &words).await;
                slowest = slowest.max(begun.elapsed());
            }
            slowest
        });
    }
    let slowest = within(Duration::from_secs(30), "64 echoes", streams.join_all()).await;
    let slowest = slowest.into_iter().max().expect("64");
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");

    // What was stalled is still all there.
    let read = async {
        let mut begin = vec![0; 4 * MIB];
        stalled.read_exact(&mut begin).await.expect("it flows");
        assert!(begin.chunks(MIB).all(|part| part == chunk));
    };
    within(Duration::from_secs(20), "the stalled stream", read).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_transfers_arrive_whole_both_ways_at_once() {
    // A new key every few megabytes, as long sessions see it.
    let sshd = Sshd::start_with("RekeyLimit 4M");
    let transport = sshd.transport();
    let (port, mut accepted) = listen().await;
    let mut near = transport.connect(port).await.expect("connected");
    let mut far = accepted.recv().await.expect("accepted");
    let (there, back) = (pattern(1, 64 * MIB), pattern(2, 64 * MIB));
    let (expect_there, expect_back) = (there.clone(), back.clone());
    let far_side = tokio::spawn(async move {
        let (mut from, mut to) = far.split();
        let write = async {
            to.write_all(&back).await.expect("sent");
            to.shutdown().await.expect("ended");
        };
        let mut got = Vec::new();
        let (read, ()) = tokio::join!(from.read_to_end(&mut got), write);
        read.expect("received");
        assert!(got == expect_there, "{} bytes arrived", got.len());
    });
    let near_side = async {
        let (mut from, mut to) = tokio::io::split(&mut near);
        let write = async {
            to.write_all(&there).await.expect("sent");
            to.shutdown().await.expect("ended");
        };
        let mut got = Vec::new();
        let (read, ()) = tokio::join!(from.read_to_end(&mut got), write);
        read.expect("received");
        assert!(got == expect_back, "{} bytes arrived", got.len());
    };
    let both = async { tokio::join!(near_side, far_side).1.expect("no panic") };
    within(Duration::from_secs(60), "64 MiB both ways", both).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_stopped_in_the_middle_of_packets_loses_none() {
    let sshd = Sshd::start_with("RekeyLimit 8M");
    let proxy = std::sync::Arc::new(Proxy::narrow(sshd.port));
    sshd.trust(proxy.port);
    let mut target = sshd.target();
    target.port = Some(proxy.port);
    let options = SshOptions {
        socket_buffer_bytes: 4 << 10,
        ..sshd.options()
    };
    let transport = std::sync::Arc::new(sshd.transport_with(target, options));
    let port = echo().await;
    let stutter = std::sync::Arc::clone(&proxy);
    let stutter = tokio::spawn(async move {
        for is_silent in [true, false].into_iter().cycle() {
            stutter.silence(is_silent);
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    });
    let mut users = JoinSet::new();
    for number in 0..16 {
        let transport = std::sync::Arc::clone(&transport);
        users.spawn(async move {
            for round in 0..4 {
                let words = pattern(number, 100_000 * (1 + (number + round) % 16));
                let stream = transport.connect(port).await.expect("connected");
                let (mut from, mut to) = tokio::io::split(stream);
                match (number + round) % 4 {
                    // In the middle of it, he goes.
                    0 => drop(to.write_all(&words).await),
                    1 => {
                        let output = transport.exec(&["echo", "there"]).await.expect("it runs");
                        assert_eq!(output.stdout, b"there\n");
                    }
                    _ => {
                        let write = async {
                            to.write_all(&words).await.expect("sent");
                            to.shutdown().await.expect("ended");
                        };
                        let mut heard = Vec::new();
                        let (read, ()) = tokio::join!(from.read_to_end(&mut heard), write);
                        read.expect("received");
                        assert!(heard == words, "{} of {}", heard.len(), words.len());
                    }
                }
            }
        });
    }
    within(Duration::from_secs(60), "all users", users.join_all()).await;
    stutter.abort();
    proxy.silence(false);
    transport.exec(&["true"]).await.expect("it works on");
    assert_eq!(proxy.connections(), 1, "it is the same session");
}

#[tokio::test]
async fn a_port_where_nothing_listens_is_refused_at_once() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let error = transport
        .connect(ports::free().expect("there is one"))
        .await
        .err()
        .expect("refused");
    assert_eq!(
        error.kind(),
        std::io::ErrorKind::ConnectionRefused,
        "{error}"
    );
    transport.connect(echo().await).await.expect("others work");
}

#[tokio::test]
async fn a_machine_that_allows_no_tunnels_says_so() {
    let sshd = Sshd::start_with("AllowTcpForwarding no");
    let error = sshd.transport().connect(9).await.err().expect("forbidden");
    assert!(error.to_string().contains("AllowTcpForwarding"), "{error}");
}

#[tokio::test]
async fn dropping_a_stream_closes_the_connection_there() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let (port, mut accepted) = listen().await;
    for stalled in [false, true] {
        let mut near = transport.connect(port).await.expect("connected");
        let mut far = accepted.recv().await.expect("accepted");
        if stalled {
            // A write that waits for the far side's window, and one that is read by nobody.
            let stuffing = vec![0; 16 * MIB];
            let stuff = near.write_all(&stuffing);
            assert!(
                tokio::time::timeout(Duration::from_millis(500), stuff)
                    .await
                    .is_err()
            );
        }
        drop(near);
        let mut rest = Vec::new();
        let end = far.read_to_end(&mut rest);
        let _ = within(Duration::from_secs(10), "the far side's end", end).await;
    }
}

#[tokio::test]
async fn the_far_side_s_end_is_seen_and_words_still_go_there() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let (port, mut accepted) = listen().await;
    let mut near = transport.connect(port).await.expect("connected");
    let mut far = accepted.recv().await.expect("accepted");
    far.write_all(b"last words").await.expect("sent");
    far.shutdown().await.expect("ended");
    let mut heard = String::new();
    let read = near.read_to_string(&mut heard);
    within(Duration::from_secs(5), "the end", read)
        .await
        .expect("read");
    assert_eq!(heard, "last words");
    near.write_all(b"understood").await.expect("half open");
    near.shutdown().await.expect("ended");
    far.read_to_string(&mut heard).await.expect("read");
    assert_eq!(heard, "last wordsunderstood");
}

#[tokio::test]
async fn streams_outlive_their_transport() {
    let sshd = Sshd::start();
    let transport = sshd.transport();
    let mut stream = transport.connect(echo().await).await.expect("connected");
    drop(transport);
    say_and_hear(&mut *stream, b"still there").await;
}

#[tokio::test]
async fn a_connection_that_hangs_holds_up_no_other() {
    let sshd = Sshd::start();
    let options = SshOptions {
        open_patience: Duration::from_millis(100),
        open_timeout: Duration::from_secs(6),
        ..sshd.options()
    };
    let transport = sshd.transport_with(sshd.target(), options);
    let wedged = Wedged::new().await;
    let port = echo().await;
    let mut before = transport.connect(port).await.expect("connected");
    let hangs = transport.connect(wedged.port);
    let others = async {
        for _ in 0..3 {
            let mut stream = transport.connect(port).await.expect("connected");
            say_and_hear(&mut *stream, b"hello").await;
            transport.exec(&["true"]).await.expect("it runs");
        }
        say_and_hear(&mut *before, b"and the older one").await;
    };
    let begun = Instant::now();
    let (hung, took) = tokio::join!(hangs, async {
        others.await;
        begun.elapsed()
    });
    assert_eq!(
        hung.err().map(|e| e.kind()),
        Some(std::io::ErrorKind::TimedOut)
    );
    assert!(took < Duration::from_secs(5), "{took:?}");
    // It is known now, and costs nobody anything.
    let begun = Instant::now();
    let again = transport.connect(wedged.port).await;
    assert!(again.is_err() && begun.elapsed() < Duration::from_secs(3));
}

/// A port whose owner does not accept, with its queue full: connections hang.
struct Wedged {
    port: u16,
    _listener: tokio::net::TcpListener,
    _queued: Vec<TcpStream>,
}

impl Wedged {
    async fn new() -> Self {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
        let listener = socket.listen(1).expect("it listens");
        let port = listener.local_addr().expect("bound").port();
        let mut queued = Vec::new();
        loop {
            let connect = TcpStream::connect(("127.0.0.1", port));
            match tokio::time::timeout(Duration::from_millis(300), connect).await {
                Ok(stream) => queued.push(stream.expect("queued")),
                Err(_) => break,
            }
        }
        Wedged {
            port,
            _listener: listener,
            _queued: queued,
        }
    }
}

#[tokio::test]
async fn without_a_tunnel_connections_are_plain() {
    let sshd = Sshd::start();
    let options = std::sync::Arc::new(sshd.options());
    let plain =
        rbee_orchestrator::transport::SshTransport::new(sshd.target(), "localhost", false, options);
    assert_eq!(plain.host(), "localhost");
    assert_eq!(sshd.transport().host(), "127.0.0.1");
    let mut stream = plain.connect(echo().await).await.expect("connected");
    say_and_hear(&mut *stream, b"plain").await;
}

#[tokio::test]
async fn nothing_runs_when_transport_and_streams_are_gone() {
    let sshd = Sshd::start();
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
        let names = tasks
            .flatten()
            .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        let ours = format!("ssh {}", "unused-name");
        names.filter(|name| name.trim() == ours.trim()).count()
    };
    let config = format!(
        "Host unused-name\n HostName 127.0.0.1\n Port {}\n",
        sshd.port
    );
    std::fs::write(sshd.path("client/.ssh/config"), config).expect("written");
    let mut target = sshd.target();
    (target.host, target.port) = ("unused-name".into(), None);
    let transport = sshd.transport_with(target, sshd.options());
    let stream = transport.connect(echo().await).await.expect("connected");
    assert_eq!(threads(), 1);
    drop(stream);
    drop(transport);
    eventually("the thread has ended", || threads() == 0).await;
}
