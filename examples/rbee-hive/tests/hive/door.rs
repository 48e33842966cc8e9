//! Connections that hold a place and do nothing with it.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{Hive, Home};

const GENEROUS: Duration = Duration::from_secs(90);
const CALL: &str = "GET /v1/workers/list HTTP/1.1\r\nhost: localhost\r\n\
    authorization: Bearer secret\r\n\r\n";

async fn connect(hive: &Hive, words: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", hive.port)).await.unwrap();
    stream.write_all(words.as_bytes()).await.unwrap();
    stream
}

/// What comes until the hive closes the connection.
async fn all_of(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = timeout(GENEROUS, stream.read_to_end(&mut bytes)).await;
    let _ = read.expect("the hive closes the connection");
    String::from_utf8(bytes).unwrap()
}

/// Makes a call on a connection that stays open.
async fn call(stream: &mut TcpStream) {
    stream.write_all(CALL.as_bytes()).await.unwrap();
    let mut answer = [0; 4096];
    let length = timeout(GENEROUS, stream.read(&mut answer)).await;
    let length = length.expect("an answer comes").unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_told_so() {
    let home = Home::new().env("RBEE_API_TOKEN", "secret");
    let hive = home.start().await;
    let slow = connect(
        &hive,
        "POST /v1/workers/spawn HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer secret\r\n\
         connection: close\r\ncontent-length: 40\r\n\r\n{\"model_ref\":",
    );
    let answer = all_of(slow.await).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("REQUEST_TIMEOUT"), "{answer}");
}

#[tokio::test]
async fn strangers_never_shut_the_queen_out() {
    let home = Home::new().env("RBEE_API_TOKEN", "secret");
    let hive = home.start().await;
    let mut queen = connect(&hive, "").await;
    call(&mut queen).await;
    let mut strangers = Vec::new();
    for _ in 0..130 {
        strangers.push(connect(&hive, "").await);
    }
    call(&mut queen).await;
    call(&mut connect(&hive, "").await).await;
    assert_eq!(all_of(strangers.remove(0)).await, "");
}
