//! What the monitoring of many hives costs.

use crate::bench::compared::{Aim, Found};
use crate::harness::{Home, Queen, until};
use crate::proc;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpListener;

const HIVES: u8 = 200;

/// Hives that answer from one thread here, each by an address of its own.
pub(super) fn measure(quick: bool) -> Result<Vec<Found>> {
    // Two rounds of checks, at their usual interval.
    let window = Duration::from_secs(if quick { 5 } else { 30 });
    let port = serve()?;
    let home = Home::new();
    let queen = home.queen().config("hives.local = false").start();
    let without = share_of_a_core(&queen, window);
    for number in 1..=HIVES {
        let hive = json!({
            "node_name": format!("hive-{number}"),
            "mode": "network",
            "hostname": host(number).to_string(),
            "port": port,
        });
        let reply = queen.ask("/v2/registry/beehives/add", &hive);
        ensure!(reply.status == 200, "{}", reply.text);
    }
    let all_online = || {
        let list = queen
            .look("/v2/registry/beehives/list?status=online")
            .json();
        let online = list["nodes"].as_array().map_or(0, Vec::len);
        (online == usize::from(HIVES)).then_some(())
    };
    until(Duration::from_secs(60), all_online).context("not all hives came online")?;
    let with = share_of_a_core(&queen, window);
    Ok(vec![Found {
        what: "a queen who watches 200 hives, each every 15 s, beside one who watches none",
        unit: "% of a core",
        reference: Some(without),
        queen: with,
        aim: Aim::Below(2.0),
    }])
}

fn host(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, number)
}

#[expect(
    clippy::disallowed_methods,
    reason = "what is measured is a time in which nothing is asked"
)]
fn share_of_a_core(queen: &Queen, window: Duration) -> f64 {
    let used = || proc::usage(&[queen.pid()]).cpu_s;
    let before = used();
    std::thread::sleep(window);
    (used() - before) / window.as_secs_f64() * 100.0
}

fn serve() -> Result<u16> {
    let listener = std::net::TcpListener::bind(("0.0.0.0", 0))?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.expect("it can be made");
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).expect("it is a socket");
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(to) = stream.local_addr() else {
                    continue;
                };
                let service = service_fn(move |request: Request<Incoming>| {
                    std::future::ready(Ok::<_, Infallible>(answer(request.uri().path(), to)))
                });
                let http = hyper::server::conn::http1::Builder::new();
                let served = http.serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move { served.await.is_ok() });
            }
        });
    });
    Ok(port)
}

fn answer(path: &str, to: SocketAddr) -> Response<Full<Bytes>> {
    let body = match path {
        "/v1/capabilities" => capabilities(),
        "/v1/workers/list" => json!({"workers": [{
            "id": format!("worker-{}", to.ip()), "url": format!("http://{to}"),
            "model_ref": "hf:org/model-1", "backend": "cuda", "device": 0, "state": "idle",
            "slots_total": 4, "slots_available": 4, "protocol": "openai",
        }]}),
        _ => json!({"status": "alive", "version": "0.1.0", "api_version": "v1"}),
    };
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    let json = hyper::header::HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, json);
    response
}

/// Two devices and ten models.
fn capabilities() -> Value {
    const GIB: u64 = 1 << 30;
    let device = |index: u32| {
        json!({"index": index, "backend": "cuda", "name": "GPU",
               "vram_total_bytes": 24 * GIB, "vram_free_bytes": 20 * GIB})
    };
    let model = |number: u32| {
        json!({"model_ref": format!("hf:org/model-{number}"), "aliases": [],
               "size_bytes": 4 * GIB, "vram_bytes": 5 * GIB})
    };
    json!({
        "devices": (0..2).map(device).collect::<Vec<_>>(),
        "backends": ["cuda"],
        "models": (0..10).map(model).collect::<Vec<_>>(),
        "disk_free_bytes": 100 * GIB,
    })
}
