//! One HTTP/1.1 connection to a worker, driven by whoever waits for its answer.
//!
//! There is no task behind it: dropping it closes the socket at once, and no wake-up crosses from
//! one task to another for each piece of an answer.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use crate::transport::HiveStream;

type Io = TokioIo<Box<dyn HiveStream>>;

/// Why a request got no answer.
#[derive(Debug)]
pub(crate) enum SendError {
    /// It was not sent: the connection had been closed.
    Unsent,
    /// It was sent and the connection closed before the answer began.
    NoAnswer(String),
    /// What came is not HTTP.
    Invalid(String),
}

/// A connection with at most one request on it.
pub(crate) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    driver: Option<Box<http1::Connection<Io, Full<Bytes>>>>,
}

impl Connection {
    pub(crate) async fn handshake(stream: Box<dyn HiveStream>) -> hyper::Result<Self> {
        let (sender, driver) = http1::Builder::new()
            .writev(false)
            .handshake(TokioIo::new(stream))
            .await?;
        Ok(Connection {
            sender,
            driver: Some(Box::new(driver)),
        })
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && Pin::new(driver.as_mut()).poll(cx).is_ready()
        {
            self.driver = None;
        }
    }

    /// Whether an idle connection can take a request: its peer has not closed it.
    pub(crate) async fn is_open(&mut self) -> bool {
        poll_fn(|cx| {
            self.drive(cx);
            Poll::Ready(self.is_idle())
        })
        .await
    }

    fn is_idle(&self) -> bool {
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, SendError> {
        let mut answer = pin!(self.sender.try_send_request(request));
        let answered = poll_fn(|cx| {
            if let Poll::Ready(answered) = answer.as_mut().poll(cx) {
                return Poll::Ready(answered);
            }
            if let Some(driver) = &mut self.driver
                && Pin::new(driver.as_mut()).poll(cx).is_ready()
            {
                self.driver = None;
            }
            answer.as_mut().poll(cx)
        })
        .await;
        answered.map_err(|mut error| match error.take_message() {
            Some(_) => SendError::Unsent,
            None => {
                let error = error.into_error();
                match error.is_parse() {
                    true => SendError::Invalid(error.to_string()),
                    false => SendError::NoAnswer(error.to_string()),
                }
            }
        })
    }

    /// The next piece of an answer's body; `None` at its end.
    pub(crate) fn poll_data(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Bytes>>> {
        loop {
            let mut frame = Pin::new(&mut *body).poll_frame(cx);
            if frame.is_pending() {
                self.drive(cx);
                frame = Pin::new(&mut *body).poll_frame(cx);
            }
            return match frame {
                Poll::Pending => Poll::Pending,
                Poll::Ready(None) => Poll::Ready(None),
                Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => Poll::Ready(Some(Ok(data))),
                    Err(_trailers) => continue,
                },
            };
        }
    }

    /// Whether the connection can serve another request after its answer was read to the end.
    pub(crate) fn finish(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        self.is_idle()
    }
}
