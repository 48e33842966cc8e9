//! One request: connect or reuse, send, read, check.

use super::check::Check;
use super::{Run, Target};
use crate::token::{now_us, push_num, value_of};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::Instant;

pub(super) type Sender = SendRequest<Full<Bytes>>;

/// What came of one request: an error's kind, or nothing wrong.
pub(super) type Outcome = Result<(), String>;

impl Run {
    async fn connect(&self, target: &Target) -> Result<Sender, String> {
        let kind = |e: std::io::Error| format!("connect_{:?}", e.kind());
        let tcp = TcpStream::connect(&target.authority).await.map_err(kind)?;
        tcp.set_nodelay(true).map_err(kind)?;
        let shaken = http1::handshake(TokioIo::new(tcp)).await;
        let (sender, conn) = shaken.map_err(|_| "connect_handshake")?;
        spawn_local(async move { drop(conn.await) });
        self.stats.borrow_mut().connections += 1;
        Ok(sender)
    }

    fn request(&self, target: &Target) -> Request<Full<Bytes>> {
        self.sent.set(self.sent.get() + 1);
        let (before, after) = &self.body;
        let mut body = Vec::with_capacity(before.len() + after.len() + 20);
        body.extend_from_slice(before);
        push_num(&mut body, self.sent.get());
        body.extend_from_slice(after);
        self.stats.borrow_mut().bytes_out += body.len() as u64;
        let mut req = Request::new(Full::new(body.into()));
        *req.method_mut() = hyper::Method::POST;
        *req.uri_mut() = self.path.clone();
        let headers = req.headers_mut();
        headers.insert(hyper::header::HOST, target.host.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.extend(self.headers.iter().cloned());
        req
    }

    /// Sends on an idle connection or a new one. A request that an idle connection gives back
    /// unsent (the peer had just closed it) goes out again on the next; that is no error.
    async fn send(&self, target: &Target) -> Result<(Sender, Response<Incoming>), String> {
        let mut req = self.request(target);
        loop {
            let idle = target.idle.borrow_mut().pop();
            let mut sender = match idle {
                Some(mut sender) => match sender.ready().await {
                    Ok(()) => sender,
                    Err(_) => continue,
                },
                None => self.connect(target).await?,
            };
            match sender.try_send_request(req).await {
                Ok(res) => return Ok((sender, res)),
                Err(mut e) => match e.take_message() {
                    Some(unsent) => {
                        self.stats.borrow_mut().resent += 1;
                        req = unsent;
                    }
                    None => return Err("closed_before_response".into()),
                },
            }
        }
    }

    pub(super) async fn exchange(&self, target: &Target, start: Instant) -> Outcome {
        let (sender, res) = self.send(target).await?;
        if res.status() != 200 {
            return Err(format!("status_{}", res.status().as_u16()));
        }
        let check = if self.args.stream {
            self.read_stream(res, start).await?
        } else {
            self.read_whole(res, start).await?
        };
        let now = Instant::now();
        target.idle.borrow_mut().push(sender);
        let measured = self.is_in_window(start);
        let stats = &mut *self.stats.borrow_mut();
        if measured {
            stats.lost_tokens += check.lost;
            stats.repeated_tokens += check.repeated;
        }
        check.verdict(self.args.tokens)?;
        if measured {
            stats.total.add(now - start);
        }
        stats.done_in_window += u64::from(self.is_in_window(now));
        Ok(())
    }

    async fn read_stream(
        &self,
        mut res: Response<Incoming>,
        start: Instant,
    ) -> Result<Check, String> {
        let measured = self.is_in_window(start);
        let mut check = Check::default();
        let mut last: Option<Instant> = None;
        while let Some(frame) = res.body_mut().frame().await {
            let frame = frame.map_err(|_| "closed_in_body")?;
            let Some(data) = frame.data_ref() else {
                continue;
            };
            let (now, wall) = (Instant::now(), now_us());
            let counts = u64::from(self.is_in_window(now));
            let stats = &mut *self.stats.borrow_mut();
            stats.bytes_in += data.len() as u64;
            check.feed(&self.key, data, &mut |stamp| {
                stats.tokens_in_window += counts;
                if measured {
                    let relay = Duration::from_micros(wall.saturating_sub(stamp));
                    stats.relay.add(relay);
                    match last {
                        Some(last) => stats.gap.add(now - last),
                        None => stats.ttft.add(now - start),
                    }
                }
                last = Some(now);
            });
        }
        Ok(check)
    }

    async fn read_whole(&self, res: Response<Incoming>, start: Instant) -> Result<Check, String> {
        let first_byte = Instant::now();
        let body = res.into_body().collect().await;
        let body = body.map_err(|_| "closed_in_body")?.to_bytes();
        serde_json::from_slice::<serde::de::IgnoredAny>(&body).map_err(|_| "not_json")?;
        let text = value_of(&body, &self.key).and_then(|value| value.strip_prefix(b"\""));
        let mut check = Check::default();
        let tokens = check.whole(text.unwrap_or(b""));
        let stats = &mut *self.stats.borrow_mut();
        stats.bytes_in += body.len() as u64;
        stats.tokens_in_window += u64::from(self.is_in_window(Instant::now())) * tokens;
        if self.is_in_window(start) {
            stats.ttft.add(first_byte - start);
        }
        Ok(check)
    }
}
