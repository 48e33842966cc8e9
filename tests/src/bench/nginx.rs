//! nginx as the yardstick: a plain reverse proxy for streams, tuned as one would for this load.

use crate::harness::{Daemon, ports, until};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The `nginx` program; installed by its package's name, if this is Debian and we are root.
///
/// # Errors
/// What to install, when it is missing and cannot be installed here.
pub(super) fn program() -> Result<PathBuf> {
    if let Some(found) = find() {
        return Ok(found);
    }
    let can_install =
        rustix::process::geteuid().is_root() && Path::new("/usr/bin/apt-get").exists();
    ensure!(
        can_install,
        "nginx is missing; install it, on Debian and Ubuntu with: sudo apt-get install nginx-light"
    );
    eprintln!("bench: installing nginx-light");
    apt_get(&["update", "-qq"])?;
    apt_get(&[
        "install",
        "-y",
        "-qq",
        "--no-install-recommends",
        "nginx-light",
    ])?;
    find().context("nginx-light was installed, but there is no nginx")
}

fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let mut programs = dirs.map(|dir| dir.join("nginx"));
    programs.find(|program| program.is_file())
}

fn apt_get(args: &[&str]) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.args(args).env("DEBIAN_FRONTEND", "noninteractive");
    // The table alone is for stdout.
    let status = apt.stdout(Stdio::null()).status()?;
    ensure!(status.success(), "{apt:?}: {status}");
    Ok(())
}

/// `nginx version: …`
pub(super) fn version(program: &Path) -> Result<String> {
    let out = Command::new(program).arg("-v").output()?;
    let said = String::from_utf8_lossy(&out.stderr);
    Ok(said.trim().trim_start_matches("nginx version: ").to_owned())
}

/// Connections are kept on both sides and never counted out; nothing is buffered or logged.
fn config(dir: &Path, port: u16, upstream: u16) -> String {
    let dir = dir.display();
    format!(
        "daemon off;
worker_processes auto;
worker_rlimit_nofile 16384;
error_log stderr warn;
pid {dir}/nginx.pid;
events {{
    worker_connections 8192;
}}
http {{
    access_log off;
    tcp_nodelay on;
    keepalive_timeout 300s;
    keepalive_requests 1000000000;
    client_body_buffer_size 64k;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    upstream stub {{
        server 127.0.0.1:{upstream} max_fails=0;
        keepalive 2048;
        keepalive_requests 1000000000;
        keepalive_timeout 300s;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://stub;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_buffering off;
            proxy_read_timeout 300s;
        }}
    }}
}}
"
    )
}

/// Starts nginx before the engine on port `upstream`; returns it with its port.
pub(super) fn start(program: &Path, dir: &Path, upstream: u16) -> Result<(Daemon, u16)> {
    for _ in 0..3 {
        let port = ports::free()?;
        let file = dir.join("nginx.conf");
        fs::write(&file, config(dir, port, upstream))?;
        let mut command = Command::new(program);
        command.arg("-p").arg(dir).arg("-c").arg(&file);
        let mut nginx = Daemon::spawn("nginx", &mut command, &dir.join("nginx.log"))?;
        let up = until(Duration::from_secs(5), || match nginx.exited() {
            Some(_) => Some(false),
            None => TcpStream::connect(("127.0.0.1", port)).ok().map(|_| true),
        });
        if up == Some(true) {
            return Ok((nginx, port));
        }
        if !nginx.log().contains("Address already in use") {
            bail!("nginx did not come up: {}", nginx.log());
        }
    }
    bail!("nginx found no free port in three tries")
}
