//! The real binary as a process: its settings, its life, and what the kernel and its status say it costs.

use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How a daemon is set up for one measurement.
#[derive(Clone, Copy)]
pub struct Setup {
    /// Where reports go; `None`: to a port where nobody listens.
    pub api: Option<SocketAddr>,
    pub concurrency: usize,
    pub batch_size: usize,
}

/// A running daemon.
pub struct Daemon {
    child: Child,
    directory: PathBuf,
    /// From its start to READY.
    pub started_in: Duration,
}

/// What a daemon has used up so far.
#[derive(Clone, Copy, Default)]
pub struct Usage {
    pub cpu_micros: f64,
    pub written_bytes: f64,
    pub commits: f64,
}

impl std::ops::Sub for Usage {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            cpu_micros: self.cpu_micros - before.cpu_micros,
            written_bytes: self.written_bytes - before.written_bytes,
            commits: self.commits - before.commits,
        }
    }
}

impl Daemon {
    /// Starts it in a directory and waits for READY.
    pub fn start(directory: &Path, setup: Setup) -> Self {
        let path = |name: &str| directory.join(name).display().to_string();
        let url = setup.api.map_or_else(|| "http://127.0.0.1:1/toy".to_owned(), |address| format!("http://{address}/toy"));
        let config = format!(
            "[socket]\npath = '{}'\n[status]\nsocket = '{}'\n[store]\ndirectory = '{}'\ndurability = 'fsync'\n\
             [backup]\ndirectory = '{}'\n[session]\nbatch_size = {}\nsend_interval = '1s'\n\
             [manager_api]\nurl = '{url}'\nsecret = 'benchmark'\nreport_time_unit = 'ms'\ntimeout = '2min'\n\
             [upload]\nconcurrency = {}\nbackoff_initial = '20ms'\nbackoff_max = '100ms'\n[log]\nlevel = 'warn'\n",
            path("events.sock"),
            path("status.sock"),
            path("store"),
            path("backup"),
            setup.batch_size,
            setup.concurrency
        );
        let file = directory.join("config.toml");
        fs::write(&file, config).unwrap();
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let notify = directory.join("notify.sock");
        let _ = fs::remove_file(&notify);
        let supervisor = UnixDatagram::bind(&notify).unwrap();
        supervisor.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let log = fs::OpenOptions::new().create(true).append(true).open(directory.join("log")).unwrap();
        let binary = std::env::var_os("CHAT_HISTORYD_BINARY").map_or_else(binary, PathBuf::from);
        let started = Instant::now();
        let child = Command::new(binary)
            .arg("--config")
            .arg(&file)
            .env("NOTIFY_SOCKET", &notify)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut word = [0; 256];
        loop {
            let length = supervisor.recv(&mut word).unwrap();
            if word[..length].starts_with(b"READY=1") {
                break;
            }
        }
        let started_in = started.elapsed();
        // The supervisor's socket goes, and whoever tells it something later is not heard: as without one.
        Self { child, directory: directory.to_owned(), started_in }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("events.sock")
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }

    pub fn usage(&self) -> Usage {
        let written = self.proc("io").lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok()).unwrap();
        Usage { cpu_micros: self.cpu_micros(), written_bytes: written, commits: self.commits() }
    }

    /// User and system time of all its threads, those that are gone included.
    fn cpu_micros(&self) -> f64 {
        let clock = nix::time::clock_getcpuclockid(self.pid()).unwrap();
        Duration::from(clock.now().unwrap()).as_secs_f64() * 1e6
    }

    /// Waits until it does next to nothing.
    pub async fn at_rest(&self) {
        const LOOK_EVERY: Duration = Duration::from_millis(100);
        let mut before = self.cpu_micros();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = self.cpu_micros();
            if (now - before) / (LOOK_EVERY.as_micros() as f64) < 0.01 {
                return;
            }
            before = now;
        }
    }

    fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    fn commits(&self) -> f64 {
        let status = self.status();
        let metrics = &status["metrics"];
        ["commits", "commits_total"].iter().find_map(|name| metrics[*name].as_f64()).unwrap_or(f64::NAN)
    }

    /// The status object.
    pub fn status(&self) -> serde_json::Value {
        let mut text = String::new();
        UnixStream::connect(self.directory.join("status.sock")).unwrap().read_to_string(&mut text).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Resident memory now and at its highest since the start, in MiB.
    pub fn resident(&self) -> (f64, f64) {
        let status = self.proc("status");
        let mebibytes = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
        };
        (mebibytes("VmRSS"), mebibytes("VmHWM"))
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(mut self) {
        nix::sys::signal::kill(self.pid(), nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success(), "the daemon did not end well");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary under measurement: this build's.
fn binary() -> PathBuf {
    env!("CARGO_BIN_EXE_chat-historyd").into()
}

/// User and system time in a line of `/proc/…/stat`.
pub fn cpu_micros(stat: &str) -> f64 {
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // Ticks of 10 ms on every Linux the daemon runs on.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) * 10_000.0
}
