//! A network between queen and machine that can be cut, silenced and slowed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Forwards a port of its own to another.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    link: Arc<Link>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Link {
    is_silent: AtomicBool,
    /// Bytes towards the machine after which the connections are cut.
    left: AtomicU64,
    cut: Notify,
    connections: AtomicU64,
}

impl Proxy {
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        Self::between(listener, port)
    }

    /// One that takes little at once: whoever sends much is often stopped in the middle of a packet.
    pub(crate) fn narrow(port: u16) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(8 << 10).expect("any size");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
        Self::between(socket.listen(16).expect("it listens"), port)
    }

    fn between(listener: TcpListener, port: u16) -> Self {
        let own = listener.local_addr().expect("it is bound").port();
        let link = Arc::new(Link {
            left: AtomicU64::new(u64::MAX),
            ..Link::default()
        });
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&link);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let link = Arc::clone(&shared);
                connections.spawn(forward(client, port, link));
            }
        });
        Proxy {
            port: own,
            link,
            _tasks: tasks,
        }
    }

    /// Takes everything and forwards nothing.
    pub(crate) fn silence(&self, is_silent: bool) {
        self.link.is_silent.store(is_silent, Ordering::Relaxed);
    }

    /// Ends every connection.
    pub(crate) fn cut(&self) {
        self.link.cut.notify_waiters();
    }

    /// Ends every connection once so many more bytes have gone to the machine.
    pub(crate) fn cut_after(&self, bytes: u64) {
        self.link.left.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn connections(&self) -> u64 {
        self.link.connections.load(Ordering::Relaxed)
    }
}

async fn forward(client: TcpStream, port: u16, link: Arc<Link>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let cut = link.cut.notified();
    tokio::select! {
        () = cut => {}
        () = copy(from_client, to_server, &link, true) => {}
        () = copy(from_server, to_client, &link, false) => {}
    }
}

async fn copy(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    link: &Link,
    counts: bool,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        while link.is_silent.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if counts {
            let left = link.left.load(Ordering::Relaxed);
            if left < count as u64 {
                link.left.store(u64::MAX, Ordering::Relaxed);
                link.cut.notify_waiters();
                return;
            }
            if left != u64::MAX {
                link.left.store(left - count as u64, Ordering::Relaxed);
            }
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
