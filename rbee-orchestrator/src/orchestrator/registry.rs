//! Hives from their registration to their removal.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::Orchestrator;
use super::connector::Entry;
use super::hive_actor::{HiveActor, Leave, Order};
use crate::brain::Event;
use crate::config::{Config, OnShutdown};
use crate::domain::{HiveId, HiveRecord, HiveSpec, Now, host_and_port, is_loopback};
use crate::error::{Error, Result};
use crate::hives::{CallTimeouts, HiveHandle, HiveOptions, HiveToken, PortClaims, Stopped};
use crate::scheduler::Hive;
use crate::transport::HiveTransport;
use crate::transport::report::{Item, Report};

/// A look at a hive's machine that takes longer is given up: clients wait for it.
const LOOK_TIMEOUT: Duration = Duration::from_secs(25);

/// Makes the transport of a hive.
pub type TransportFactory = Arc<dyn Fn(&HiveSpec) -> Result<Arc<dyn HiveTransport>> + Send + Sync>;

/// What hive handles are made with.
pub(super) struct HiveParts {
    pub(super) token: HiveToken,
    pub(super) transports: TransportFactory,
    pub(super) claims: PortClaims,
    pub(super) log_dir: std::path::PathBuf,
}

impl Orchestrator {
    /// The time by which [`Hive`]s tell theirs.
    #[must_use]
    pub fn now(&self) -> Now {
        self.driver.clock.now()
    }

    /// All hives, by name.
    #[must_use]
    pub fn hives(&self) -> Vec<Hive> {
        self.driver
            .look(|brain, now| brain.view(now).hives.values().cloned().collect())
    }

    /// Registers a hive, in place of an older one of that name. It is taken in if it runs
    /// already, and started when a request needs it. What the queen started at an older place is
    /// stopped. Goes on to its end when it is dropped.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for a command template that the configuration does not have, or in a build
    /// without the feature `hives`;
    /// `STORE_FAILED`: the hive is used then, but a later life of the queen does not know it.
    pub async fn add_hive(&self, spec: HiveSpec) -> Result<()> {
        can_have_hives()?;
        let this = self.clone();
        self.to_its_end(async move {
            let transport = this.way_to(&spec).await?;
            this.register(spec, transport).await
        })
        .await
    }

    /// How a hive is reached. At the place where it is already, by the way that there is: what that
    /// remembers of its machine is looked at, and mended, too.
    async fn way_to(&self, spec: &HiveSpec) -> Result<Arc<dyn HiveTransport>> {
        let driver = &self.driver;
        let stays = driver.look(|brain, now| {
            let known = brain.view(now).hives.get(&spec.id);
            known.is_some_and(|hive| hive.record.spec.is_same_place(spec))
        });
        if let Some(entry) = driver.hives.get(&spec.id).filter(|_| stays) {
            return Ok(entry.handle.transport().clone());
        }
        // It may read the user's SSH configuration.
        let (transports, spec) = (self.hive_parts.transports.clone(), spec.clone());
        tokio::task::spawn_blocking(move || transports(&spec))
            .await
            .unwrap_or_else(|error| Err(Error::internal(error.to_string())))
    }

    /// Looks at a hive's machine and, unless the report has a failure, registers the hive as
    /// [`Orchestrator::add_hive`] does.
    ///
    /// # Errors
    /// Those of [`Orchestrator::add_hive`].
    pub async fn inspect_and_add_hive(&self, spec: HiveSpec) -> Result<Report> {
        can_have_hives()?;
        let transport = self.way_to(&spec).await?;
        let options = self.hive_options(&spec)?;
        let hive = HiveHandle::new(&spec, None, transport.clone(), options);
        let looked = tokio::time::timeout(LOOK_TIMEOUT, hive.inspect()).await;
        let report = looked.unwrap_or_else(|_| unfinished());
        if report.failure().is_none() {
            let this = self.clone();
            self.to_its_end(async move { this.register(spec, transport).await })
                .await?;
        }
        Ok(report)
    }

    async fn register(&self, spec: HiveSpec, transport: Arc<dyn HiveTransport>) -> Result<()> {
        let driver = &self.driver;
        let _alone = driver.hives.registration.lock().await;
        let options = self.hive_options(&spec)?;
        // The hive is served before the brain's first order for it is sent.
        let (record, served) = driver.decide(|brain, now, out| {
            let known = brain.view(now).hives.get(&spec.id);
            let stays = known.is_some_and(|hive| hive.record.spec.is_same_place(&spec));
            let record = brain.add_hive(now, HiveRecord::new(spec.clone()), out);
            let entry = driver.hives.get(&spec.id).filter(|_| stays);
            // One that serves no more has been shut down.
            if let Some(entry) = entry.filter(|entry| !entry.orders.is_closed()) {
                entry.handle.start_by(&spec, options.template);
                let _ = entry.orders.send(Order::Look);
                return (record, None);
            }
            let handle = HiveHandle::new(&spec, record.process.clone(), transport, options);
            (record, Some(self.open(handle)))
        });
        if let Some(opened) = served {
            self.serve(opened, spec.is_managed());
        }
        driver.store.put_hive(record).await
    }

    /// Runs what must not stop halfway, whoever waits for it.
    pub(super) async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let done = self.driver.spawn(work).await;
        done.unwrap_or_else(|error| Err(Error::internal(format!("it was not finished: {error}"))))
    }

    fn hive_options(&self, spec: &HiveSpec) -> Result<HiveOptions> {
        let config = &self.driver.config;
        let name = spec.command.as_deref().unwrap_or("default");
        let template = config.hives.commands.get(name).ok_or_else(|| {
            let known: Vec<&str> = config.hives.commands.keys().map(String::as_str).collect();
            let known = known.join(", ");
            Error::invalid(format!(
                "there is no command {name:?} in the configuration; there is {known}"
            ))
            .param("command")
        })?;
        let parts = &self.hive_parts;
        Ok(HiveOptions {
            template: template.clone(),
            port: config.hives.port,
            upload_dir: config.hives.upload_dir.clone(),
            queen_url: callback_url(spec, config.hives.queen_url.as_deref()),
            token: match spec.is_managed() || config.hives.shared_token != Some(true) {
                true => parts.token.for_hive(&spec.id),
                false => parts.token.clone(),
            },
            log_file: parts.log_dir.join(format!("hive-{}.log", spec.id)),
            start_timeout: config.timeouts.hive_start,
            stop_grace: config.timeouts.stop_grace,
            timeouts: CallTimeouts {
                health: config.timeouts.health,
                call: config.timeouts.hive_call,
                ..CallTimeouts::default()
            },
            claims: parts.claims.clone(),
        })
    }

    /// Makes a hive known, with an inbox for its orders.
    fn open(&self, handle: HiveHandle) -> Opened {
        let handle = Arc::new(handle);
        #[expect(
            clippy::disallowed_methods,
            reason = "the brain has at most a few orders under way for each worker"
        )]
        let (orders, inbox) = mpsc::unbounded_channel();
        // The first order of its life: an earlier life's hive that still runs is taken in.
        let _ = orders.send(Order::Look);
        let entry = Entry { handle, orders };
        Opened {
            handle: entry.handle.clone(),
            inbox,
            older: self.driver.hives.insert(entry),
        }
    }

    /// Gives a hive its task, which begins once that of an older hive of its name has ended.
    fn serve(&self, opened: Opened, managed: bool) {
        let Opened {
            handle,
            inbox,
            older,
        } = opened;
        let actor = HiveActor::new(self.driver.clone(), handle, managed);
        self.driver.spawn(async move {
            if let Some(older) = older
                && let Err(error) = ask_to_leave(&older, true).await
            {
                let hive = older.handle.id();
                tracing::warn!(%hive, %error, "the hive was not stopped at its older place");
            }
            actor.run(inbox).await;
        });
    }

    /// Forgets a hive. What the queen started there is stopped, unless it is to be left running.
    /// Goes on to its end when it is dropped.
    ///
    /// # Errors
    /// `HIVE_NOT_FOUND`, `STORE_FAILED`, or why it could not be stopped.
    pub async fn remove_hive(&self, id: &HiveId, leave_running: bool) -> Result<()> {
        let (this, id) = (self.clone(), id.clone());
        self.to_its_end(async move { this.forget_hive(&id, !leave_running).await })
            .await
    }

    /// Gives a hive no new work; what runs there goes on to its end. With `stop` the hive is stopped
    /// then. Holds until [`Orchestrator::resume_hive`] or the end of this process.
    ///
    /// # Errors
    /// `HIVE_NOT_FOUND`; `INVALID_REQUEST` for a stop of a hive that someone else runs.
    pub fn drain_hive(&self, id: &HiveId, stop: bool) -> Result<()> {
        self.driver
            .decide(|brain, now, out| brain.drain_hive(now, id, stop, out))
    }

    /// Gives a hive work again that was drained, came and went, or was given up; one that was given
    /// up is started.
    ///
    /// # Errors
    /// `HIVE_NOT_FOUND`.
    pub fn resume_hive(&self, id: &HiveId) -> Result<()> {
        self.driver
            .decide(|brain, now, out| brain.resume_hive(now, id, out))
    }

    async fn forget_hive(&self, id: &HiveId, stop: bool) -> Result<()> {
        let driver = &self.driver;
        let alone = driver.hives.registration.lock().await;
        let entry = driver.decide(|brain, now, out| {
            brain.remove_hive(now, id, out)?;
            Ok::<_, Error>(driver.hives.remove(id, stop))
        })?;
        // Others need not wait until it has ended.
        drop(alone);
        let left = match &entry {
            Some(entry) => ask_to_leave(entry, stop).await.map(|_| ()),
            None => Ok(()),
        };
        if let Some(entry) = &entry {
            driver.hives.has_left(entry);
        }
        // The record stays until then, for a later life of the queen to find what still runs.
        let _alone = driver.hives.registration.lock().await;
        let is_back = driver.look(|brain, now| brain.view(now).hives.contains_key(id));
        if !is_back {
            driver.store.remove_hive(id).await?;
        }
        let told =
            |why: &str| format!("hive {id} is removed, but what runs there was not stopped: {why}");
        left.map_err(|error| error.rephrased(told))
    }

    /// Stops every hive that a queen started, unless they are to be left running.
    pub(super) async fn stop_hives(&self) {
        if self.driver.config.hives.on_shutdown == OnShutdown::Leave {
            return;
        }
        let mut stopping = tokio::task::JoinSet::new();
        for entry in self.driver.hives.all() {
            stopping.spawn(
                async move { (entry.handle.id().clone(), ask_to_leave(&entry, true).await) },
            );
        }
        while let Some(stopped) = stopping.join_next().await {
            match stopped {
                Ok((hive, Ok(Stopped::Ended))) => {
                    tracing::info!(%hive, "the hive has ended");
                    let record = self
                        .driver
                        .decide(|brain, _, _| brain.set_hive_process(&hive, None));
                    if let Some(record) = record
                        && let Err(error) = self.driver.store.put_hive(record).await
                    {
                        tracing::warn!(%hive, %error, "the hive's record was not stored");
                    }
                }
                Ok((hive, Err(error))) => tracing::warn!(%hive, %error, "the hive was not stopped"),
                Ok((_, Ok(_))) => {}
                Err(error) => tracing::warn!(%error, "stopping a hive failed"),
            }
        }
    }

    pub(super) fn start_known_hives(&self, records: &[HiveRecord]) {
        for record in records {
            let spec = &record.spec;
            let handle = self.hive_options(spec).and_then(|options| {
                let transport = (self.hive_parts.transports)(spec)?;
                let process = record.process.clone();
                Ok(HiveHandle::new(spec, process, transport, options))
            });
            match handle {
                Ok(handle) => self.serve(self.open(handle), spec.is_managed()),
                Err(error) => {
                    tracing::warn!(hive = %spec.id, %error, "the hive can't be used");
                    self.driver.feed(Event::HiveStarted {
                        hive: spec.id.clone(),
                        result: Err(error),
                    });
                }
            }
        }
    }
}

/// A hive that is known and not served yet.
struct Opened {
    handle: Arc<HiveHandle>,
    inbox: mpsc::UnboundedReceiver<Order>,
    /// The hive that had its name.
    older: Option<Entry>,
}

async fn ask_to_leave(entry: &Entry, stop: bool) -> Result<Stopped> {
    let (done, answer) = oneshot::channel();
    if entry
        .orders
        .send(Order::Leave(Leave { stop, done }))
        .is_err()
    {
        return if stop {
            entry.handle.stop().await
        } else {
            Ok(Stopped::NotOurs)
        };
    }
    // The task may have been stopped while the order was in its inbox.
    match answer.await {
        Ok(stopped) => stopped,
        Err(_) if stop => entry.handle.stop().await,
        Err(_) => Ok(Stopped::NotOurs),
    }
}

/// Where a hive calls the queen back. Nobody can call her through a tunnel, and her loopback address
/// is another machine's own: what listens there must not be shown the token.
fn callback_url(spec: &HiveSpec, queen_url: Option<&str>) -> Option<String> {
    let url = queen_url?;
    let is_near = || host_and_port(url).is_some_and(|(host, _)| is_loopback(&host));
    let is_deaf = spec.ssh.is_some() && (spec.tunnel || is_near());
    (!is_deaf).then(|| url.to_owned())
}

fn unfinished() -> Report {
    let message = format!("the look at the machine did not end within {LOOK_TIMEOUT:?}");
    let cure = "see whether the machine is overloaded, and try again";
    Report {
        items: vec![Item::failed("reachable", message, cure)],
    }
}

fn can_have_hives() -> Result<()> {
    match cfg!(feature = "hives") {
        true => Ok(()),
        false => Err(Error::invalid(
            "this build has no hives: it lacks the feature `hives` of rbee-orchestrator; register \
             workers in their place",
        )),
    }
}

/// Local hives are child processes, unmanaged ones are reached by TCP, and those on machines with
/// SSH through it: all on one machine by one session.
pub(super) fn default_transports(config: &Config) -> TransportFactory {
    use crate::transport::{DirectTransport, LocalTransport};
    #[cfg(feature = "ssh")]
    use crate::transport::{SshOptions, SshSessions};
    let local = LocalTransport::new().passing(config.hives.pass_env.clone());
    let local: Arc<dyn HiveTransport> = Arc::new(local);
    let reach = config.reach();
    #[cfg(feature = "ssh")]
    let ssh = SshSessions::new(SshOptions {
        reach: reach.clone(),
        ..config.ssh.clone()
    });
    Arc::new(move |spec| match &spec.ssh {
        _ if !spec.is_managed() => {
            let direct = DirectTransport::new(spec.hostname.clone());
            Ok(Arc::new(direct.within(reach.clone())))
        }
        None => Ok(local.clone()),
        #[cfg(not(feature = "ssh"))]
        Some(_) => Err(Error::invalid(
            "this build reaches no hives over SSH: it lacks the feature `ssh` of rbee-orchestrator",
        )),
        #[cfg(feature = "ssh")]
        Some(target) => {
            let (target, host) = (target.clone(), spec.hostname.clone());
            let transport = ssh.transport(target, host, spec.tunnel);
            Ok(Arc::new(transport.within(reach.clone())))
        }
    })
}
