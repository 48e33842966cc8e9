//! Sessions that end, and come back.

use std::time::{Duration, Instant};

use rbee_orchestrator::Code;
use rbee_orchestrator::transport::{HiveTransport, SshOptions, SshTransport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::proxy::Proxy;
use rbee_tests::harness::sshd::Sshd;

use crate::eventually;

fn through(proxy: &Proxy, sshd: &Sshd, options: SshOptions) -> SshTransport {
    sshd.trust(proxy.port);
    let mut target = sshd.target();
    target.port = Some(proxy.port);
    sshd.transport_with(target, options)
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

#[tokio::test]
async fn when_sshd_is_killed_streams_end_and_a_later_connect_works() {
    let mut sshd = Sshd::start();
    let transport = sshd.transport();
    let (_listener, port) = listener().await;
    let mut stream = transport.connect(port).await.expect("connected");
    let followed = sshd.known_hosts().display().to_string();
    let long_words = ["tail", "-f", &followed];
    let long = transport.exec(&long_words);
    tokio::pin!(long);
    tokio::select! {
        _ = &mut long => panic!("it goes on"),
        () = eventually("it runs", || !sshd.programs().is_empty()) => {}
    }
    sshd.kill();
    let limit = Duration::from_secs(5);
    let ended = tokio::time::timeout(limit, stream.read_u8()).await;
    let error = ended.expect("at once").expect_err("an error, not an end");
    assert!(error.to_string().contains("session"), "{error}");
    assert!(stream.write_all(b"x").await.is_err());
    let error = tokio::time::timeout(limit, long).await.expect("at once");
    let error = error.expect_err("it was cut off");
    assert_eq!(error.code, Code::HiveUnreachable, "{error}");

    // While it is down, a clear error in time.
    let deadline = Instant::now() + limit;
    loop {
        let error = transport.exec(&["true"]).await.expect_err("it is down");
        if error.message.contains("can't be reached") {
            break;
        }
        // One that broke so soon is not followed by another at once.
        assert!(error.message.contains("again in"), "{error}");
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    sshd.start_again();
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = transport.connect(port).await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    transport.exec(&["true"]).await.expect("it works again");
}

#[tokio::test]
async fn a_short_silence_is_survived_and_a_long_one_ends_the_session() {
    let sshd = Sshd::start();
    let proxy = Proxy::to(sshd.port).await;
    let options = SshOptions {
        keep_alive: Duration::from_secs(1),
        keep_alive_misses: 3,
        connect_timeout: Duration::from_secs(2),
        ..sshd.options()
    };
    let transport = through(&proxy, &sshd, options);
    let (listener, port) = listener().await;
    let mut stream = transport.connect(port).await.expect("connected");
    let (mut far, _) = listener.accept().await.expect("accepted");

    proxy.silence(true);
    far.write_all(b"a").await.expect("sent");
    let early = tokio::time::timeout(Duration::from_millis(600), stream.read_u8()).await;
    assert!(early.is_err(), "the network is silent");
    proxy.silence(false);
    assert_eq!(stream.read_u8().await.expect("late, but whole"), b'a');

    proxy.silence(true);
    let begun = Instant::now();
    let ended = tokio::time::timeout(Duration::from_secs(15), stream.read_u8()).await;
    let error = ended.expect("in time").expect_err("the session is dead");
    assert!(error.to_string().contains("keep-alive"), "{error}");
    assert!(
        begun.elapsed() > Duration::from_secs(2),
        "not at the first miss"
    );
    let error = transport.exec(&["true"]).await.expect_err("still silent");
    assert_eq!(error.code, Code::HiveUnreachable);

    proxy.silence(false);
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = transport.exec(&["true"]).await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn an_idle_session_lives_on_and_is_used_again() {
    let sshd = Sshd::start();
    let proxy = Proxy::to(sshd.port).await;
    let options = SshOptions {
        keep_alive: Duration::from_millis(300),
        keep_alive_misses: 5,
        ..sshd.options()
    };
    let transport = through(&proxy, &sshd, options);
    for _ in 0..3 {
        transport.exec(&["true"]).await.expect("it runs");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(proxy.connections(), 1);
}

#[tokio::test]
async fn a_dead_host_is_not_asked_again_and_again() {
    let sshd = Sshd::start();
    let proxy = Proxy::to(sshd.port).await;
    let options = SshOptions {
        connect_timeout: Duration::from_secs(2),
        backoff_first: Duration::from_secs(60),
        backoff_max: Duration::from_secs(60),
        ..sshd.options()
    };
    let transport = through(&proxy, &sshd, options);
    proxy.silence(true);
    for _ in 0..20 {
        let error = transport.exec(&["true"]).await.expect_err("it is silent");
        assert_eq!(error.code, Code::HiveUnreachable);
    }
    assert_eq!(proxy.connections(), 1);
    let error = transport.exec(&["true"]).await.expect_err("too early");
    assert!(error.message.contains("again in"), "{error}");

    // Whoever looks at the machine wants to know how it is now.
    proxy.silence(false);
    let report = transport.inspect(&sshd.hive("healthy")).await;
    assert_eq!(report.failure(), None);
    transport.exec(&["true"]).await.expect("and it is well");
}

#[tokio::test]
async fn a_connection_that_is_cut_again_and_again_leaks_nothing() {
    let sshd = Sshd::start();
    let proxy = Proxy::to(sshd.port).await;
    let transport = through(&proxy, &sshd, sshd.options());
    let (listener, port) = listener().await;
    for _ in 0..5 {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut stream = loop {
            match transport.connect(port).await {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let (_far, _) = listener.accept().await.expect("accepted");
        proxy.cut();
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_u8()).await;
        ended.expect("at once").expect_err("cut");
    }
}
