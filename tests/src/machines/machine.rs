//! One machine.

use super::{Network, child_of, keep, must};
use crate::harness::sshd::{make_key, server};
use crate::harness::{Home, ports, programs, until};
use crate::proc;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

/// A machine with sshd. What its user has is in a folder that outlives its being off.
#[derive(Debug)]
pub struct Machine<'n> {
    network: &'n Network,
    name: String,
    number: u8,
    home: Home,
    address: String,
    ssh_port: u16,
    hive_port: u16,
    rules: String,
    /// Processes and network, while it is on.
    body: Option<Body>,
    sshd: Option<Child>,
}

#[derive(Debug)]
struct Body {
    keeper: Child,
    /// Process 1 of the machine, as it is numbered here.
    init: u32,
}

/// Where hives listen unless they are told otherwise.
const HIVE_PORT: u16 = 9200;

impl<'n> Machine<'n> {
    pub(super) fn new(network: &'n Network, name: &str, number: u8) -> Self {
        let home = Home::new();
        fs::create_dir(home.path().join("home")).expect("the folder is ours");
        make_key(&home.path().join("host_key"), "");
        let public_key = home.path().join("authorized_keys");
        fs::copy(network.public_key(), public_key).expect("the folder is ours");
        let is_real = network.is_real();
        let address = match is_real {
            true => format!("10.77.0.{}", 10 + number),
            false => "127.0.0.1".to_owned(),
        };
        let free = || ports::free().expect("the system has a port left");
        let mut machine = Machine {
            network,
            name: name.to_owned(),
            number,
            home,
            address,
            ssh_port: if is_real { 22 } else { free() },
            hive_port: if is_real { HIVE_PORT } else { free() },
            rules: String::new(),
            body: None,
            sshd: None,
        };
        machine.power_on();
        machine
    }

    /// Where the stub engine's models and the hive's settings are.
    #[must_use]
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// The home of the user there.
    #[must_use]
    pub fn user_home(&self) -> PathBuf {
        self.home.path().join("home")
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Puts the reference hive where the queen looks for it first, so that she need not upload it.
    ///
    /// # Panics
    /// When it is there already.
    pub fn install_hive(&self) {
        let folder = self.user_home().join(".rbee/bin");
        fs::create_dir_all(&folder).expect("the folder is ours");
        let program = programs::hive();
        std::os::unix::fs::symlink(program, folder.join("rbee-hive")).expect("it is not there");
    }

    /// What `beehives/add` takes for it.
    #[must_use]
    pub fn registration(&self) -> Value {
        let mut registration = json!({
            "node_name": self.name,
            "ssh_host": self.address,
            "port": self.hive_port,
        });
        // A person leaves out what is usual.
        if self.ssh_port != 22 {
            registration["ssh_port"] = self.ssh_port.into();
        }
        registration
    }

    /// Puts its host key among those that the person knows, in place of an older one.
    ///
    /// # Panics
    /// When a file can't be read or written.
    pub fn make_known(&self) {
        let key = fs::read_to_string(self.home.path().join("host_key.pub"));
        let key = key.expect("it was made");
        let host = match self.ssh_port {
            22 => self.address.clone(),
            port => format!("[{}]:{port}", self.address),
        };
        let known = fs::read_to_string(self.network.known_hosts()).unwrap_or_default();
        let others = known
            .lines()
            .filter(|line| !line.starts_with(&format!("{host} ")));
        let mut lines: Vec<String> = others.map(str::to_owned).collect();
        lines.push(format!("{host} {}", key.trim()));
        fs::write(self.network.known_hosts(), lines.join("\n") + "\n").expect("it is ours");
    }

    /// Gives it another host key, as one that was set up anew has.
    ///
    /// # Panics
    /// When sshd does not come back.
    pub fn change_host_key(&mut self) {
        self.kill_sshd();
        for name in ["host_key", "host_key.pub"] {
            fs::remove_file(self.home.path().join(name)).expect("it was made");
        }
        make_key(&self.home.path().join("host_key"), "");
        self.start_sshd();
    }

    /// Runs a script on the machine, as its user, and gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let mut command = self.inside("sh");
        must(
            command
                .args(["-ec", script])
                .env("HOME", self.user_home())
                .envs(self.environment()),
        )
    }

    /// Starts a program that runs until the machine is switched off or dropped.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start(&self, program: &Path, args: &[&str]) {
        let command = [
            &[quoted(&program.display().to_string())],
            &args.iter().map(|arg| quoted(arg)).collect::<Vec<_>>()[..],
        ]
        .concat()
        .join(" ");
        self.sh(&format!("setsid {command} >/dev/null 2>&1 </dev/null &"));
    }

    /// A program on the machine. Without namespaces that is a program here.
    fn inside(&self, program: &str) -> Command {
        let Some(body) = &self.body else {
            return Command::new(program);
        };
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &body.init.to_string()])
            .args(["--net", "--uts", "--mount", "--pid", "--", program]);
        command
    }

    /// Drops all that comes in but for what is for sshd.
    pub fn let_in_ssh_only(&mut self) {
        self.set_rules(
            "chain in { type filter hook input priority 0; policy drop; \
             iif lo accept; tcp dport 22 accept }",
        );
    }

    /// Loses one packet in `100 / percent` on the way in and on the way out.
    pub fn lose(&mut self, percent: u8) {
        let lose = |hook: &str| {
            format!(
                "chain {hook} {{ type filter hook {hook} priority 0; policy accept; \
                 iif lo accept; numgen random mod 100 < {percent} drop }} "
            )
        };
        self.set_rules(&(lose("input") + &lose("output").replace("iif", "oif")));
    }

    /// Puts other rules of its firewall in place of those that it has; nothing lets all in.
    fn set_rules(&mut self, rules: &str) {
        rules.clone_into(&mut self.rules);
        self.apply_rules();
    }

    fn apply_rules(&self) {
        // Its grammar wants a line's end before a closing brace.
        let table = format!("table inet machine {{ {} }}", self.rules).replace('}', "\n}\n");
        self.sh(&format!("nft 'flush ruleset\n{table}'"));
    }

    /// Pulls its network cable: what is sent is lost, in both directions.
    pub fn unplug(&self) {
        Network::must(&format!("ip link set {} down", self.cable()));
    }

    /// Puts the cable back in.
    pub fn plug_in(&self) {
        Network::must(&format!("ip link set {} up", self.cable()));
    }

    fn cable(&self) -> String {
        format!("cable{}", self.number)
    }

    /// Cuts the power: every process ends at once, nobody is told.
    ///
    /// # Panics
    /// When it is off, or has no namespaces.
    pub fn power_off(&mut self) {
        let mut body = self.body.take().expect("it is on");
        proc::kill(body.init);
        body.keeper.wait().expect("it is our child");
        self.sshd.take().map(|mut sshd| sshd.wait());
        // Its end is gone already; the kernel takes its time with this one.
        let _ = Command::new("ip")
            .args(["link", "del", &self.cable()])
            .output();
    }

    /// Turns it on, with what is on its disk.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn power_on(&mut self) {
        if self.network.is_real() {
            self.boot();
        }
        self.start_sshd();
    }

    fn boot(&mut self) {
        let namespaces = ["--net", "--uts", "--mount", "--pid"];
        let and = ["--fork", "--kill-child", "--mount-proc"];
        let first = format!("hostname {}; ip link set lo up", self.name);
        let kept = keep(&[&namespaces[..], &and[..]].concat(), &first);
        let (keeper, is_up) = kept.expect("it was there for the queen's machine");
        assert!(is_up, "{} does not boot", self.name);
        let init = child_of(&keeper);
        self.body = Some(Body { keeper, init });
        let cable = self.cable();
        Network::must(&format!(
            "ip link add {cable} type veth peer name eth0 netns {init}; \
             ip link set {cable} master lan up"
        ));
        let address = &self.address;
        self.sh(&format!(
            "ip addr add {address}/24 dev eth0; ip link set eth0 up"
        ));
        if !self.rules.is_empty() {
            self.apply_rules();
        }
    }

    /// Puts a script in place of a program, for as long as the machine is on. The program itself
    /// is `$REAL` to it.
    pub fn replace(&self, program: &str, script: &str) {
        let at = |suffix: &str| self.home.path().join(format!("{program}.{suffix}"));
        let real = self.sh(&format!("readlink -f \"$(command -v {program})\""));
        let real = real.trim();
        programs::copy(Path::new(real), &at("real"));
        let kept = at("real").display().to_string();
        programs::script(&at("other"), &format!("#!/bin/sh\nREAL={kept}\n{script}\n"));
        let other = at("other").display().to_string();
        self.sh(&format!("mount --bind {other} {real}"));
    }

    /// Starts sshd, and waits until it listens.
    ///
    /// # Panics
    /// When it does not.
    pub fn start_sshd(&mut self) {
        let address = format!("{}:{}", self.address, self.ssh_port);
        let environment = self.environment();
        let variables: Vec<String> = environment
            .iter()
            .map(|(name, value)| format!("\"{name}={value}\""))
            .collect();
        let folder = self.home.path();
        server::write_config(folder, &address, "", &variables.join(" "));
        // An older one's port takes a moment to be free.
        let came = until(Duration::from_secs(20), || {
            server::start(folder, |sshd| self.inside(&sshd.display().to_string()))
        });
        self.sshd = Some(came.expect("sshd gets its port"));
    }

    /// Ends sshd and its sessions; what they started runs on.
    pub fn kill_sshd(&mut self) {
        if let Some(mut sshd) = self.sshd.take() {
            server::end(&mut sshd);
        }
    }

    /// What the machine's user has in the environment.
    fn environment(&self) -> Vec<(&'static str, String)> {
        let at = |path: &Path| path.display().to_string();
        let mut all = vec![
            ("RBEE_HIVE_MODELS", at(&self.home.models())),
            ("RBEE_HIVE_STATE", at(&self.home.path().join("hive"))),
            ("RBEE_HIVE_CONFIG", at(&self.home.hive_config())),
            (crate::harness::home::MARK, self.home.mark().to_owned()),
        ];
        if let Ok(engine) = std::env::var("RBEE_LLAMA_SERVER") {
            all.push(("RBEE_LLAMA_SERVER", engine));
        }
        all
    }

    /// What runs there for its user: hives, workers, shells of commands.
    #[must_use]
    pub fn processes(&self) -> Vec<proc::Process> {
        self.home.processes()
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        self.kill_sshd();
        if self.body.is_some() {
            self.power_off();
        }
    }
}

/// A word as the shell takes it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
